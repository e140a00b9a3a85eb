"""The `mlexp` command."""

import argparse
import sys
from pathlib import Path

from mlexp import __version__


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show "·" gets an escape, not a traceback
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(argv)
    return options.run(options)


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported before a command runs."""
    top = argparse.ArgumentParser(prog="mlexp", description="Reads what `pytest benches` measured.")
    top.add_argument("--version", action="version", version=f"mlexp {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report",
        help="tables, figures and verdicts from records",
        description="Tables, figures, verdicts and index.html from benchmark JSON, journals or folders of either.",
        epilog="exit status: 0 all reported; 2 nothing to report; 3 the report of a question failed, the others are "
        "written; 4 unreadable input (nothing is written)",
    )
    default = "default: .mlexp/journal.jsonl and results/raw"
    report.add_argument("paths", nargs="*", type=Path, metavar="PATH", help=default)
    report.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s")
    report.add_argument("--benches", type=Path, metavar="DIR", help="the questions; default: benches")
    report.set_defaults(run=_report)
    return top


def _report(options: argparse.Namespace) -> int:
    from mlexp.analysis.report import run

    return run(options.paths, options.out, options.benches)
