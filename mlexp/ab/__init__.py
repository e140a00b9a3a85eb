"""`mlexp ab BASE_REF HEAD_REF`: whether the same cells are slower in one git revision than in another.

Each revision has a worktree and a pytest process in which its cells stay warm (`mlexp/harness/stepping.py`); the two
take turns, so that only one of them ever runs, in blocks of four steps: ABBA or BAAB, by the toss of a coin. A step
is as many rounds of the cell's own timed callable as last `STEP_S`, and counts by their median, as `wall_s` does: a
round that was interrupted does not matter. A block's outcome is the log of head over base.

Why the coin: were the revisions alike, to swap their names within a block would turn the sign of its outcome and change
nothing else; so each sign is a fair coin, whatever the machine does meanwhile: bursts, drifts and outliers, correlated
as they like. Of a head that is slower by a factor, the same holds of the outcome less the log of that factor. That is
all that `stats.median_sequence` needs, whose interval is valid at every look: a comparison ends as soon as it
lies within the margin, or beyond it, and this does not raise the rate of false alarms. Several cells share the 5 %.

What no interleaving can see is what two processes of the same code differ in all along, such as the layout of their
memory: up to some per cent. Hence the margin; and hence a difference counts only if a second pair of processes has it.
"""

import contextlib
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mlexp.analysis import gate
from mlexp.analysis.gate import Refused, Verdict

from .blocks import Terms, run_pair
from .checkouts import SIDES, checkouts
from .comparison import Comparison, exit_status, refuse_other_work, replicate
from .text import as_json, markdown, text

__all__ = ["Comparison", "Terms", "revisions", "run"]

REFUSED_ARGS = (
    *("--resume", "--isolate", "--benchmark-disable", "--benchmark-skip", "--collect-only", "--co", "-n", "-x"),
)


def run(base: str, head: str, args: Sequence[str], budget: float = 60, margin: float = 0.03, form: str = "text") -> int:
    """`mlexp ab`: prints the verdicts as `form` (text, markdown or json) and returns the exit status."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktrees go
    try:
        comparisons = revisions(base, head, args, budget, margin, report=lambda line: gate.warn("ab", line))
    except Refused as error:
        gate.warn("ab", str(error))
        return error.status
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    status = exit_status(comparisons)
    print({"text": text, "markdown": markdown, "json": as_json}[form](comparisons, status))
    return status


def revisions(
    base: str,
    head: str,
    args: Sequence[str],
    budget: float = 60,
    margin: float = 0.03,
    confidence: float = 0.95,
    where: Path | None = None,
    seed: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Comparison]:
    """Compare every cell that `args` select, in the repository at `where` (default: here).

    `budget` seconds a cell at most; what differs by less than `margin` is the same. Raises Refused.
    """
    check_arguments(args, budget, margin)
    terms = Terms(budget, margin, confidence, random.Random(seed))
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlexp-ab-")))
        folders = stack.enter_context(checkouts((base, head), (where or Path.cwd()).resolve(), scratch))
        if not args:
            raise Refused(gate.UNREADABLE, "which cells? give pytest's arguments after --, such as -- benches/harness")
        comparisons = run_pair(folders, args, scratch, terms, report)
        unlike = [found for found in comparisons if found.blocks and found.verdict in (Verdict.WORSE, Verdict.BETTER)]
        if unlike:
            cells = [found.cell for found in unlike]
            again = {found.cell: found for found in run_pair(folders, args, scratch, terms, report, cells)}
            for found in unlike:
                replicate(found, again[found.cell])
        refuse_other_work(comparisons, [scratch / f"{name}.jsonl" for name in SIDES])
    return comparisons


def check_arguments(args: Sequence[str], budget: float, margin: float) -> None:
    """Raises Refused for what cannot be stepped through."""
    for arg in args:
        if arg.split("=")[0] in REFUSED_ARGS:
            raise Refused(gate.UNREADABLE, f"{arg}: ab runs each cell itself, side by side; drop it")
    if not (budget > 0 and 0 < margin < 1):
        raise Refused(
            gate.UNREADABLE,
            f"budget {budget} s, margin {100 * margin:g} %: give a positive budget and a margin of 0 to 100",
        )
