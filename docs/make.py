"""Write what the documents take from the code and from committed records: `python -m docs.make` (`--check`: only look).

| made | of |
|---|---|
| headline, in README.md and index.md; speedup_vs_params.png | what `mlexp report` says of RECORDS |
| the tables of metrics.md | mlexp/record.py |
| the commands and options in reference/ | the parsers of `mlexp` and of the pytest plugin |

Each stands between `<!-- made: NAME -->` and `<!-- end -->`.
"""

import argparse
import contextlib
import csv
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORDS = "results/raw/all-quick-amd-epyc-2-threads-2026-11-22.json"
QUESTION, METHOD, PICTURE = "decoding_speedup", "eab_particles", "speedup_vs_params.png"
LINES = 5  # of the report's output, paths apart
PAGES = ("README.md", "docs/index.md", "docs/metrics.md", "docs/reference/commands.md", "docs/reference/options.md")
BLOCK = re.compile(r"(<!-- made: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """Write every block and the picture; with `--check` exit with 1 where a block is not what it would be."""
    parser = argparse.ArgumentParser(prog="python -m docs.make", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a block is out of date")
    check = parser.parse_args(argv).check
    with tempfile.TemporaryDirectory() as folder:
        blocks = all_blocks(Path(folder))
        old = [page for page in PAGES if filled((ROOT / page).read_text(), blocks) != (ROOT / page).read_text()]
        if check:
            for page in old:
                print(f"{page} is out of date: run python -m docs.make", file=sys.stderr)
            return 1 if old else 0
        for page in old:
            (ROOT / page).write_text(filled((ROOT / page).read_text(), blocks))
        shutil.copyfile(Path(folder) / QUESTION / PICTURE, ROOT / "docs" / PICTURE)
    print(f"wrote {', '.join([*old, f'docs/{PICTURE}'])}")
    return 0


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """A page with every block as it should be. Raises KeyError for a block that nobody makes."""
    return BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]}\n{found[4]}", text)


def all_blocks(folder: Path) -> dict[str, str]:
    """Every block by name; the report that the headline is read off is left in `folder`."""
    from mlexp.record import CONDITIONS, METRICS

    return {
        "headline": headline(folder),
        "metrics": metric_table(METRICS),
        "conditions": table(("name", "unit", "what"), ((f"`{n}`", m.unit, m.what) for n, m in CONDITIONS.items())),
        "options": option_table(),
        **commands(),
    }


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def headline(folder: Path) -> str:
    """The study's primary claim as the report judges it, what the picture shows, and the report's first lines."""
    from mlexp.analysis.report import run

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if run([ROOT / RECORDS], folder, ROOT / "benches", "png"):
            raise RuntimeError(f"{RECORDS} was not reported:\n{printed.getvalue()}")
    lines = printed.getvalue().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{QUESTION}  "))
    printed_lines = [line for line in lines[start : start + LINES] if str(folder) not in line]
    shown = "\n".join([f"$ mlexp report {RECORDS}", *printed_lines])
    claims = json.loads((folder / QUESTION / "claims.json").read_text())
    context = lines[start].removeprefix(f"{QUESTION}  ")
    return f"{verdict(claims[0], context)}\n\n{picture(folder)}\n\n```text\n{shown}\n```"


def verdict(claim: Mapping[str, Any], context: str) -> str:
    """A claim as it was judged, with the interval and the condition under which it holds."""
    said = f'"{claim["claim"]}" ({claim["rank"]} claim) is **{claim["verdict"]}**'
    if not claim["parts"]:
        return f"{said}: {claim['needs']}. Measured on: {context}."
    (part,) = claim["parts"]
    more = f" About {claim['more_blocks']} more prompts would decide it." if claim["more_blocks"] else ""
    interval = f"{100 * claim['confidence']:.4g} % interval {part['low']:+.3f} to {part['high']:+.3f}"
    return (
        f"{said}: the exponent of the speed-up in the number of parameters is estimated at {part['estimate']:+.3f}, "
        f"{interval}, from {part['n']} prompts.{more} Measured on: {context}."
    )


def picture(folder: Path) -> str:
    """What the picture shows of the method against the arm that does least for itself and against what sharing the
    prompt alone gives: at how many sizes the interval, each by itself, lies above 1."""
    with (folder / QUESTION / "speedup.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == METHOD]
    counts = {}
    for baseline in ("sequential", "shared_prefill"):
        lows = [float(row["low"]) for row in rows if row["baseline"] == baseline]
        counts[baseline] = f"{sum(low > 1 for low in lows)} of {len(lows)} sizes"
    return (
        f"The picture: time of each baseline over that of branching, with 95 % intervals, each by itself. Against "
        f"`sequential` sampling the interval of `{METHOD}` lies above 1 at {counts['sequential']}; against "
        f"`shared_prefill`, which also encodes the prompt only once, at {counts['shared_prefill']}."
    )


def metric_table(metrics: Mapping[str, Any]) -> str:
    """A row a metric."""
    heads = ("name", "unit", "better", "what it is", "kind")
    rows = [(f"`{n}`", m.unit, "" if m.better == "none" else m.better, m.what, m.compared) for n, m in metrics.items()]
    return table(heads, rows)


def option_table() -> str:
    """A row an option of the pytest plugin."""
    from mlexp.harness.options import TABLE

    rows = []
    for name, option in TABLE.items():
        values = (option.get("metavar") or "|".join(option.get("choices", ()))).split("|")
        flag = f"--{name}[={values[0]}]" if option.get("nargs") == "?" else f"--{name}"
        rows.append((with_values(flag, [] if option.get("nargs") == "?" else values), option["help"] + again(option)))
    return table(("option", "what it does"), rows)


def with_values(flag: str, values: list[str]) -> str:
    """An option as code with its value, or with the values that it may have."""
    if len(values) > 1:  # no | in code: Markdown's dialects escape it differently in tables
        return f"`{flag}` " + ", ".join(f"`{value}`" for value in values)
    return f"`{' '.join([flag, *filter(None, values)])}`"


def again(option: Mapping[str, Any]) -> str:
    return "; may be given several times" if option.get("action") == "append" else ""


def commands() -> dict[str, str]:
    """By the name of a command: its line, what it does, its arguments, its exit statuses."""
    from mlexp.cli import parser

    (found,) = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: described(name, command) for name, command in found.choices.items()}


def described(name: str, command: argparse.ArgumentParser) -> str:
    """One command for the page."""
    actions = [action for action in command._actions if not isinstance(action, argparse._HelpAction)]
    usage = command.usage or " ".join([f"mlexp {name} [options]", *(place(a) for a in actions if not a.option_strings)])
    rows = [(spelled(action), described_argument(action)) for action in actions]
    statuses = re.sub(r"^exit status: ", "", command.epilog or "")
    parts = [f"```text\n{usage}\n```", command.description or "", table(("argument", "what it is"), rows)]
    return "\n\n".join([*parts, f"Exit status: {statuses}."])


def place(action: argparse.Action) -> str:
    """An argument without a name, as a usage line has it."""
    name = str(action.metavar)
    return {"*": f"[{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def spelled(action: argparse.Action) -> str:
    """An argument with its value."""
    if not action.option_strings:
        return f"`{action.metavar}`"
    values = [str(action.metavar)] if action.metavar else [str(choice) for choice in action.choices or ()]
    return with_values(action.option_strings[0], values)


def described_argument(action: argparse.Action) -> str:
    """What an argument is, in the parser's words."""
    text = (action.help or "") % {**vars(action), "prog": "mlexp"}
    needed = "required" if action.required and action.option_strings else ""
    several = "may be given several times" if isinstance(action, argparse._AppendAction) else ""
    return "; ".join(filter(None, [text, needed, several]))


if __name__ == "__main__":
    sys.exit(main())
