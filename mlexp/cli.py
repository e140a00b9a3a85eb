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
    sweep = commands.add_parser(
        "sweep",
        help="the cells of a pytest call on a Ray cluster",
        description="Runs the cells of a pytest call on a Ray cluster, each with cores (and GPUs) of its own, and "
        "journals them here as they arrive; table, JSON and exit status are those of the same call of pytest.",
        epilog="exit status: pytest's; 4 also where there is no Ray or no room for a cell",
    )
    add = sweep.add_argument
    add("--address", metavar="A", help="of a Ray cluster, or auto; default: one of this machine alone")
    add("--gpus-per-cell", type=_at_least(float, 0), metavar="X", help="default: 1 on CUDA; 0.5 lets two share a GPU")
    add("--cpus-per-cell", type=_at_least(int, 1), metavar="N", help="default: the threads that a run here would have")
    add("--share-cores", action="store_true", help="pin no cell to cores of its own")
    add("--retries", type=_at_least(int, 0), default=2, metavar="N", help="times that a cell may lose its worker (2)")
    add("pytest_args", nargs="*", metavar="-- PYTEST_ARGS", help="as pytest has them")
    sweep.set_defaults(run=_sweep)
    return top


def _at_least(kind: type, least: int):
    """A number of that kind from `least` on, as argparse wants it."""

    def number(text: str):
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: expected {least} or more")
        return value

    number.__name__ = kind.__name__
    return number


def _sweep(options: argparse.Namespace) -> int:
    from mlexp.harness import sweep

    share = sweep.Share(
        options.address, options.gpus_per_cell, options.cpus_per_cell, options.share_cores, options.retries
    )
    return sweep.run(share, options.pytest_args)


def _report(options: argparse.Namespace) -> int:
    from mlexp.analysis.report import run

    return run(options.paths, options.out, options.benches)
