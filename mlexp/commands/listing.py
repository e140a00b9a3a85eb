"""`mlexp list`: what there is to measure: questions, axes, settings, metrics, claims."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlexp.harness.catalogue import Bench, Setting

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

OK, NOTHING, BAD_INPUT = 0, 2, 4
SHOWN = 8  # values of an axis
TITLES = 10  # the width of what stands before a row


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    listing = commands.add_parser(
        "list",
        help="the questions: their axes, settings, metrics and claims",
        description="What each bench file asks, how many cells it makes at a scale, its settings with their bounds, "
        "its metrics and its claims. Nothing is run.",
        epilog="exit status: 0 listed; 2 no questions there; 4 a file that cannot be collected (the others are listed)",
    )
    listing.add_argument("path", nargs="?", type=Path, default=Path("benches"), metavar="PATH", help="default: benches")
    listing.add_argument("--scale", choices=("smoke", "quick", "full"), default="quick", help="default: quick")
    listing.add_argument("--json", action="store_true", help="everything, for programs")
    listing.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the bench files under a path declare."""
    if not options.path.exists():
        return _say(NOTHING, f"{options.path}: no such file or folder; `mlexp init` makes a first question")
    files = sorted(options.path.rglob("bench_*.py")) if options.path.is_dir() else [options.path]
    if not files:
        return _say(NOTHING, f"{options.path}: no bench_*.py there; `mlexp new QUESTION` begins one")
    from mlexp.harness.catalogue import as_dict, collect

    benches, errors = collect(files, options.scale)
    if options.json:
        print(json.dumps([as_dict(bench) for bench in benches], indent=2, default=str))
    elif benches:
        print("\n\n".join("\n".join(lines(bench)) for bench in benches))
    if errors:
        return _say(BAD_INPUT, *errors)
    return OK if benches else _say(NOTHING, f"{options.path}: no test there takes `cell`")


def _say(status: int, *lines: str) -> int:
    for line in lines:
        print(f"mlexp list: {line}", file=sys.stderr)
    return status


def lines(bench: "Bench") -> Iterator[str]:
    """A question for people."""
    others = [scale for scale in bench.scales if scale != bench.scale]
    more = f" (other scales: {', '.join(others)})" if others else ""
    yield f"{bench.question}  {bench.asks}"
    yield f"  {bench.file}: {sum(bench.cells.values())} cells at scale {bench.scale}{more}"
    for title, rows in (
        ("cells", _cells(bench)),
        ("axes", _axes(bench)),
        ("settings", (_setting(setting) for setting in bench.settings)),
        ("metrics", (f"{name}: {m.unit}{_better(m.better)}; {m.what}" for name, m in bench.metrics.items())),
        ("claims", (f"{name}{_role(claim)}: {claim.text}" for name, claim in bench.study.claims.items())),
    ):
        for number, row in enumerate(rows):
            yield f"  {'' if number else title:{TITLES}}{row}"


def _cells(bench: "Bench") -> Iterator[str]:
    for name, count in bench.cells.items():
        yield f"{name}({', '.join(bench.axes[name])}): {count}"


def _axes(bench: "Bench") -> Iterator[str]:
    study = bench.study
    values: dict[str, list[Any]] = {}
    for axes in bench.axes.values():  # a function may take a part of an axis alone: shown is what any of them takes
        for axis, some in axes.items():
            values[axis] = list(dict.fromkeys([*values.get(axis, []), *some]))
    roles = {study.arm: f" (compared; baseline {study.baseline})"} if study.baseline else {}
    roles |= dict.fromkeys(study.replicates, " (replicates)") if study.arm else {}
    for axis, found in values.items():
        yield f"{axis}: {shown(found)}{roles.get(axis, '')}"


def _setting(setting: "Setting") -> str:
    value = f"the values of {setting.axis}" if setting.axis else shown(setting.value)
    return "; ".join([f"{setting.name}: {setting.type} = {value}", *setting.bounds])


def _better(better: str) -> str:
    return "" if better == "none" else f", {better} is better"


def _role(claim: Any) -> str:
    return " (primary)" if claim.primary else " (check)" if claim.check else ""


def shown(value: object) -> str:
    """A value, or the first and the last of many."""
    if not isinstance(value, list | tuple) or not value:
        return str(value)
    texts: Iterable[str] = map(str, value)
    if len(value) > SHOWN:
        texts = [*map(str, value[: SHOWN - 2]), "...", str(value[-1])]
    return ", ".join(texts) + (f" ({len(value)})" if len(value) > SHOWN else "")
