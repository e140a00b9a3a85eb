"""Change points: false alarms bounded, planted steps found; histories in order of commit time, contexts kept apart."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlexp.analysis import changepoints, history
from mlexp.analysis.report import run

NOISES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy-tailed": lambda rng, n: rng.standard_t(1.5, n),
    "skewed": lambda rng, n: rng.lognormal(0, 1.5, n),
    "tied": lambda rng, n: rng.integers(0, 3, n).astype(float),
}
REPORT = "def report(records, out):\n    out.text(f'{len(records)} records')\n"


def energy_by_hand(x, y):
    """The energy distance of two samples from its definition, pair by pair."""
    between = np.mean([abs(a - b) for a in x for b in y])
    within = [np.mean([abs(a - b) for a, b in itertools.combinations(side, 2)]) for side in (x, y)]
    return len(x) * len(y) / (len(x) + len(y)) * (2 * between - sum(within))


@given(n=st.integers(4, 12), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=30)
def test_energies_are_their_definition(n, seed):
    values = np.random.default_rng(seed).standard_normal(n)
    found = changepoints.energies(np.abs(values[:, None] - values))
    by_hand = [energy_by_hand(values[:k], values[k:]) for k in range(2, n - 1)]
    np.testing.assert_allclose(found, by_hand, atol=1e-12)


def test_energies_tell_one_split_from_another():
    values = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 5.0])
    found = changepoints.energies(np.abs(values[:, None] - values))
    assert not np.allclose(found, energy_by_hand(values[:3], values[3:]))
    assert not np.allclose(found, found[::-1])


@pytest.mark.parametrize("noise", NOISES)
def test_a_series_without_change_raises_few_alarms(noise):
    """At most 5 %: of 300 series, 25 or more would be alarming with a probability below 1 in 100."""
    series = [NOISES[noise](np.random.default_rng(i), 16) for i in range(300)]
    alarms = sum(bool(changepoints.change_points(values, 0.05, seed=i)) for i, values in enumerate(series))
    assert alarms < 25
    assert changepoints.change_points(series[0] + 9.0 * (np.arange(16) > 7), 0.05) or noise == "heavy-tailed"


@given(n=st.integers(16, 40), where=st.floats(0.3, 0.7), sign=st.sampled_from([-1, 1]), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=40)
def test_a_planted_step_is_found_where_it_is(n, where, sign, seed):
    at, rng = int(n * where), np.random.default_rng(seed)
    values = 0.01 * rng.uniform(-1, 1, n) + sign * 0.1 * (np.arange(n) >= at)
    assert at in [change.at for change in changepoints.change_points(values, 0.01)]


@pytest.mark.parametrize("n", [12, 24])
def test_values_that_resemble_the_one_before_raise_few_alarms(n):
    """A first-order correlation of .7: the permutation of the values alone finds a change in every third or second."""
    rng, alarms, runs = np.random.default_rng(3), 0, 120
    for i in range(runs):
        noise = rng.standard_normal(n + 20)
        values = list(itertools.accumulate(noise, lambda last, new: 0.7 * last + new))[20:]
        alarms += bool(changepoints.change_points(values, 0.05, seed=i))
    assert alarms / runs < 0.3


@pytest.mark.parametrize("n", [16, 32])
def test_a_step_among_values_that_resemble_the_one_before_is_found_all_the_same(n):
    rng, found = np.random.default_rng(4), 0
    for i in range(20):
        noise = rng.standard_normal(n + 20)
        values = np.array(list(itertools.accumulate(noise, lambda last, new: 0.3 * last + new))[20:])
        changes = changepoints.change_points(values + 8.0 * (np.arange(n) >= n // 2), 0.05, seed=i)
        found += any(abs(change.at - n // 2) <= 1 for change in changes)
    assert found >= 16


def test_two_steps_are_two_changes_and_the_order_of_values_is_what_counts():
    rng = np.random.default_rng(3)
    values = np.repeat([0.0, 1.0, 0.4], 14) + 0.02 * rng.standard_normal(42)
    assert [change.at for change in changepoints.change_points(values)] == [14, 28]
    assert [change.at for change in changepoints.change_points(values[::-1])] == [14, 28]
    assert changepoints.change_points(rng.permutation(values)) == []


def test_one_outlier_is_no_level():
    values = 0.01 * np.random.default_rng(0).standard_normal(20)
    values[9] = 5.0
    assert changepoints.change_points(values) == []


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.001])
def test_a_clean_step_shows_from_the_commits_needed_on(alpha):
    n = changepoints.commits_needed(alpha)
    step = np.arange(n) >= n // 2
    assert not changepoints.change_points(step[:-1].astype(float), alpha)
    assert 2 / len(list(itertools.combinations(range(n), n // 2))) <= alpha


@pytest.mark.parametrize(("values", "alpha"), [([1.0, np.nan], 0.05), ([[1.0]], 0.05), ([1.0, 2.0], 0.0)])
def test_what_is_no_series_is_refused(values, alpha):
    with pytest.raises(ValueError, match=r"flat list of finite numbers|alpha is"):
        changepoints.change_points(values, alpha)


def commits(make, place, n=24, step_at=None, gain=1.2, flops_at=None, **fields):
    """A file a commit, tree and plain over four prompts; the tree slower by `gain` from `step_at` on."""
    rng, ids = np.random.default_rng(5), []
    for c in range(n):
        ids.append(f"{c:02d}" + "fade" * 9 + "c0")
        entries = []
        for prompt in range(4):
            for decoder in ("plain", "tree"):
                slow = gain if decoder == "tree" and step_at is not None and c >= step_at else 1.0
                more = int(decoder == "tree" and prompt == 2 and flops_at is not None and c >= flops_at)
                entry = make.bench(
                    {"prompt": f"p{prompt}", "decoder": decoder},
                    [slow * float(np.exp(0.02 * rng.standard_normal()))],
                    **{"commit": ids[-1], "flops": 10**9 + more, "peak_bytes": 5, "when": "2026-11-20T00:00:00Z"}
                    | fields,
                )
                entries.append(entry)
        day = {"time": f"2026-10-{c + 1:02d}T00:00:00+00:00", "id": ids[-1]}
        name = f"{(7 * c) % n:02d}{fields.get('machine', '')}.json"  # the names of files say nothing of their order
        make.write_json(place / "raw" / name, entries, commit_info=day)
    make.write_question(place / "benches", report=REPORT)
    return ids


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_slower_arm_is_marked_at_its_commit(make, place):
    ids = commits(make, place, step_at=14, flops_at=6)
    assert run([place / "raw"]) == 0
    table = pd.read_csv(place / "results/speed/history.csv", dtype={"commit": str})
    found = list(zip(table["metric"], table["decoder"], table["commit"], table["better_or_worse"], strict=True))
    assert found == [("wall_s", "tree", ids[14][:10], "worse"), ("flops", "tree", ids[6][:10], "worse")]
    change = table.set_index("metric").loc["wall_s", "change"]
    assert 17 < float(change.removesuffix(" %")) < 23
    assert table.set_index("metric").loc["flops", "p"] == 0  # one of four cells, one operation: still a change
    summary = (place / "results/speed/summary.md").read_text()
    assert "The same at every commit: peak_bytes." in summary
    assert (place / "results/speed/history.svg").is_file()
    assert "24 commits, 2 changes of level (2 for the worse)" in (place / "results/index.html").read_text()


def test_nothing_changed_and_nothing_is_marked(make, place):
    commits(make, place)
    assert run([place / "raw"]) == 0
    assert not (place / "results/speed/history.csv").exists()
    assert "No change of level found" in (place / "results/speed/summary.md").read_text()


def test_contexts_are_never_pooled(make, place):
    """Two machines of different speed measured in turn: neither has a change; pooled, every commit would be one."""
    for machine, wall in (("slow", 2.0), ("fast", 1.0)):
        commits(make, place, n=12, machine=machine, step_at=0, gain=wall)
    assert run([place / "raw"]) == 0
    summaries = [path.read_text() for path in (place / "results/speed").rglob("summary.md")]
    assert len(summaries) == 2
    assert all("there are 12." in text and "No change of level found" in text for text in summaries)


def test_two_commits_are_no_history(make, place):
    commits(make, place, n=2)
    assert run([place / "raw"]) == 0
    assert "History" not in (place / "results/speed/summary.md").read_text()


def test_uncommitted_code_is_of_no_commit(make, place):
    commits(make, place, n=10, dirty=True)
    assert run([place / "raw"]) == 0
    assert "## History" not in (place / "results/speed/summary.md").read_text()


def test_the_same_code_at_two_commits_is_two_points(make, place):
    """`--resume` finds the same key at a commit that changed other code; a copy of a record stays one."""
    from mlexp.analysis.files import read

    commits(make, place, n=3, key="same")
    loaded = read(place / "raw", place / "raw")
    assert (len(loaded.rows), len(loaded.older)) == (1, 2)
    again = json.loads((place / "raw/00.json").read_text())
    (place / "raw/copy.json").write_text(json.dumps(again))
    assert len(read(place / "raw").older) == 2


def test_a_version_that_changed_with_the_commit_is_named(make, place):
    ids = commits(make, place, step_at=14)
    for file in (place / "raw").iterdir():
        data = json.loads(file.read_text())
        new = data["commit_info"]["id"] >= ids[14]
        for entry in data["benchmarks"]:
            entry["extra_info"]["torch"] = "2.14.0" if new else "2.13.0"
        file.write_text(json.dumps(data))
    assert run([place / "raw"]) == 0
    assert pd.read_csv(place / "results/speed/history.csv")["changed_with_it"].tolist() == ["torch 2.13.0 to 2.14.0"]


def test_without_the_time_of_a_commit_its_first_record_counts():
    df = pd.DataFrame({"commit": list("abcab"), "when": ["2026-03-01", "2026-02-01", "no time", "2026-01-01", None]})
    assert list(history.in_order(df, {}).index) == ["a", "b"]
    times = {"a": "2026-05-01T00:00:00+02:00", "b": "also no time", "c": "2026-04-30T23:00:00Z"}
    assert list(history.in_order(df, times).index) == ["b", "a", "c"]


def test_values_that_are_no_numbers_take_no_part(make, place):
    commits(make, place, n=12, peak_bytes=10**400, accuracy=None)
    assert run([place / "raw"]) == 0
    assert "peak_bytes" not in (place / "results/speed/summary.md").read_text()


def test_only_the_last_commits_are_looked_at(make, place, monkeypatch):
    monkeypatch.setattr(history, "LONGEST", 10)
    commits(make, place, step_at=12, gain=2.0)
    assert run([place / "raw"]) == 0
    assert "there are 10." in (place / "results/speed/summary.md").read_text()
    assert not (place / "results/speed/history.csv").exists()
