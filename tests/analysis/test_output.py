"""Text for people: Markdown, rounded cells, verdicts."""

import numpy as np
import pytest

from mlexp.analysis import output


def test_markdown_is_the_little_that_reports_need():
    html = str(
        output.paragraphs("A **b** *c* `d*e*` [f](https://g.org)\n\n- one\n- two <x>\n\n[h](javascript:x) 2 * 3 * 4")
    )
    assert html == (
        '<p>A <strong>b</strong> <em>c</em> <code>d*e*</code> <a href="https://g.org">f</a></p>\n'
        "<ul><li>one</li><li>two &lt;x&gt;</li></ul>\n<p>[h](javascript:x) 2 * 3 * 4</p>"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (True, "yes"),
        (np.int64(1557611200), "1,557,611,200"),
        (0.123456, "0.1235"),
        (12345.678, "12,346"),
        (3.0, "3"),
        ("a", "a"),
        (float("inf"), "inf"),
    ],
)
def test_cells_are_rounded_for_people(value, text):
    assert output.cell_text(value) == text


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ({"weights": "random", "corpus": "pydoc_topics"}, "stand-in weights and corpus"),
        ({"weights": "trained on pydoc_topics", "corpus": "a folder"}, "stand-in weights"),
        ({"weights": "pretrained", "corpus": "pydoc_topics, split"}, "stand-in corpus"),
        ({"weights": "pretrained_q4_1", "corpus": None}, ""),
    ],
)
def test_a_stand_in_is_never_shown_as_the_real_thing(context, said):
    assert output.stand_ins(context) == said
