"""The gate between two files: every planted regression is caught, nothing is where nothing changed."""

import copy
import json
import math
import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mlexp.analysis import compare, files, gate
from mlexp.analysis.quality import SINGLE
from mlexp.cli import main

OWN = {
    "study": {"hops": ["count", "lower", "hops"], "mood": ["nats", "none", "a mood"], "steps": ["steps", "none", "s"]}
}


def study(make, seeds=10, noise=0.01, seed=0):
    """A trained study: two sizes x seeds x two arms."""
    rng, entries = np.random.default_rng(seed), []
    for size in ("tiny", "large"):
        for number in range(seeds):
            for arch in ("base", "ours"):
                accuracy = float(np.clip(0.8 + noise * rng.standard_normal(), 0, 1))
                fields = {"flops": 10**9, "peak_bytes": 10**8, "n_params": 400, "accuracy": accuracy, "loss_nats": 1.5}
                fields |= {"hops": 3, "mood": 0.5, "steps": 100, "peak_method": "vm_hwm", "energy_j": None}
                entries.append(make.bench({"size": size, "seed": number, "arch": arch}, question="study", **fields))
    return entries


@pytest.fixture
def base(make):
    return study(make)


@pytest.fixture
def compared(make, tmp_path):
    """The comparison of two lists of entries, by way of files."""

    def run(base, head, *limits, gates="", **options):
        one, other = (make.write_json(tmp_path / f"{n}.json", e, metrics=OWN) for n, e in (("b", base), ("h", head)))
        (tmp_path / "gates.toml").write_text(gates)
        rules = gate.read_gates(tmp_path / "gates.toml") if gates else []
        rules += map(gate.parse_fail_if, limits)
        return compare.compare(files.read(one), files.read(other), rules, **options)

    return run


def changed(entries, where=lambda params: True, **fields):
    """A copy in which some records have other values; a function makes one from the old."""
    head = copy.deepcopy(entries)
    for entry in head:
        if where(entry["params"]):
            extra = entry["extra_info"]
            extra |= {name: value(extra[name]) if callable(value) else value for name, value in fields.items()}
    return head


def one_cell(params):
    return params == {"size": "tiny", "seed": 3, "arch": "ours"}


def failing(found):
    rows = found.rows[found.rows["fails"]]
    return sorted(set(rows["metric"]))


def test_nothing_is_caught_where_nothing_changed(compared, base):
    found = compared(base, base)
    assert (found.status, found.cells, failing(found)) == (gate.OK, 40, [])
    assert set(found.rows["verdict"]) == {"SAME"}


def test_nothing_is_caught_where_only_luck_and_time_changed(compared, make):
    """Other noise in every seed, 5 % of it in time: at most one failure in ten comparisons (test_quality: the rate)."""
    statuses = []
    for i in range(10):
        base, head = study(make, seed=2 * i), study(make, seed=2 * i + 1)
        for j, entry in enumerate(head):
            entry["stats"]["data"] = [x * (1.05 if j % 2 else 0.95) for x in entry["stats"]["data"]]
            entry["extra_info"]["peak_bytes"] = 10**8 + 10**6 * (j % 3)
        statuses.append(compared(base, head).status)
    assert statuses.count(gate.OK) >= 9


def test_three_points_of_accuracy_over_ten_seeds(compared, base):
    rng = np.random.default_rng(1)
    head = changed(base, lambda p: p["arch"] == "ours", accuracy=lambda a: a - 0.03 + 0.01 * rng.standard_normal())
    found = compared(base, head)
    assert (found.status, failing(found)) == (gate.REGRESSION, ["accuracy"])
    (row,) = found.rows[found.rows["fails"]].itertuples()
    assert (row.cell, row.test, row.n) == ("study: all 4 groups", "pooled", 10) and row.high < 0
    assert re.search(
        r"most in study::test_run\[(tiny|large)-\*-ours\], study::test_run\[(tiny|large)-\*-ours\]", row.why
    )
    better = compared(head, base)
    assert better.status == gate.OK
    assert list(better.rows["verdict"]).count("BETTER") == 1


def test_one_arm_that_broke_among_many_is_named(compared, make):
    rng = np.random.default_rng(0)
    base = [
        make.bench({"arm": f"a{arm:02d}", "seed": seed}, question="study", loss_nats=1.5 + 0.05 * rng.standard_normal())
        for arm in range(30)
        for seed in range(3)
    ]
    head = changed(base, loss_nats=lambda loss: loss + 0.05 * rng.standard_normal())
    assert compared(base, head).status == gate.OK
    found = compared(base, changed(head, lambda p: p["arm"] == "a07", loss_nats=lambda loss: 1.3 * loss))
    (row,) = found.rows[found.rows["fails"]].itertuples()
    assert row.cell.endswith("[a07-*]") and (row.test, row.verdict, row.n) == ("cell", "WORSE", 3)


@pytest.mark.parametrize(
    ("fields", "metric"),
    [
        ({"flops": 10**9 + 1}, "flops"),
        ({"peak_bytes": 1.1e8}, "peak_bytes"),
        ({"n_params": 401}, "n_params"),
        ({"hops": 4}, "hops"),
        ({"steps": 99}, "steps"),
        ({"peak_method": "rss_sampling"}, "peak_method"),
    ],
)
def test_one_cell_that_costs_more_is_caught_and_named(compared, base, fields, metric):
    found = compared(base, changed(base, one_cell, **fields))
    assert (found.status, failing(found)) == (gate.REGRESSION, [metric])
    (row,) = found.rows[found.rows["fails"]].itertuples()
    assert row.cell.endswith("[tiny-3-ours]")


def test_less_is_better_and_no_failure(compared, base):
    found = compared(base, changed(base, one_cell, flops=10**9 - 1, peak_bytes=0.8e8, hops=2))
    assert found.status == gate.OK
    assert sorted(found.rows.loc[found.rows["verdict"] == "BETTER", "metric"]) == ["flops", "hops", "peak_bytes"]


def test_memory_within_its_tolerance_is_the_same(compared, base):
    assert compared(base, changed(base, peak_bytes=1.04e8)).status == gate.OK
    small = changed(base, peak_bytes=10**6)
    assert compared(small, changed(small, peak_bytes=1.3e6)).status == gate.OK  # 0.3 MB: a heap's mood
    assert compared(small, changed(small, peak_bytes=1.3e6), "peak_bytes:+10%").status == gate.REGRESSION
    exact = changed(small, peak_method="cuda_allocator")
    assert compared(exact, changed(exact, peak_bytes=1.3e6)).status == gate.REGRESSION


def test_a_vanished_cell_and_a_new_one(compared, base):
    found = compared(base, [entry for entry in base if not one_cell(entry["params"])])
    assert (found.status, failing(found)) == (gate.INCOMPLETE, ["status"])
    assert found.rows.iloc[0]["why"] == compare.GONE
    found = compared(base[:-1], base)
    assert found.status == gate.OK and "1 cells are new in the head" in found.notes[0]


@pytest.mark.parametrize("status", ["failed", "oom", "diverged", "crashed"])
def test_a_cell_that_now_fails(compared, make, base, status):
    head = copy.deepcopy(base)
    head[6]["extra_info"] |= {"status": status, "reason": "AssertionError: 1 == 2"}
    del head[6]["stats"]
    found = compared(base, head)
    assert (found.status, failing(found)) == (gate.REGRESSION, ["status"])
    assert found.rows.iloc[0]["why"] == "AssertionError: 1 == 2"
    assert compared(head, base).status == gate.OK
    assert compared(head, head).status == gate.OK  # an oom of both is as it was


def test_a_metric_that_is_no_longer_recorded(compared, base):
    found = compared(base, changed(base, one_cell, peak_bytes=None))
    assert (found.status, failing(found)) == (gate.INCOMPLETE, ["peak_bytes"])
    found = compared(base, changed(base, accuracy=None))
    assert (found.status, failing(found)) == (gate.INCOMPLETE, ["accuracy"])


def slower(entries, factor):
    head = copy.deepcopy(entries)
    for entry in head:
        entry["stats"]["data"] = [x * factor for x in entry["stats"]["data"]]
    return head


def test_time_is_told_and_gated_only_when_asked(compared, base):
    verdicts = {
        factor: set(f.rows.loc[f.rows["metric"] == "wall_s", "verdict"])
        for factor in (0.5, 0.98, 1.02, 1.1, 2.0)
        for f in [compared(base, slower(base, factor))]
    }
    assert verdicts == {0.5: {"BETTER"}, 0.98: {"SAME"}, 1.02: {"SAME"}, 1.1: {"AMBIGUOUS"}, 2.0: {"WORSE"}}
    assert compared(base, slower(base, 2.0)).status == gate.OK
    assert compared(base, slower(base, 1.1), "wall_s:+5%").status == gate.REGRESSION
    assert compared(base, slower(base, 1.1), "wall_s:+20%").status == gate.OK


def test_a_single_pair_has_no_interval_but_a_limit_that_was_asked_for_holds(compared, make):
    base = study(make, seeds=1)
    head = changed(base, accuracy=lambda a: a - 0.1)
    found = compared(base, head)
    assert (found.status, failing(found), found.rows["why"][0]) == (gate.INCOMPLETE, ["accuracy"], SINGLE)
    assert found.rows["verdict"][0] == "AMBIGUOUS"
    better = compared(head, base)
    assert better.status == gate.OK and "single pair" in better.rows["why"][0]
    assert compared(base, base).status == compared(base, changed(base, accuracy=lambda a: a - 0.004)).status == gate.OK
    assert compared(base, head, "accuracy:-0.05").status == gate.REGRESSION
    assert compared(base, head, "accuracy:-0.15").status == gate.OK


def test_quality_is_the_paired_t_test_group_by_group(compared, make):
    """Against scipy: each group's interval, and the test of the means over groups, seed by seed."""
    base = study(make, noise=0.02, seed=3)
    rng = np.random.default_rng(4)
    head = changed(base, accuracy=lambda a: a - 0.02 + 0.02 * rng.standard_normal())
    rows = compared(base, head).rows
    rows = rows[rows["metric"] == "accuracy"].set_index("cell")
    sides = {}
    for side, entries in (("base", base), ("head", head)):
        for entry in entries:
            params = entry["params"]
            sides.setdefault((params["size"], params["arch"]), {"base": [], "head": []})[side].append(
                entry["extra_info"]["accuracy"]
            )
    tests = {group: scipy_stats.ttest_rel(pair["head"], pair["base"]) for group, pair in sides.items()}
    assert len(rows) - 1 == len(tests) == 4
    for (size, arch), test in tests.items():
        row = rows.loc[f"benches/study/bench_study.py::test_run[{size}-*-{arch}]"]
        assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert row["fails"] == (row["verdict"] == "WORSE") == (row["p"] < 0.05)
    means = [np.mean([pair[side] for pair in sides.values()], axis=0) for side in ("head", "base")]
    test, row = scipy_stats.ttest_rel(*means, alternative="less"), rows.loc["study: all 4 groups"]
    assert (row["p"], row["n"]) == (pytest.approx(2 * test.pvalue), 10)
    assert row["change"] == pytest.approx(np.mean(means[0] - means[1]))
    assert row["fails"] == (row["verdict"] == "WORSE") == (row["p"] < 0.05)


@pytest.mark.parametrize(
    ("base", "head", "limits", "verdict", "status"),
    [
        ({"rate": 1000.0}, {"rate": 0.0}, ["rate:-10%"], "WORSE", gate.REGRESSION),
        ({"rate": 1000.0}, {"rate": 0.0}, [], "WORSE", gate.OK),
        ({"rate": 0.0}, {"rate": 1000.0}, ["rate:-10%"], "BETTER", gate.OK),
        ({"rate": 0.0}, {"rate": 0.0}, ["rate:-10%"], "SAME", gate.OK),
        ({"energy_j": 0.0}, {"energy_j": 50.0}, ["energy_j:+10%"], "WORSE", gate.REGRESSION),
        ({"energy_j": 50.0}, {"energy_j": 0.0}, [], "BETTER", gate.OK),
        ({"peak_bytes": 0}, {"peak_bytes": 10**8}, [], "WORSE", gate.REGRESSION),
        ({"hops": 3}, {"hops": 0}, [], "BETTER", gate.OK),
        ({"loss_nats": 0.0}, {"loss_nats": 0.1}, ["loss_nats:+0.05"], "WORSE", gate.REGRESSION),
        ({"loss_nats": 1.5}, {"loss_nats": math.inf}, [], "WORSE", gate.REGRESSION),
        ({"loss_nats": math.inf}, {"loss_nats": 1.5}, [], "BETTER", gate.OK),
        ({"loss_nats": math.inf}, {"loss_nats": math.inf}, [], "SAME", gate.OK),
        ({"loss_nats": 1.5}, {"loss_nats": math.nan}, [], "AMBIGUOUS", gate.INCOMPLETE),
        ({"peak_bytes": math.inf}, {"peak_bytes": 1e8}, [], "BETTER", gate.OK),
    ],
)
def test_zero_and_what_is_not_finite_have_the_direction_of_their_difference(
    make, tmp_path, base, head, limits, verdict, status
):
    own = {"study": {"rate": ["tokens/s", "higher", "r"], "hops": ["count", "lower", "h"]}}
    entries = [[make.bench({"seed": 1}, question="study", **fields)] for fields in (base, head)]
    one, other = (make.write_json(tmp_path / f"{i}.json", e, metrics=own) for i, e in enumerate(entries))
    found = compare.compare(files.read(one), files.read(other), [*map(gate.parse_fail_if, limits)])
    row = found.rows[found.rows["metric"] == next(iter(base))].iloc[0]
    assert (row["verdict"], found.status) == (verdict, status)


def test_differences_that_happen_to_be_equal_are_within_the_noise_of_what_is_counted(make, compared):
    """Two items of 300 fewer in both seeds: a difference comes in steps of 1/300, and is no surer than that."""

    def entries(*correct):
        cells = zip(range(len(correct)), correct, strict=True)
        return [make.bench({"seed": seed, "arm": "a"}, question="study", accuracy=n / 300) for seed, n in cells]

    found = compared(entries(134, 161), entries(132, 159))
    row = found.rows[found.rows["metric"] == "accuracy"].iloc[0]
    assert (found.status, row["verdict"]) == (gate.OK, "AMBIGUOUS")
    assert row["low"] < 0 < row["high"] and row["p"] > 0.05
    assert compared(entries(134, 161, 150), entries(54, 81, 70)).status == gate.REGRESSION
    assert compared(entries(134, 161), entries(132, 159), "accuracy:-0.005").status == gate.REGRESSION


def test_a_limit_is_judged_on_the_estimate_whatever_the_noise(make, compared):
    base, head = ([make.bench({"seed": i}, question="study", accuracy=a) for i, a in enumerate(values)]
                  for values in ((0.8, 0.7, 0.9), (0.79, 0.69, 0.599)))  # fmt: skip
    assert compared(base, head).status == gate.OK
    found = compared(base, head, "accuracy:-0.03")
    assert (found.status, failing(found)) == (gate.REGRESSION, ["accuracy"])
    assert compared(base, head, "accuracy:-0.2").status == gate.OK


def test_holm_counts_every_group_that_was_tested(compared, make):
    """A p of 0.02 in one group of many is luck; alone it is not."""
    base = [e for e in study(make, seeds=5) if e["params"]["size"] == "tiny" and e["params"]["arch"] == "ours"]
    shifts = iter([0.02, 0.01, 0.03, 0.015, 0.005] * 50)
    head = changed(base, accuracy=lambda a: a - next(shifts))
    assert compared(base, head).status == gate.REGRESSION
    rng = np.random.default_rng(0)
    many, many_head = list(base), list(head)
    for i in range(40):
        for seed in range(5):
            fields = {"accuracy": 0.5, "question": "study"}
            entry = make.bench({"size": f"s{i:02d}", "seed": seed, "arch": "ours"}, **fields)
            many.append(entry)
            many_head += changed([entry], accuracy=0.5 + 0.02 * float(rng.standard_normal()))
    assert compared(many, many_head).status == gate.OK


def test_files_of_two_contexts_are_refused_in_one_line(make, tmp_path, base, capsys):
    one = make.write_json(tmp_path / "b.json", base)
    for field, value in {"machine": "Apple M2, 8 threads", "dtype": "bfloat16", "settings": '{"samples":5}'}.items():
        was = base[0]["extra_info"][field]
        head = changed(base, **{field: value})
        for entry in head:
            entry["extra_info"]["key"] += "x"
        other = make.write_json(tmp_path / "h.json", head)
        assert main(["compare", str(one), str(other)]) == gate.INCOMPARABLE
        (line,) = capsys.readouterr().err.splitlines()
        old, new = ("{'samples': 20}", "{'samples': 5}") if field == "settings" else (was, value)
        assert f"{field} is" in line and old in line and new in line


@pytest.mark.parametrize("field", ["prompts_hash", "corpus_hash", "weights_hash"])
def test_other_inputs_are_other_work(compared, base, field):
    one = changed(base, **{field: "p1"})
    with pytest.raises(gate.Refused, match=f"{field} is 'p1' in the base and 'p2' in the head") as refused:
        compared(one, changed(one, one_cell, **{field: "p2"}))
    assert refused.value.status == gate.INCOMPARABLE


def test_across_machines_all_but_time_is_compared(compared, base):
    head = changed(slower(base, 3.0), machine="another")
    found = compared(base, head, cross_machine=True)
    assert found.status == gate.OK and "wall_s" not in set(found.rows["metric"])
    assert compared(base, changed(head, one_cell, flops=10**9 + 1), cross_machine=True).status == gate.REGRESSION


def test_contexts_within_one_file_meet_their_own(compared, base):
    both = base + changed(base, dtype="bfloat16", flops=5, key=lambda key: key + "x")
    assert compared(both, both).status == gate.OK
    assert compared(both, base).status == gate.INCOMPLETE


GATES = """
[[gate]]
metric = "flops"
gated = false
[[gate]]
metric = "flops"
question = "st*"
cell = "*[large-*"
gated = true
limit = "+1%"
[[gate]]
metric = "mood"
limit = "+0.1"
"""


@pytest.mark.parametrize(
    ("size", "fields", "status"),
    [
        ("tiny", {"flops": 2 * 10**9}, gate.OK),
        ("large", {"flops": int(1.005 * 10**9)}, gate.OK),
        ("large", {"flops": int(1.02 * 10**9)}, gate.REGRESSION),
        ("tiny", {"mood": 0.7}, gate.REGRESSION),
        ("tiny", {"mood": 0.55}, gate.OK),
        ("tiny", {"mood": 0.3}, gate.OK),
    ],
)
def test_rules_are_for_what_they_match_and_the_later_one_holds(compared, base, size, fields, status):
    head = changed(base, lambda params: params["size"] == size, **fields)
    assert compared(base, head, gates=GATES).status == status


@pytest.mark.parametrize(
    ("gates", "told"),
    [
        ("[[gate]\n", "gates.toml: Expected"),
        ("x = 1\n", r"expected tables \[\[gate\]\]"),
        ("gate = 1\n", r"expected tables \[\[gate\]\]"),
        ("gate = [1]\n", "gate 1 is no table"),
        ('[[gate]]\nmetric = "flops"\nlimits = "+1%"\n', "unknown key 'limits'; choose from metric"),
        ('[[gate]]\nlimit = "+1%"\n', "metric is missing"),
        ('[[gate]]\nmetric = "flops"\nlimit = "1%"\n', "'1%' is no limit"),
        ('[[gate]]\nmetric = "flops"\nlimit = 1\n', "1 is no limit"),
        ('[[gate]]\nmetric = "flops"\ngated = "no"\n', "gated is 'no'; give true or false"),
        ('[[gate]]\nmetric = "mood"\nbetter = "more"\n', "better is 'more'; give lower or higher"),
        ('[[gate]]\nmetric = "mood"\nbetter = "lower"\ncell = "*"\n', "drop cell or better"),
        ('[[gate]]\nmetric = "accuracy"\nbetter = "lower"\n', "accuracy is declared: higher is better"),
        ('[[gate]]\nmetric = "flop"\n', "no metric is 'flop'; choose from accuracy"),
        ('[[gate]]\nmetric = "flops"\nquestion = "studies"\n', "matches question 'studies'"),
        ('[[gate]]\nmetric = "accuracy"\nlimit = "+1%"\n', "accuracy is better higher; give the other sign"),
    ],
)
def test_a_wrong_rule_is_one_line_that_names_it(compared, base, gates, told):
    with pytest.raises(gate.Refused, match=told) as refused:
        compared(base, base, gates=gates)
    assert refused.value.status == gate.UNREADABLE and "\n" not in str(refused.value)


@pytest.mark.parametrize("limit", ["flops", "flops:", ":+5%", "flops:5%", "flops:+x", "flops:+5%%", "flops:+inf"])
def test_a_wrong_limit_is_refused(limit):
    with pytest.raises(gate.Refused):
        gate.parse_fail_if(limit)


@given(st.floats(0, 1e9, allow_subnormal=False), st.booleans(), st.sampled_from([1, -1]))
def test_limits_are_read_as_they_are_written(amount, relative, sign):
    found = gate.parse_limit(f"{'+' if sign > 0 else '-'}{amount!r}{'%' if relative else ''}", "here")
    assert found == (pytest.approx(amount / 100 if relative else amount), relative, sign)


@given(st.text(alphabet="ab*?[].", max_size=6), st.text(alphabet="ab[].", max_size=6))
def test_a_pattern_is_a_shell_s_but_brackets_are_brackets(pattern, text):
    import fnmatch

    found = gate.matches(pd.Series([text]), pattern).item()
    assert found == fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))


def test_the_command_prints_for_people_for_ci_and_for_programs(make, tmp_path, base, capsys):
    head = changed(base, one_cell, flops=10**9 + 1, reason="a | b <img src=x>")
    del head[0]["stats"]
    head[0]["extra_info"] |= {"status": "failed", "reason": "a | b <img src=x>"}
    one, other = (make.write_json(tmp_path / f"{n}.json", e, metrics=OWN) for n, e in (("b", base), ("h", head)))
    printed = {}
    for form in ("", "--markdown", "--json"):
        assert main(["compare", str(one), str(other), *filter(None, [form])]) == gate.REGRESSION
        printed[form] = capsys.readouterr().out
    assert "1,000,000,001" in printed[""] and printed[""].splitlines()[-1].startswith("regression: 40 cells in both")
    table = [line for line in printed["--markdown"].splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11}
    assert "<img" not in printed["--markdown"].replace("\\<", "")
    data = json.loads(printed["--json"])
    assert (data["status"], data["cells"]) == (1, 40)
    assert [row["metric"] for row in data["rows"] if row["fails"]] == ["status", "flops"]


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_what_cannot_be_read_is_four_and_nothing_in_common_is_two(make, tmp_path, base, capsys, text):
    one = make.write_json(tmp_path / "b.json", base)
    (tmp_path / "h.json").write_text(text)
    assert main(["compare", str(one), str(tmp_path / "h.json")]) == gate.UNREADABLE
    assert capsys.readouterr().err.count("\n") == 1
    none = make.write_json(tmp_path / "h.json", [])
    assert main(["compare", str(none), str(one)]) == gate.INCOMPLETE
    assert "nothing compared" in capsys.readouterr().out


def test_plain_pytest_benchmark_files_compare_too(tmp_path, capsys):
    data = {"machine_info": {"cpu": {"brand_raw": "x"}}, "commit_info": {}, "datetime": "2026-01-01T00:00:00"}
    for name, seconds in (("b", 1.0), ("h", 3.0)):
        stats = {"median": seconds, "iqr": 0.01, "rounds": 5, "data": [seconds] * 5}
        bench = {"name": "test_a", "fullname": "t.py::test_a", "params": None, "extra_info": {}, "stats": stats}
        (tmp_path / f"{name}.json").write_text(json.dumps(data | {"benchmarks": [bench]}))
    paths = [str(tmp_path / f"{name}.json") for name in "bh"]
    assert main(["compare", *paths]) == gate.OK
    assert "WORSE" in capsys.readouterr().out
    assert main(["compare", *paths, "--fail-if", "wall_s:+10%"]) == gate.REGRESSION


def plain(folder, name, seconds=1.0, rounds=5, cells=("test_a",), **extra):
    """A pytest-benchmark file of a project that knows nothing of mlexp."""
    stats = {"median": seconds, "iqr": 0.01 * seconds, "rounds": rounds}
    benches = [{"name": cell, "fullname": f"t.py::{cell}", "params": None, "stats": stats} for cell in cells]
    data = {"machine_info": {"cpu": {"brand_raw": "x"}}, "commit_info": {}, "datetime": "2026-01-01T00:00:00"}
    (folder / name).write_text(json.dumps(data | {"benchmarks": [bench | {"extra_info": extra} for bench in benches]}))
    return str(folder / name)


@pytest.mark.parametrize(
    ("words", "head", "status"),
    [
        ([], {}, gate.OK),
        ([], {"score": 0.1, "hits": 1, "flag": False}, gate.OK),
        (["--higher", "score"], {"score": 0.1}, gate.INCOMPLETE),
        (["--higher", "score"], {"score": 0.9}, gate.OK),
        (["--lower", "score,hits"], {"hits": 9}, gate.INCOMPLETE),
        (["--lower", "hits", "--higher", "score", "--fail-if", "score:-10%"], {"score": 0.1}, gate.REGRESSION),
        (["--fail-if", "score:-10%"], {"score": 0.1}, gate.REGRESSION),
        (["--lower", "nothing"], {}, gate.UNREADABLE),
        (["--lower", "score,"], {}, gate.UNREADABLE),
        (["--higher", "wall_s"], {}, gate.UNREADABLE),
    ],
)
def test_a_plain_file_says_what_it_likes_of_its_run_and_directions_are_given(tmp_path, capsys, words, head, status):
    """Rounds, texts and numbers of another run are no regression; a number is gated once it has a direction."""
    said = {
        "run_id": "x1",
        "when": "10:00",
        "when_started": "10:00",
        "score": 0.5,
        "hits": 3,
        "flag": True,
        "sizes": {},
    }
    base = plain(tmp_path, "b.json", 1.0, 1000, **said)
    other = said | {"run_id": "x2", "when": 11, "when_started": "11:00"} | head
    assert main(["compare", base, plain(tmp_path, "h.json", 0.5, 2000, **other), *words]) == status
    assert "rounds" not in capsys.readouterr().out


def test_a_gate_file_gives_directions_too(tmp_path):
    base, head = plain(tmp_path, "b.json", score=0.5), plain(tmp_path, "h.json", score=0.1)
    gates = tmp_path / "gates.toml"
    for more, status in (
        ("", gate.INCOMPLETE),
        ('limit = "-10%"', gate.REGRESSION),
        ("gated = false", gate.OK),
    ):
        gates.write_bytes(b"\xef\xbb\xbf" + f'[[gate]]\nmetric = "score"\nbetter = "higher"\n{more}\n'.encode())
        assert main(["compare", base, head, "--gate", str(gates)]) == status


def test_a_cell_that_may_have_been_renamed_is_suggested(tmp_path, capsys):
    base = plain(tmp_path, "b.json", cells=["test_decode[gpt2-p0]", "test_other"])
    head = plain(tmp_path, "h.json", cells=["test_decode[gpt2_small-p0]", "test_third_thing", "test_other"])
    assert main(["compare", base, head]) == gate.INCOMPLETE
    assert "renamed? t.py::test_decode[gpt2-p0] -> t.py::test_decode[gpt2_small-p0]\n" in capsys.readouterr().out


numbers = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats()
scalars = numbers | st.text(max_size=3)
shared = dict.fromkeys(("flops", "accuracy", "peak_bytes", "energy_j"), numbers)  # of other kinds the loader says so
records = st.lists(st.fixed_dictionaries({}, optional=shared | {"mood": scalars, "x": scalars}), max_size=4)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=records, head=records)
def test_no_values_give_a_traceback(make, tmp_path_factory, base, head):
    """Two files of any scalars under the names of metrics: a comparison that prints."""
    folder, paths = tmp_path_factory.mktemp("junk"), []
    for name, sides in (("b", base), ("h", head)):
        entries = [make.bench({"seed": i, "arm": "a"}, question="study", **fields) for i, fields in enumerate(sides)]
        paths.append(make.write_json(folder / f"{name}.json", entries, metrics=OWN))
    found = compare.compare(*map(files.read, paths))
    for form in (compare.text, compare.markdown):
        assert form(found)
    json.loads(compare.as_json(found))
    same = compare.compare(*map(files.read, paths[:1] * 2))
    assert not same.rows["fails"].any() or any(math.isnan(v) for f in base for v in f.values() if isinstance(v, float))


@pytest.mark.slow
def test_ten_thousand_records_compare_in_linear_time(make, tmp_path):
    def seconds(sizes):
        entries = [
            make.bench({"size": f"s{size}", "seed": seed, "arch": "a"}, flops=size, accuracy=0.5 + seed / 100)
            for size in range(sizes)
            for seed in range(20)
        ]
        loaded = [files.read(make.write_json(tmp_path / f"{name}.json", entries)) for name in "bh"]
        start = time.perf_counter()
        assert compare.compare(*loaded).status == gate.OK
        return time.perf_counter() - start

    seconds(5)
    assert seconds(500) < 20 * seconds(50)
