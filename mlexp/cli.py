"""The `mlexp` command."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlexp import __version__
from mlexp.commands import ini, init, listing, new, show

STATUSES = "exit status: 0 ok; 1 regression; 2 nothing or not everything compared; 3 not comparable; 4 unreadable input"
BROKEN_PIPE = 128 + 13  # as of a program that SIGPIPE ended
Number = TypeVar("Number", int, float)

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show "·" gets an escape, not a traceback
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else list(argv)
    cut = words.index("--") if words[:1] in (["ab"], ["sweep"]) and "--" in words else len(words)
    options = parser().parse_args(words[:cut])
    if words[cut + 1 :]:  # argparse would take them for its own where an option stands before the "--"
        options.pytest_args += words[cut + 1 :]
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported before a command runs."""
    top = argparse.ArgumentParser(
        prog="mlexp", description="Begins questions, shows them, and reads what `pytest benches` measured."
    )
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
    report.add_argument(
        "--figures",
        choices=("svg", "png", "pdf"),
        default="svg",
        help="png, pdf (fonts embedded): in this format too; as SVG always",
    )
    report.add_argument(
        "--fresh", action="store_true", help="make everything anew; else questions of which nothing changed are kept"
    )
    report.set_defaults(run=_report)
    _add_export(commands)
    _add_compare(commands)
    _add_ab(commands)
    _add_sweep(commands)
    for command in (init, new, listing, show):
        command.add(commands)
    return top


def _add_export(commands: "Commands") -> None:
    export = commands.add_parser(
        "export",
        help="records as CSV, Parquet or JSON lines, results as a LaTeX table",
        description="Every record in PATH, a row a record, at full precision; as LaTeX the results of each arm. "
        "Nothing is written where anything is wrong.",
        epilog="exit status: 0 written; 2 no records; 4 unreadable input, an unknown column or ending, no pyarrow",
    )
    add = export.add_argument
    add("paths", nargs="*", type=Path, metavar="PATH", help="default: .mlexp/journal.jsonl and results/raw")
    add("--to", type=Path, required=True, metavar="FILE", help=".csv, .csv.gz, .jsonl, .jsonl.gz, .parquet or .tex")
    add("--question", metavar="NAME", help="of this question alone")
    add("--columns", metavar="NAME[,NAME]", help="these alone, in this order; of a summary: its metrics")
    add(
        "--table",
        choices=("records", "summary"),
        help="a row a record, or a row a level, arm and metric: its mean with its interval, of the outcome, the costs "
        "and (but for .tex) the question's own metrics; default: summary for .tex, else records",
    )
    add("--benches", type=Path, metavar="DIR", help="the questions, which say what a summary needs; default: benches")
    export.set_defaults(run=_export)


def _add_compare(commands: "Commands") -> None:
    compare = commands.add_parser(
        "compare",
        help="what got worse between two sets of records",
        description="Every metric of every cell in HEAD against BASE: benchmark JSON, journals or folders of either, "
        "gzipped or not. A limit is judged on the estimate. Without one, quality fails where a test over its seeds "
        "finds it worse (unchanged code fails in 5 % of comparisons at most), and is not decided (2) where a single "
        "seed got worse by more than the tolerance.",
        epilog=STATUSES,
    )
    compare.add_argument("base", type=Path, metavar="BASE")
    compare.add_argument("head", type=Path, metavar="HEAD")
    compare.add_argument("--gate", type=Path, metavar="FILE", help="limits by metric, question and cell (TOML)")
    compare.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="METRIC:LIMIT",
        help="such as peak_bytes:+5%% or accuracy:-0.03",
    )
    for better in ("lower", "higher"):
        compare.add_argument(
            f"--{better}",
            action="append",
            default=[],
            metavar="NAME[,NAME]",
            help=f"metrics without a direction of which {better} is better",
        )
    compare.add_argument(
        "--cross-machine", action="store_true", help="compare records of two machines, in everything but time"
    )
    _add_forms(compare)
    compare.set_defaults(run=_compare)


def _add_ab(commands: "Commands") -> None:
    ab = commands.add_parser(
        "ab",
        usage="mlexp ab [options] BASE_REF HEAD_REF -- PYTEST_ARGS",
        help="whether one git revision is slower than another",
        description="Runs the same cells of two git revisions side by side, in interleaved rounds, until it is clear "
        "which is faster. `.` is the working tree as it is.",
        epilog=STATUSES,
    )
    ab.add_argument("base", metavar="BASE_REF")
    ab.add_argument("head", metavar="HEAD_REF")
    ab.add_argument("pytest_args", nargs="*", metavar="PYTEST_ARGS", help="which cells, as pytest has it")
    ab.add_argument(
        "--budget", type=float, default=60, metavar="S", help="seconds a cell at most (default: %(default)s)"
    )
    ab.add_argument(
        "--margin",
        type=float,
        default=3,
        metavar="PERCENT",
        help="what is the SAME differs by less (default: %(default)s)",
    )
    _add_forms(ab)
    ab.set_defaults(run=_ab)


def _add_sweep(commands: "Commands") -> None:
    sweep = commands.add_parser(
        "sweep",
        usage="mlexp sweep [options] -- PYTEST_ARGS",
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
    add("pytest_args", nargs="*", metavar="PYTEST_ARGS", help="which cells, as pytest has it")
    sweep.set_defaults(run=_sweep)


def _at_least(kind: type[Number], least: int) -> Callable[[str], Number]:
    """A number of that kind from `least` on, as argparse wants it."""

    def number(text: str) -> Number:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: expected {least} or more")
        return value

    number.__name__ = kind.__name__
    return number


def _add_forms(command: argparse.ArgumentParser) -> None:
    forms = command.add_mutually_exclusive_group()
    for form, told in (("markdown", "a pull-request comment"), ("json", "everything, for programs")):
        forms.add_argument(f"--{form}", dest="form", action="store_const", const=form, default="text", help=told)


def _let_benches_import() -> None:
    """Let bench files, which declare what is reported, import the project's modules as under pytest."""
    sys.path += [folder for folder in ini.import_paths(Path()) if folder not in sys.path]


def _report(options: argparse.Namespace) -> int:
    from mlexp.analysis.report import run

    _let_benches_import()
    return run(options.paths, options.out, options.benches, options.figures, options.fresh)


def _export(options: argparse.Namespace) -> int:
    from mlexp.analysis.export import run

    _let_benches_import()
    return run(options.paths, options.to, options.question, options.columns, options.table, options.benches)


def _compare(options: argparse.Namespace) -> int:
    from mlexp.analysis.compare import run

    files, directions = (options.base, options.head, options.gate), (options.lower, options.higher)
    return run(*files, options.fail_if, options.form, options.cross_machine, *directions)


def _ab(options: argparse.Namespace) -> int:
    from mlexp.ab import run

    return run(options.base, options.head, options.pytest_args, options.budget, options.margin / 100, options.form)


def _sweep(options: argparse.Namespace) -> int:
    from mlexp.harness import sweep

    share = sweep.Share(
        options.address, options.gpus_per_cell, options.cpus_per_cell, options.share_cores, options.retries
    )
    return sweep.run(share, options.pytest_args)
