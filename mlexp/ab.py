"""`mlexp ab BASE_REF HEAD_REF`: whether the same cells are slower in one git revision than in another.

Each revision has a worktree and a pytest process in which its cells stay warm (`mlexp/harness/stepping.py`); the two
take turns, so that only one of them ever runs, in blocks of four steps: ABBA or BAAB, by the toss of a coin. A step
is as many rounds of the cell's own timed callable as last `STEP_S`, and counts by their median, as `wall_s` does: a
round that was interrupted does not matter. A block's outcome is the log of head over base.

Why the coin: were the revisions alike, to swap their names within a block would turn the sign of its outcome and change
nothing else; so each sign is a fair coin, whatever the machine does meanwhile: bursts, drifts and outliers, correlated
as they like. Of a head that is slower by a factor, the same holds of the outcome less the log of that factor. That is
all that `stats.median_sequence` asks for, whose interval is valid at every look: the duel ends as soon as it lies
within the margin, or beyond it, and this does not raise the rate of false alarms. Several cells share the 5 %.

What no interleaving can see is what two processes of the same code differ in all along, such as the layout of their
memory: up to some per cent. Hence the margin; and hence a difference counts only if a second pair of processes has it.
"""

import contextlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

import mlexp
from mlexp import journal
from mlexp.analysis import gate, stats
from mlexp.analysis.gate import Refused, Verdict
from mlexp.harness.peer import Peer
from mlexp.record import CONTEXT

STEPPING = Path(mlexp.__file__).parent / "harness" / "stepping.py"  # run, never imported
SIDES = ("base", "head")  # of one length: the layout of a process's memory follows its paths
STEP_S, MOST_ROUNDS = 0.02, 100_000
REFUSED_ARGS = (
    *("--resume", "--isolate", "--benchmark-disable", "--benchmark-skip", "--collect-only", "--co", "-n", "-x"),
)
SAME_WORK = (*CONTEXT, "prompts_hash", "corpus_hash", "weights_hash")
HEADS = ("", "verdict", "cell", "head / base", "interval", "blocks", "base s", "head s", "why")


@dataclass
class Duel:
    """A cell in both revisions: `ratio` is head over base, the median over blocks, with its always-valid interval.

    `base_s`, `head_s`: seconds a round, the median of each step, in the order in which they were run; `base_mean_s`,
    `head_mean_s`: the means. `status`: the exit status that this cell alone would come to.
    """

    cell: str
    verdict: Verdict = Verdict.AMBIGUOUS
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    blocks: int = 0
    rounds: int = 0
    why: str = ""
    status: int = gate.OK
    base_s: list[float] = field(default_factory=list)
    head_s: list[float] = field(default_factory=list)
    base_mean_s: list[float] = field(default_factory=list)
    head_mean_s: list[float] = field(default_factory=list)


def run(base: str, head: str, args: Sequence[str], budget: float = 60, margin: float = 0.03, form: str = "text") -> int:
    """`mlexp ab`: prints the verdicts as `form` (text, markdown or json) and returns the exit status."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktrees go
    try:
        duels = revisions(base, head, args, budget, margin, tell=lambda line: gate.warn("ab", line))
    except Refused as error:
        gate.warn("ab", str(error))
        return error.status
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    status = exit_status(duels)
    print({"text": text, "markdown": markdown, "json": as_json}[form](duels, status))
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
    tell=lambda line: None,
) -> list[Duel]:
    """A duel for every cell that `args` select, in the repository at `where` (default: here).

    `budget` seconds a cell at most; what differs by less than `margin` is the same. Raises Refused.
    """
    check(args, budget, margin)
    terms = Terms(budget, margin, confidence, random.Random(seed))
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlexp-ab-")))
        folders = stack.enter_context(checkouts((base, head), (where or Path.cwd()).resolve(), scratch))
        if not args:
            raise Refused(gate.UNREADABLE, "which cells? give pytest's arguments after --, such as -- benches/harness")
        duels = bout(folders, args, scratch, terms, tell)
        unlike = [found for found in duels if found.blocks and found.verdict in (Verdict.WORSE, Verdict.BETTER)]
        if unlike:
            cells = [found.cell for found in unlike]
            again = {found.cell: found for found in bout(folders, args, scratch, terms, tell, cells)}
            for found in unlike:
                confirm(found, again[found.cell])
        refuse_other_work(duels, [scratch / f"{name}.jsonl" for name in SIDES])
    return duels


@dataclass
class Terms:
    """How long a duel may last, in seconds; what counts as the same; how sure all verdicts are together; the coin."""

    budget: float
    margin: float
    confidence: float
    coin: random.Random


def bout(folders: Sequence[Path], args, scratch: Path, terms: Terms, tell, only: Sequence[str] = ()) -> list[Duel]:
    """A duel for every cell (of `only`, where given) in one pair of processes."""
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(Side(name, f, args, scratch)) for name, f in zip(SIDES, folders, strict=True)]
        collected = [side.hear()["collected"] for side in sides]
        common = [cell for cell in collected[0] if cell in set(collected[1])]
        for side in sides:
            side.say(run=[cell for cell in common if not only or cell in only])
        for side in (side for side, cells in zip(sides, collected, strict=True) if not cells):
            side.hear()  # nothing collected: its pytest ends, and its output says why
        duels = []
        for cell in only or collected[0]:
            if cell not in common:
                duels.append(Duel(cell, Verdict.WORSE, why="not in the head", status=gate.INCOMPLETE))
                continue
            duels.append(duel(cell, sides, terms, 1 - (1 - terms.confidence) / len(common)))
            tell(" ".join(filter(None, _row_texts(duels[-1])[1:5])))
    return duels


def confirm(found: Duel, again: Duel) -> None:
    """What one pair of processes says and another does not is AMBIGUOUS; the interval is that of both."""
    if again.blocks:
        found.ratio = math.sqrt(found.ratio * again.ratio)
        found.low, found.high = min(found.low, again.low), max(found.high, again.high)
    found.blocks += again.blocks
    for name in ("base_s", "head_s", "base_mean_s", "head_mean_s"):
        getattr(found, name).extend(getattr(again, name))
    if again.verdict != found.verdict:
        found.why = f"{found.verdict} in one pair of processes, {again.verdict} in another"
        found.verdict, found.status = Verdict.AMBIGUOUS, gate.OK


def check(args: Sequence[str], budget: float, margin: float) -> None:
    """Raises Refused for what cannot be stepped through."""
    for arg in args:
        if arg.split("=")[0] in REFUSED_ARGS:
            raise Refused(gate.UNREADABLE, f"{arg}: ab runs each cell itself, side by side; drop it")
    if not (budget > 0 and 0 < margin < 1):
        raise Refused(
            gate.UNREADABLE,
            f"budget {budget} s, margin {100 * margin:g} %: give a positive budget and a margin of 0 to 100",
        )


def exit_status(duels: Sequence[Duel]) -> int:
    """Regression, then not comparable, then not everything compared."""
    found = {duel.status for duel in duels}
    worst = [status for status in (gate.REGRESSION, gate.INCOMPARABLE, gate.INCOMPLETE) if status in found]
    return worst[0] if worst else gate.OK if any(duel.blocks for duel in duels) else gate.INCOMPLETE


class Side:
    """One revision's pytest process."""

    def __init__(self, name: str, folder: Path, args: Sequence[str], scratch: Path):
        self.name = name
        self._peer = Peer(["-P", STEPPING], folder, environment(folder))
        self._peer.say(journal=str(scratch / f"{name}.jsonl"), args=list(args))

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_) -> None:
        self._peer.close()

    def say(self, **message) -> None:
        self._peer.say(**message)

    def hear(self) -> dict:
        message = self._peer.hear()
        if "died" in message:
            ended = message["died"].removeprefix("its process ")
            output = self._peer.tail().strip()
            raise Refused(gate.INCOMPLETE, f"the {self.name}'s pytest {ended}; its output ends:\n{output}")
        return message

    def step(self, rounds: int) -> list[float]:
        """Run so many rounds: their seconds."""
        self.say(rounds=rounds)
        return self.hear()["seconds"]

    def pin(self, cpus: set[int]) -> None:
        with contextlib.suppress(OSError, AttributeError):  # not Linux, or not ours to say
            os.sched_setaffinity(self._peer.pid, cpus)


def environment(folder: Path) -> dict[str, str]:
    """The side's own modules first; this mlexp last, for a project that does not bring it."""
    top = git(folder, "rev-parse", "--show-toplevel")
    paths = [top, f"{top}/src", os.environ.get("PYTHONPATH"), str(Path(mlexp.__file__).parents[1])]
    return {"PYTHONHASHSEED": "0"} | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def duel(cell: str, sides: Sequence[Side], terms: Terms, confidence: float) -> Duel:
    """Let both sides run `cell` in turns until the outcome is clear or the budget spent."""
    found, heard = Duel(cell), [side.hear() for side in sides]
    ready = ["ready" in message for message in heard]
    if all(ready):
        single = all(message["threads"] == 1 for message in heard)
        with pinning(sides, terms.coin, single) as place:
            fight(found, sides, terms, confidence, place)
    for side in (side for side, is_ready in zip(sides, ready, strict=True) if is_ready):
        side.say(stop=True)
    ends = [side.hear() if is_ready else message for side, message, is_ready in zip(sides, heard, ready, strict=True)]
    return judge_ends(found, ends)


def fight(found: Duel, sides: Sequence[Side], terms: Terms, confidence: float, place: Callable) -> None:
    """Block after block; `place` puts both sides where the next one is run."""
    until = time.perf_counter() + terms.budget
    warm = [side.step(1)[0] for side in (*sides, *sides)][2:]
    found.rounds = max(1, min(MOST_ROUNDS, math.ceil(STEP_S / max(min(warm), 1e-9))))
    medians, means, outcomes = (found.base_s, found.head_s), (found.base_mean_s, found.head_mean_s), []
    while found.verdict == Verdict.AMBIGUOUS and (not outcomes or time.perf_counter() < until):
        place()
        first = terms.coin.randrange(2)
        for side in (first, 1 - first, 1 - first, first):
            seconds = sides[side].step(found.rounds)
            medians[side].append(max(statistics.median(seconds), 1e-12))
            means[side].append(statistics.fmean(seconds))
        outcomes.append(float(np.log(found.head_s[-2:]).mean() - np.log(found.base_s[-2:]).mean()))
        interval = stats.median_sequence(outcomes, confidence)
        found.ratio, found.low, found.high = (math.exp(value) for value in interval[:3])
        found.verdict = judge(found.low, found.high, terms.margin)
    found.blocks = len(outcomes)
    found.status = gate.REGRESSION if found.verdict == Verdict.WORSE else gate.OK
    if found.verdict == Verdict.AMBIGUOUS:
        found.why = "the budget was spent before it was clear"
    if not math.isfinite(found.high):
        found.status, found.why = gate.INCOMPLETE, "the budget was spent before there was an interval; give more"


def judge(low: float, high: float, margin: float) -> Verdict:
    """The verdict of an interval of head over base."""
    if low > 1 + margin:
        return Verdict.WORSE
    if high < 1 / (1 + margin):
        return Verdict.BETTER
    return Verdict.SAME if low >= 1 / (1 + margin) and high <= 1 + margin else Verdict.AMBIGUOUS


@contextlib.contextmanager
def pinning(sides: Sequence[Side], coin: random.Random, single: bool) -> Iterator:
    """What puts both sides on one CPU, another one each block: two CPUs of a shared machine are not equally busy.

    Processes of several threads stay free.
    """
    everywhere = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

    def place():
        if single and everywhere:
            cpu = coin.choice(sorted(everywhere))
            for side in sides:
                side.pin({cpu})

    yield place
    for side in sides if single and everywhere else ():
        side.pin(everywhere)


def judge_ends(found: Duel, ends: Sequence[dict]) -> Duel:
    """A cell that did not pass on both sides has no verdict on its time; one that passed in the base alone is WORSE."""
    base, head = (end["status"] for end in ends)
    if base == head == "passed":
        if not found.blocks:
            found.why, found.verdict = "times nothing", Verdict.SAME
        return found
    lost = base == "passed" or (base, head) == ("skipped", "failed")
    found.verdict = Verdict.WORSE if lost else Verdict.AMBIGUOUS
    found.status = gate.REGRESSION if lost else gate.OK if base == head == "skipped" else gate.INCOMPLETE
    found.why = f"{base} in the base, {head} in the head: {ends[1]['reason'] or ends[0]['reason']}"
    return found


def refuse_other_work(duels: Sequence[Duel], journals: Sequence[Path]) -> None:
    """Cells of mlexp say what they did: two settings or two inputs are not the same work, whatever the clock says."""
    base, head = ({e.cell: e.record for e in journal.read(path).entries} if path.exists() else {} for path in journals)
    for found in duels:
        one, other = base.get(found.cell, {}), head.get(found.cell, {})
        for name in SAME_WORK if one and other and found.blocks else ():
            if one.get(name) != other.get(name):
                found.verdict, found.status = Verdict.AMBIGUOUS, gate.INCOMPARABLE
                found.why = f"not comparable: {name} is {gate.differing(one.get(name), other.get(name))}"
                break


@contextlib.contextmanager
def checkouts(refs: Sequence[str], here: Path, scratch: Path) -> Iterator[list[Path]]:
    """The folder that `here` is in each revision: in a worktree that is gone afterwards, or (`.`) where it stands."""
    if not here.is_dir():
        raise Refused(gate.UNREADABLE, f"{here}: no such folder")
    top = Path(git(here, "rev-parse", "--show-toplevel")).resolve()
    commits = [None if ref == "." else commit_of(ref, top) for ref in refs]
    roots = [scratch / name if commit else top for name, commit in zip(SIDES, commits, strict=True)]
    try:
        for root, commit, ref in zip(roots, commits, refs, strict=True):
            if commit:
                git(top, "worktree", "add", "--quiet", "--detach", str(root), commit)
            if not (root / here.relative_to(top)).is_dir():
                raise Refused(gate.UNREADABLE, f"{ref} has no folder {here.relative_to(top)}")
        yield [root / here.relative_to(top) for root in roots]
    finally:
        for root in (root for root in roots if root != top and root.exists()):
            git(top, "worktree", "remove", "--force", "--force", str(root))


def commit_of(ref: str, top: Path) -> str:
    """The commit that a revision names. Raises Refused."""
    try:
        return git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    except Refused:
        told = f"unknown revision {ref!r} in {top}; give a commit, a branch, a tag, or . for the working tree"
        raise Refused(gate.UNREADABLE, told) from None


def git(where: Path, *words: str) -> str:
    """What git says. Raises Refused with the last line of its complaint."""
    try:
        done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Refused(gate.UNREADABLE, f"git: {error.strerror}") from None
    if done.returncode:
        raise Refused(gate.UNREADABLE, f"git {words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.strip()


def headline(duels: Sequence[Duel], status: int) -> str:
    counts = ", ".join(f"{sum(d.verdict == verdict for d in duels)} {verdict}" for verdict in Verdict)
    return f"{gate.STATUS_WORDS[status]}: {len(duels)} cells; {counts}"


def text(duels: Sequence[Duel], status: int) -> str:
    """For a terminal, the headline last."""
    return f"{gate.text_table(HEADS, map(_row_texts, _worst_first(duels)))}\n{headline(duels, status)}"


def markdown(duels: Sequence[Duel], status: int) -> str:
    """For a pull-request comment."""
    rows = [[*row[:2], f"`{row[2]}`", *row[3:]] for row in map(_row_texts, _worst_first(duels))]
    return (
        f"### {gate.MARK[status == gate.OK]} mlexp ab: {headline(duels, status)}\n\n{gate.markdown_table(HEADS, rows)}"
    )


def as_json(duels: Sequence[Duel], status: int) -> str:
    """Everything, the steps too; what is infinite or unknown is null."""
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(found).items()}
        for found in _worst_first(duels)
    ]
    return json.dumps({"status": status, "headline": headline(duels, status), "rows": rows}, allow_nan=False)


def _worst_first(duels: Sequence[Duel]) -> list[Duel]:
    return sorted(duels, key=lambda d: (d.status != gate.REGRESSION, list(Verdict).index(d.verdict), -(d.ratio or 0)))


def _row_texts(found: Duel) -> list[str]:
    fail = "FAIL" if found.status in (gate.REGRESSION, gate.INCOMPLETE, gate.INCOMPARABLE) else ""
    numbers = ["", "", "", "", ""]
    if found.blocks:
        medians = [f"{float(np.median(side)):.4g}" for side in (found.base_s, found.head_s)]
        interval = f"{found.low:.3f} to {found.high:.3f}" if math.isfinite(found.high) else "none yet"
        numbers = [f"{found.ratio:.3f}", interval, str(found.blocks), *medians]
    return [fail, found.verdict, gate.short(found.cell), *numbers, found.why]
