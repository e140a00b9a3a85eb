"""What a session shows: a line a cell, a table of arms, pytest-benchmark's own table where it is asked for."""

import re

import pytest

from mlexp.harness.summary import amount, cell_line, seconds, summary
from mlexp.journal import Entry

pytest_plugins = ["pytester"]

TIME = r"[\d.]+ (ns|us|ms|s)"


def lines(result):
    """What is said of single cells."""
    return [line for line in result.outlines if re.match(r"  [a-z][a-z0-9_ ]*seed\d[^=]*: ", line)]


def test_a_line_a_cell_in_the_study_s_words(fit):
    shown = lines(fit.run())
    assert re.fullmatch(rf"  n1000 seed42 half: perplexity 37.4 \({TIME}\)", shown[0])
    assert re.fullmatch(rf"  n1000 seed42 full: perplexity 30 \({TIME}\)", shown[1])
    assert "  n1000 seed43 half: failed: AssertionError: too much" in shown
    assert "  n2000 seed43 half: diverged: FloatingPointError: loss is nan" in shown
    assert len(shown) == 8


def test_arms_are_summed_up_with_ratios_to_the_baseline(fit):
    result = fit.run("--benchmark-json", "out.json")
    at = result.outlines.index(next(line for line in result.outlines if line.startswith("fit: mean perplexity")))
    head, *rows = (line.split("  ") for line in result.outlines[at + 1 : at + 6])
    table = [[text.strip() for text in row if text.strip()] for row in (head, *rows)]
    assert table[0][:5] == ["size", "arm", "cells", "perplexity", "vs full"] and table[0][-1] == "vs full"
    assert [row[:5] for row in table[1:]] == [
        ["n1000", "full", "2", "30", "1"],
        ["n1000", "half", "1 of 2", "37.4", "1.25x"],
        ["n2000", "full", "2", "30", "1"],
        ["n2000", "half", "1 of 2", "37.4", "1.25x"],
    ]
    assert "now: mlexp report out.json" in result.outlines
    assert not [line for line in result.outlines if "Name (time" in line]
    assert "no interval" in result.outlines[at]


@pytest.mark.parametrize("args", [(), ("--isolate",)])
def test_failures_that_are_equal_are_one_line(fit, args):
    """One mistake in a cell's body fails all cells; two cells that fail in different ways are no such thing."""

    def said():
        return [line for line in fit.run("--tb=no", *args).outlines if re.match(r"\d+ cells ", line)]

    assert said() == []
    fit.edit("cell.record(", "cell.record(perplexty=1, ")
    (line,) = said()
    number = 1 + next(i for i, row in enumerate(fit.bench.read_text().splitlines()) if "cell.record(" in row)
    where = "" if args else rf" \(benches/fit/bench_fit.py:{number}\)"
    assert re.fullmatch(rf"6 cells failed: ValueError: unknown metric 'perplexty'; declare it, .*\.\.\.{where}", line)


def test_a_session_that_ended_early_says_how_to_go_on(fit):
    """After Ctrl+C and after -x; not where every cell had its turn, though some failed or were skipped."""

    def unfinished(*args):
        return [line for line in fit.run(*args, subprocess=True).outlines if "goes on" in line]

    assert unfinished("-x") == ["mlexp: 3 of 8 cells measured; the same command with --resume goes on"]
    assert unfinished() == [] == unfinished("--benchmark-disable", "-x") == unfinished("--collect-only")
    fit.edit('raise FloatingPointError("loss is nan")', "raise KeyboardInterrupt")
    fit.edit('assert seed == 0, "too much"', "import pytest; pytest.skip('not here')")
    (stopped,) = unfinished()
    assert re.fullmatch(r"mlexp: \d of 8 cells measured; the same command with --resume goes on", stopped)
    assert unfinished("--resume") == [stopped.replace(" with --resume", "")]
    fit.edit("raise KeyboardInterrupt", "pass")
    marked = "import pytest\n\n@pytest.mark.skip\ndef test_other(cell, arm):\n    cell.time(list)\n\n\ndef test_fit"
    fit.edit("def test_fit", marked)
    assert unfinished("--resume") == []


def test_verbose_has_the_outcome_behind_pytest_s_word(fit):
    result = fit.run("-v")
    first = next(line for line in result.outlines if "test_fit[n1000-seed42-full]" in line)
    assert re.search(rf"\] PASSED perplexity 30 \({TIME}\) +\[ 25%\]$", first), first
    failed = next(line for line in result.outlines if "test_fit[n1000-seed43-half]" in line)
    assert re.search(r"FAILED AssertionError: too much", failed), failed
    assert not lines(result)
    again = fit.run("-v", "--resume")
    assert sum(", replayed" in line for line in again.outlines) == 6


def test_a_replayed_cell_is_a_dot(fit):
    fit.run()
    shown = fit.run("--resume")
    assert len(lines(shown)) == 2
    assert any(line.startswith("mlexp: 6 replayed") for line in shown.outlines)


def test_quiet_shows_dots_and_the_summary_alone(fit):
    result = fit.run("-q")
    assert not lines(result)
    assert any(re.match(r"[.Fx]{8} ", line) for line in result.outlines)
    assert any(line.startswith("fit: mean perplexity") for line in result.outlines)
    for flags in (("-qq",), ("--benchmark-quiet",)):
        assert not any(line.startswith("fit: mean") for line in fit.run(*flags).outlines)


@pytest.mark.parametrize(
    "flag", ["--benchmark-verbose", "--benchmark-columns=min,max", "--benchmark-group-by=func", "--benchmark-sort=min"]
)
def test_the_table_of_timings_is_there_where_it_is_asked_for(toy, flag):
    result = toy.run(flag, "-k", "m_one and seed1")
    assert [line for line in result.outlines if "Name (time" in line]
    assert not [line for line in result.outlines if line.startswith("toy: ")]
    assert not [line for line in toy.run("-k", "m_one and seed1").outlines if "Name (time" in line]


def test_other_benchmarks_keep_their_table(toy):
    (toy.folder / "test_plain.py").write_text("def test_plain(benchmark):\n    benchmark(sum, range(9))\n")
    result = toy.run("-k", "plain or m_one")
    assert [line for line in result.outlines if line.startswith("test_plain ")]
    assert not [line for line in result.outlines if line.startswith("test_toy[")]
    assert [line for line in result.outlines if line.startswith("toy: ")]


def test_several_functions_are_told_apart(toy):
    toy.bench.write_text(toy.bench.read_text() + "\ndef test_other(cell, seed):\n    cell.time(lambda: None)\n")
    result = toy.run("-k", "m_one or other")
    shown = lines(result)
    assert any(line.startswith("  toy m_one seed1 base: ") for line in shown)
    assert any(re.fullmatch(rf"  other seed1: {TIME}", line) for line in shown), shown
    assert any(line.startswith("toy other: median time") for line in result.outlines)


def test_the_reason_of_a_log_s_last_progress_line_is_kept_apart(toy):
    toy.edit("cell.record(things", "cell.progress(0, 0, 'a stand-in')\n    cell.record(things")
    assert any(re.fullmatch(rf"  m_one seed1 base: {TIME}", line) for line in toy.run("-k", "m_one").outlines)


# Text from entries alone.


def entry(arm, seed=1, status="passed", durations=(1.0,), study=None, machine="m", **record):
    declared = {"arm": "arm", "arms": ["base", "ours"], "baseline": "base", "outcome": "accuracy"}
    return Entry(
        f"q/bench_q.py::test_q[seed{seed}-{arm}]", f"{arm}{seed}", "q", {"seed": seed, "arm": arm},
        {"status": status, "machine": machine, **record}, list(durations), study=declared if study is None else study,
    )  # fmt: skip


def cells_of(line):
    return [text.strip() for text in line.split("  ") if text.strip()]


def test_ratios_are_made_within_blocks_and_machines():
    told = summary(
        [
            entry("base", 1, durations=[1.0], accuracy=0.5), entry("ours", 1, durations=[2.0], accuracy=0.25),
            entry("base", 2, durations=[10.0], accuracy=0.1), entry("ours", 2, durations=[80.0], accuracy=0.4),
            entry("ours", 3, durations=[9.0], accuracy=0.9), entry("base", 3, machine="other", accuracy=0.1),
        ]
    )  # fmt: skip
    assert cells_of(told[3]) == ["ours", "3", "51.7 %", "1.41x (2 pairs)", "9 s", "4x (2 pairs)"]


def test_a_zero_makes_a_difference_of_a_ratio():
    told = summary([entry("base", accuracy=0.0), entry("ours", accuracy=0.5)])
    assert cells_of(told[-1])[3] == "+0.5"


def test_without_a_pair_there_is_no_ratio():
    told = summary([entry("base", 1, accuracy=0.5), entry("ours", 2, accuracy=0.5)])
    assert cells_of(told[-1])[3] == "-"
    assert summary([entry("base", status="failed")]) == ["q: none of 1 cells finished"]


def test_a_record_without_its_outcome_is_shown_by_its_time():
    one, other = entry("base", accuracy=None), entry("ours", accuracy=0.5)
    assert summary([one, other])[0].startswith("q: median time;")
    assert cell_line(one) == "seed1 base: 1 s"


def test_an_outcome_that_is_no_number_is_shown_and_not_averaged():
    one = entry("base", study={"arm": "arm", "outcome": "timer"}, timer="host_clock")
    assert cell_line(one) == "seed1 base: timer host_clock (1 s)"
    assert summary([one])[0] == "q: median time"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (37.4, "ratio", "37.4"), (0.534, "fraction", "53.4 %"), (4.71e9, "FLOP", "4.71 GFLOP"), (3, "count", "3"),
        (2.3456, "nats", "2.346 nats"), (123456, "tokens", "123.5 k tokens"), (0.0123, "s", "12.3 ms"),
        (None, "s", "None"),
    ],
)  # fmt: skip
def test_amounts_for_a_reader(value, unit, text):
    assert amount(value, unit) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 ns"), (7.4e-7, "740 ns"), (0.0012, "1.2 ms"), (59.94, "59.9 s"), (250, "4.2 min"), (9000, "2.5 h")],
)
def test_durations_for_a_reader(value, text):
    assert seconds(value) == text
