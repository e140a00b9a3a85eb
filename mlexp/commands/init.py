"""`mlexp init`: what a repository needs to ask questions of its own, and a first one that runs."""

import argparse
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mlexp.commands import ini
from mlexp.commands.templates import filled
from mlexp.commands.written import add_lines, write_new

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

OK, TO_DO, BAD_INPUT = 0, 1, 4
WORKFLOW = ".github/workflows/benches.yml"
IGNORED = (
    "__pycache__/", ".venv/", "venv/", ".mlexp/", ".benchmarks/",
    "/results/*", "!/results/raw", "/*.json", "/*.series/",
)  # fmt: skip
MLEXP = re.compile(r"^ *MLEXP:(.*)$", re.MULTILINE)  # the workflow's line that says what pip installs
FIRST = {
    "benches/first/bench_first.py": "bench_first.py.txt",
    "benches/first/README.md": "README.first.md",
}
PLACEHOLDER = "EDIT: path in this repository, or URL, of the wheel of pytest-mlexp"


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    init = commands.add_parser(
        "init",
        help="what a repository needs for questions of its own, and a first one that runs",
        description="Writes pytest.ini, .gitignore, a CI workflow and a first question that runs in seconds. Nothing "
        "is overwritten; where the project configures pytest already, the lines to add are printed.",
        epilog="exit status: 0 all is there; 1 lines are left for you to add (they are printed); 4 DIR will not do",
    )
    init.add_argument("folder", nargs="?", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    init.add_argument(
        "--install",
        metavar="WHAT",
        help="what the workflow gives to `pip install`: a URL, the path of a wheel in the repository, a requirement; "
        "default: where this installation came from, if that is a URL or an index",
    )
    init.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write what is missing; say what was written, what is left to do, and what to run."""
    folder, install = options.folder, options.install or source()
    try:
        place = ini.place_of(folder)
        is_on = place is not None and place.is_on
        lines = write_new(folder, {"pytest.ini": ini.INI}) if place is None else []
        lines += [f"kept   {place.path} (it switches mlexp on)"] if place and is_on else []
        lines += add_lines(folder / ".gitignore", IGNORED)
        lines += write_new(folder, {WORKFLOW: workflow(install)} | first(folder))
    except (OSError, ValueError) as error:
        print(f"mlexp init: {error}", file=sys.stderr)
        return BAD_INPUT
    print("\n".join(lines))
    left = []
    if place and not is_on:
        left.append("\n    ".join([f"{place.path} configures pytest; let it say\n", *place.lines.splitlines()]))
    if options.install and (difference := differs(folder / WORKFLOW, install)):
        left.append(difference)
    elif is_open(folder / WORKFLOW):
        print(f"\nbefore you push {WORKFLOW}: its line `MLEXP:` must say where pytest-mlexp comes from (see --install)")
    for text in left:
        print(f"\nleft to do: {text}")
    print("\nnow:", *next_commands(folder), sep="\n    ")
    return TO_DO if left else OK


def first(folder: Path) -> dict[str, str]:
    """The first question, where there is none yet, or what there is of it to name."""
    has_others = any(file.parent.name != "first" for file in (folder / "benches").glob("*/bench_*.py"))
    return {} if has_others else {name: filled(template) for name, template in FIRST.items()}


def workflow(install: str) -> str:
    """The CI workflow that installs mlexp from there."""
    edit = "what pip installs the harness from" if install else PLACEHOLDER
    return filled("benches.yml", {"INSTALL": json.dumps(install)[1:-1], "EDIT": edit})


def differs(path: Path, install: str) -> str:
    """What to edit in a workflow so that it installs mlexp from there; empty where it does."""
    line, says = installs(path)
    if line and says in (install, json.dumps(install), f"'{install}'"):
        return ""
    wanted = f"MLEXP: {json.dumps(install)}"
    if not line:
        return f"{path} was there and has no line `MLEXP:`; let its `pip install` take {install}"
    return f"{path}:{line} was there and says `MLEXP: {says}`; let it say\n\n    {wanted}"


def is_open(path: Path) -> bool:
    """Whether the workflow says nothing yet of where mlexp comes from."""
    line, says = installs(path)
    return line > 0 and says == '""'


def installs(path: Path) -> tuple[int, str]:
    """(the line, 0 where there is none, its value as it is written) of what a workflow gives to `pip install`."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not (found := MLEXP.search(text)):
        return 0, ""
    return text.count("\n", 0, found.start()) + 1, found[1].partition(" #")[0].strip()


def source() -> str:
    """From where pip can install this package elsewhere; empty where it came from a file of this machine."""
    name = next(iter(metadata.packages_distributions().get("mlexp", ())), "")
    if not name:
        return ""
    distribution = metadata.distribution(name)
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    url, vcs = origin.get("url", ""), origin.get("vcs_info", {})
    if url.startswith("file:") or distribution.read_text("RECORD") is None:  # metadata in a checkout has no RECORD
        return ""
    if not origin:
        return f"{name}=={distribution.version}"
    return f"{name} @ " + (f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else url)


def next_commands(folder: Path) -> list[str]:
    """What to run now, with what it is for."""
    there = [] if folder.resolve() == Path.cwd() else [f"cd {folder}"]
    return [
        *there,
        "pytest benches --benchmark-json out.json     measures every question; seconds for the first one",
        "mlexp report out.json                        tables, figures and verdicts: results/index.html",
        "mlexp new QUESTION                           begins a question of your own",
    ]
