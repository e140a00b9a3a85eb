"""The reports say of the committed records (`results/raw`) what they said before: verdicts, tables, figures' numbers.

Where a change is meant, `python -m tests.golden` writes the golden files anew; the difference is part of the review.
"""

import io

import pandas as pd
import pytest

from tests.golden.said import GOLDEN, drawn_in, numbers, questions, said_of

QUESTIONS = [folder.name for folder in sorted(GOLDEN.iterdir())]


def test_every_question_with_committed_records_has_a_golden_report():
    assert sorted(questions()) == QUESTIONS and len(QUESTIONS) >= 6


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_report_has_the_same_verdicts_tables_and_figures(question):
    golden = {str(f.relative_to(GOLDEN)): f.read_text() for f in (GOLDEN / question).rglob("*") if f.is_file()}
    said = said_of(question)
    assert sorted(said) == sorted(golden)
    for name, text in said.items():
        assert_same(name, text, golden[name])


def assert_same(name, text, golden):
    """Tables to six digits, so that another processor's rounding is no change; verdicts and prose to the letter."""
    if name.endswith(".csv"):
        one, other = (pd.read_csv(io.StringIO(part)) for part in (text, golden))
        pd.testing.assert_frame_equal(one, other, rtol=1e-6, atol=1e-12, obj=name)
    else:
        for line, other in zip(text.splitlines(), golden.splitlines(), strict=True):
            assert line == other, name


@pytest.mark.parametrize("other", ["arm,x\na,2.0001\n", "arm,x\nb,2.0\n", "arm,y\na,2.0\n", "arm,x\na,2.0\na,2.0\n"])
def test_a_changed_table_is_no_golden_one(other):
    assert_same("t.csv", "arm,x\na,2.0000000001\n", "arm,x\na,2.0\n")
    with pytest.raises(AssertionError):
        assert_same("t.csv", other, "arm,x\na,2.0\n")


def test_a_changed_verdict_is_no_golden_one():
    with pytest.raises(AssertionError):
        assert_same("t.md", "| H1 | refuted |", "| H1 | supported |")


def test_what_a_figure_draws_is_read_off_it():
    from mlexp.analysis import plots

    fig, ax = plots.figure("speed", xlabel="size", ylabel="ratio")
    ax.errorbar([1, 2], [3, 4], yerr=[[0.5, 0.5], [1, 1]])
    ax.bar([0], [7.5])
    ax.scatter([5], [6])
    drawn = drawn_in(fig)
    assert drawn.startswith("panel | speed | size | ratio\nline (1, 3) (2, 4)\n")
    assert "bars (1, 2.5) (1, 4) (2, 3.5) (2, 5)" in drawn and "dots (5, 6)" in drawn and "7.5)" in drawn
    assert numbers([(1, float("nan"))]) == "(1, nan)"
