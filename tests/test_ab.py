"""`mlexp ab`: comparisons on simulated machines, and whole comparisons of a small repository."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp import ab
from mlexp.ab import Comparison, Terms, blocks, comparison
from mlexp.ab.blocks import run_blocks
from mlexp.ab.checkouts import SIDES
from mlexp.ab.comparison import SAME_WORK
from mlexp.analysis import gate
from mlexp.analysis.gate import Verdict
from mlexp.cli import main
from mlexp.journal import Entry, Journal
from mlexp.record import CONTEXT

CELLS = '''
"""Cells of plain pytest-benchmark."""
import os, time
import pytest

PAUSE = {pause}

@pytest.mark.parametrize("kind", {kinds})
def test_it(benchmark, kind):
    pause = PAUSE if kind == "slower" else 0.004
    value = benchmark.pedantic(time.sleep, args=(pause,), rounds=2)
    assert value is None
    if kind == "fails":
        assert PAUSE == 0.004, "too slow"
    if kind == "skipped":
        pytest.skip("not today")

def test_called(benchmark):
    assert benchmark(lambda x: x + sum(range(300)), 1) == 44851

def test_times_nothing():
    pass
'''
QUESTION = '''
"""A question of mlexp."""
import time
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    arms: tuple[str, ...] = ("base", "ours")
    size: int = {size}

SETTINGS = {{"smoke": Settings(), "quick": Settings(), "full": Settings()}}
AXES = {{"arm": "arms"}}

def test_toy(cell, arm):
    cell.time(lambda: time.sleep(0.004), rounds=2, warmup=False)
'''
INI = "[pytest]\naddopts = -p no:hypothesispytest -p no:anyio -p no:jaxtyping\npython_files = test_*.py bench_*.py\n"


def git(where, *words):
    own = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run([*own, *words], cwd=where, check=True, capture_output=True, text=True).stdout


def commit(where, tag, kinds=("like", "slower", "fails", "skipped"), pause=0.004, size=3):
    (where / "pytest.ini").write_text(INI)
    (where / ".gitignore").write_text("__pycache__\n.mlexp\n")
    (where / "test_cells.py").write_text(CELLS.format(kinds=list(kinds), pause=pause))
    (where / "benches" / "toy").mkdir(parents=True, exist_ok=True)
    (where / "benches" / "toy" / "bench_toy.py").write_text(QUESTION.format(size=size))
    git(where, "add", "-A")
    git(where, "commit", "-q", "-m", tag)
    git(where, "tag", tag)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    where = tmp_path_factory.mktemp("repository")
    git(where, "init", "-q")
    commit(where, "base", kinds=("like", "slower", "fails", "skipped", "gone"))
    commit(where, "head", pause=0.008, size=4)
    return where


@pytest.fixture
def within(repository, monkeypatch):
    monkeypatch.chdir(repository)
    yield repository
    assert len(git(repository, "worktree", "list").splitlines()) == 1, "a worktree was left behind"
    assert git(repository, "status", "--porcelain") == "", "the working tree was touched"


def test_every_cell_gets_its_verdict(within, capsys):
    assert main(["ab", "base", "head", "--budget", "20", "--margin", "20", "--json", "--", "test_cells.py"]) == 1
    out, err = capsys.readouterr()
    data = json.loads(out)
    found = {row["cell"].rpartition("::")[2]: row for row in data["rows"]}
    verdicts = {cell: row["verdict"] for cell, row in found.items()}
    assert verdicts.pop("test_called") in ("SAME", "AMBIGUOUS")  # microseconds, on a machine of others
    assert verdicts.pop("test_it[like]") in ("SAME", "AMBIGUOUS")
    assert verdicts == {
        "test_it[slower]": "WORSE",
        "test_it[fails]": "WORSE",
        "test_it[gone]": "WORSE",
        "test_it[skipped]": "AMBIGUOUS",
        "test_times_nothing": "SAME",
    }
    slower = found["test_it[slower]"]
    assert 1.2 < slower["low"] < slower["ratio"] < slower["high"]
    assert slower["blocks"] >= 16  # two pairs of processes, eight blocks each at least
    assert len(slower["base_s"]) == 2 * slower["blocks"]
    assert min(slower["base_s"]) >= 0.004 and min(slower["head_s"]) >= 0.008
    assert "too slow" in found["test_it[fails]"]["why"] and "passed in the base" in found["test_it[fails]"]["why"]
    assert found["test_it[gone]"]["why"] == "not in the head"
    assert found["test_called"]["rounds"] > 100 and found["test_it[like]"]["rounds"] <= 5
    assert "test_it[slower]" in err


def test_the_working_tree_is_a_revision_and_other_settings_are_other_work(within, capsys):
    args = ["--budget", "20", "--margin", "50", "--", "benches", "-k", "ours"]
    assert main(["ab", "head", ".", *args]) == gate.OK
    assert "ok: 1 cells; 0 WORSE, 0 AMBIGUOUS, 0 BETTER, 1 SAME" in capsys.readouterr().out
    assert main(["ab", "base", "head", *args]) == gate.INCOMPARABLE
    assert "settings is {'size': 3} in the base and {'size': 4} in the head" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["base", "nothing"], "unknown revision 'nothing'"),
        (["--", "--upload-pack=x", "head"], "unknown revision '--upload-pack=x'"),
        (["base", "head", "--", "--resume"], "--resume: ab runs each cell itself"),
        (["base", "head", "--budget", "0"], "give a positive budget"),
        (["base", "head", "--margin", "100"], "margin 100 %"),
        (["base", "head"], "which cells?"),
    ],
)
def test_wrong_arguments_are_one_line(within, capsys, argv, message):
    if argv[0] == "--":  # argparse would not have it
        assert ab.run(*argv[1:], args=[]) == gate.UNREADABLE
    else:
        assert main(["ab", *argv]) == gate.UNREADABLE
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_outside_of_git_and_in_a_folder_that_one_revision_lacks(within, tmp_path, monkeypatch, capsys):
    (within / "new").mkdir(exist_ok=True)
    monkeypatch.chdir(within / "new")
    assert main(["ab", "base", "."]) == gate.UNREADABLE
    assert "base has no folder new" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert main(["ab", "base", "head"]) == gate.UNREADABLE
    assert "not a git repository" in capsys.readouterr().err


def test_a_side_that_cannot_collect_is_told_with_its_output(within, capsys):
    assert main(["ab", "base", "head", "--", "no_such_file.py"]) == gate.INCOMPLETE
    assert "no_such_file.py" in capsys.readouterr().err


def test_sigterm_leaves_no_worktree(within):
    argv = [sys.executable, "-m", "mlexp", "ab", "base", "head", "--budget", "60", "--margin", "0.01", "--"]
    running = subprocess.Popen([*argv, "test_cells.py", "-k", "like"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while len(git(within, "worktree", "list").splitlines()) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 143


class Machine:
    """Two sides on a machine whose speed comes in bursts, with outliers: what stands in the way of each step."""

    def __init__(self, seed, factor=1.0, burst=0.3, jitter=0.05):
        self.rng, self.slow, self.burst, self.jitter = np.random.default_rng(seed), 0.0, burst, jitter
        self.sides = [self.Side(self, 1.0), self.Side(self, factor)]

    def seconds(self):
        self.slow = 0.9 * self.slow + self.burst * abs(float(self.rng.standard_cauchy())) * (self.rng.random() < 0.1)
        return math.exp(min(self.slow, 5.0) + self.jitter * self.rng.standard_normal())

    class Side:
        def __init__(self, machine, factor):
            self.machine, self.factor = machine, factor

        def step(self, rounds):
            return [self.factor * self.machine.seconds() for _ in range(rounds)]


def compared(machine, budget=0.15, margin=0.03, seed=0):
    found = Comparison("cell")
    run_blocks(found, machine.sides, Terms(budget, margin, 0.95, random.Random(seed)), 0.95, lambda: None)
    return found


def test_identical_sides_are_not_told_apart_on_a_bad_machine_and_ten_percent_are():
    like = [compared(Machine(seed), seed=seed) for seed in range(40)]
    assert sum(found.verdict == Verdict.WORSE for found in like) <= 2
    assert sum(np.mean(found.head_mean_s) > 1.05 * np.mean(found.base_mean_s) for found in like) >= 5  # mean:5%
    slower = [compared(Machine(seed, factor=1.1), budget=20, seed=seed).verdict for seed in range(10)]
    assert slower.count(Verdict.WORSE) >= 9
    faster = [compared(Machine(seed, factor=1 / 1.1), budget=20, seed=seed).verdict for seed in range(10)]
    assert faster.count(Verdict.BETTER) >= 9


def test_too_small_a_budget_for_an_interval_is_no_comparison():
    found = compared(Machine(0), budget=1e-9)
    assert (found.verdict, found.blocks, found.status) == (Verdict.AMBIGUOUS, 1, gate.INCOMPLETE)


def test_a_quiet_machine_is_told_to_be_the_same_at_once():
    found = compared(Machine(0, burst=0, jitter=0.001), budget=30)
    assert (found.verdict, found.blocks) == (Verdict.SAME, 8)  # the fewest of which an interval is finite
    assert found.low < 1 < found.high or abs(found.ratio - 1) < 0.002


def test_without_the_coin_a_machine_in_step_with_the_blocks_deceives():
    """Bursts every fourth step hit the same side: ABBA alone calls them a difference, with the coin they are none."""

    class InStep(Machine):
        count = 0

        def seconds(self):
            self.count += 1
            return 1.3 if self.count > 4 and self.count % 4 == 1 else 1.0

    heads = random.Random(0)
    heads.randrange = lambda n: 0
    deceived, honest = Comparison("cell"), []
    run_blocks(deceived, InStep(0).sides, Terms(20, 0.03, 0.95, heads), 0.95, lambda: None)
    for seed in range(20):
        honest.append(Comparison("cell"))
        run_blocks(honest[-1], InStep(0).sides, Terms(0.05, 0.03, 0.95, random.Random(seed)), 0.95, lambda: None)
    assert deceived.verdict in (Verdict.BETTER, Verdict.WORSE)
    assert sum(found.verdict in (Verdict.BETTER, Verdict.WORSE) for found in honest) <= 3


@given(st.floats(0.5, 2), st.floats(0, 0.5), st.floats(0.001, 0.4))
def test_a_verdict_says_where_the_whole_interval_lies(middle, width, margin):
    low, high = middle * math.exp(-width), middle * math.exp(width)
    verdict = comparison.verdict_of(low, high, margin)
    assert (verdict == Verdict.WORSE) == (low > 1 + margin)
    assert (verdict == Verdict.BETTER) == (high < 1 / (1 + margin))
    assert verdict != Verdict.SAME or (high <= 1 + margin and low >= 1 / (1 + margin))
    assert comparison.verdict_of(1 / high, 1 / low, margin) == mirrored(verdict) or near_an_edge(low, high, margin)


def mirrored(verdict):
    return {Verdict.WORSE: Verdict.BETTER, Verdict.BETTER: Verdict.WORSE}.get(verdict, verdict)


def near_an_edge(low, high, margin):
    return any(math.isclose(end, edge, rel_tol=1e-12) for end in (low, high) for edge in (1 + margin, 1 / (1 + margin)))


def test_two_pairs_of_processes_that_disagree_are_ambiguous():
    def one(verdict, ratio):
        return Comparison(
            "c", verdict, ratio, ratio - 0.01, ratio + 0.01, blocks=8, status=gate.REGRESSION, base_s=[1.0]
        )

    agreed, torn = one(Verdict.WORSE, 1.2), one(Verdict.WORSE, 1.2)
    comparison.replicate(agreed, one(Verdict.WORSE, 1.1))
    comparison.replicate(torn, one(Verdict.SAME, 1.0))
    assert (agreed.verdict, agreed.status, agreed.blocks) == (Verdict.WORSE, gate.REGRESSION, 16)
    assert (agreed.low, agreed.high) == (pytest.approx(1.09), pytest.approx(1.21))
    assert (torn.verdict, torn.status) == (Verdict.AMBIGUOUS, gate.OK)
    assert "WORSE in one pair of processes, SAME in another" in torn.why


class Scripted:
    """A side whose steps last what a script says; `log` has who ran how many rounds, both sides' in order."""

    def __init__(self, name, log, steps):
        self.name, self.log, self.steps = name, log, steps

    def step(self, rounds):
        self.log.append((self.name, rounds))
        return self.steps(rounds)


def compared_by_script(base, head, seed=0, budget=20.0):
    log, found = [], Comparison("cell")
    sides = [Scripted("base", log, base), Scripted("head", log, head)]
    run_blocks(found, sides, Terms(budget, 0.03, 0.95, random.Random(seed)), 0.95, lambda: None)
    return found, log


def test_blocks_are_abba_or_baab_by_the_coin():
    orders = set()
    for seed in range(6):
        found, log = compared_by_script(lambda n: [0.01] * n, lambda n: [0.01] * n, seed)
        names = [name for name, _ in log[4:]]  # after two warm steps a side
        blocks = {tuple(names[i : i + 4]) for i in range(0, len(names), 4)}
        assert blocks <= {("base", "head", "head", "base"), ("head", "base", "base", "head")}
        assert len(names) == 4 * found.blocks
        orders |= blocks
    assert len(orders) == 2


def test_a_step_counts_by_its_median_and_the_means_stand_beside_it():
    found, _ = compared_by_script(lambda n: [0.01, 0.01, 0.04][:n], lambda n: [0.02, 0.02, 0.08][:n])
    assert found.ratio == pytest.approx(2.0) and found.verdict == Verdict.WORSE
    slow, _ = compared_by_script(lambda n: [0.006, 0.006, 0.006, 0.1][:n], lambda n: [0.006] * n)
    assert slow.rounds == 4 and set(slow.base_s) == {0.006} and slow.base_mean_s[0] == pytest.approx(0.118 / 4)
    assert slow.verdict == Verdict.SAME


def test_rounds_come_from_warm_steps():
    cold = {"base": iter([5.0]), "head": iter([5.0])}

    def steps(name):
        return lambda n: [next(cold[name], 0.001)] * n

    found, log = compared_by_script(steps("base"), steps("head"))
    assert found.rounds == math.ceil(blocks.STEP_S / 0.001)
    assert [rounds for _, rounds in log[:4]] == [1, 1, 1, 1] and log[4][1] == found.rounds


@pytest.mark.parametrize("cells", [1, 4])
def test_cells_share_the_error_budget(monkeypatch, cells):
    """Bonferroni: with 95 % over all, each of four cells is judged at 98.75 %."""
    names, asked = [f"c{i}" for i in range(cells)], []

    side = mock.MagicMock()
    side.__enter__.return_value = side
    side.receive.return_value = {"collected": names}
    monkeypatch.setattr(blocks, "Side", lambda *args: side)
    monkeypatch.setattr(
        blocks, "compare_cell", lambda cell, sides, terms, confidence: asked.append(confidence) or Comparison(cell)
    )
    blocks.run_pair(["a", "b"], [], None, Terms(1, 0.03, 0.95, random.Random(0)), lambda line: None)
    assert asked == [pytest.approx(1 - 0.05 / cells)] * cells


@pytest.mark.parametrize("field", SAME_WORK)
def test_two_sides_that_did_other_work_are_not_comparable(tmp_path, field):
    """Contexts, and the inputs by their hashes: the schema's, so that none is left out."""
    assert set(SAME_WORK) == {*CONTEXT, "prompts_hash", "corpus_hash", "weights_hash"}
    journals = [tmp_path / f"{side}.jsonl" for side in SIDES]
    same = dict.fromkeys(SAME_WORK, "x") | {"status": "passed"}
    for path, record in zip(journals, (same, same | {field: "y"}), strict=True):
        Journal(path).append(Entry("c", "k", "q", {}, record))
    alike, unlike = (Comparison("c", Verdict.SAME, 1.0, 0.99, 1.01, blocks=8) for _ in range(2))
    comparison.refuse_other_work([alike], [journals[0], journals[0]])
    comparison.refuse_other_work([unlike], journals)
    assert (alike.verdict, alike.status) == (Verdict.SAME, gate.OK)
    assert (unlike.verdict, unlike.status) == (Verdict.AMBIGUOUS, gate.INCOMPARABLE) and field in unlike.why
