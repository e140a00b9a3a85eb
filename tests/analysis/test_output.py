"""Text for people: Markdown, stand-ins, what a figure must say of itself."""

import re

import pandas as pd
import pytest

from mlexp.analysis import output, plots


def test_markdown_is_the_little_that_reports_need():
    html = str(
        output.paragraphs("A **b** *c* `d*e*` [f](https://g.org)\n\n- one\n- two <x>\n\n[h](javascript:x) 2 * 3 * 4")
    )
    assert html == (
        '<p>A <strong>b</strong> <em>c</em> <code>d*e*</code> <a href="https://g.org">f</a></p>\n'
        "<ul><li>one</li><li>two &lt;x&gt;</li></ul>\n<p>[h](javascript:x) 2 * 3 * 4</p>"
    )


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


@pytest.mark.parametrize("drawn", ["error bars", "bands", ""])
def test_a_figure_says_what_its_bars_are_or_is_refused(drawn):
    fig, ax = plots.figure("", "x", "y")
    table = pd.DataFrame({"arm": "a", "x": [1, 2], "y": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5]})
    if drawn == "error bars":
        plots.curves(ax, table, "x", "y", "arm", plots.looks(["a"]))
    elif drawn == "bands":
        plots.averages(ax, [1, 2], [[1, 2], [2, 3]], "a", plots.looks(["a"])["a"])
    else:
        plots.curves(ax, table, "x", "y", "arm", plots.looks(["a"]), low=None)
    out = output.Output("q", {}, None, dict)
    if drawn:
        with pytest.raises(ValueError, match=f"figure f.svg: it has {drawn}; say what they are"):
            out.figure(fig, "f.svg", "a rises")
        assert out.blocks == [] and out.files == {}
    out.figure(fig, "f.svg", "a rises", "y of x", "95 % t interval" if drawn else "", n="2 seeds")
    (block,) = out.blocks
    assert block["finding"] == "a rises" and block["caption"].endswith("n: 2 seeds.")
    assert ("Bars: 95 % t interval." in block["caption"]) == bool(drawn)


@pytest.mark.parametrize("name", ["f", "f.pdf", "f.SVG"])
def test_a_figure_s_name_says_svg_or_png(name):
    out = output.Output("q", {}, None, dict)
    with pytest.raises(ValueError, match=f"figure {name}: its name must end in .svg or .png"):
        out.figure(plots.figure()[0], name, "nothing")
    assert out.blocks == [] and out.files == {}


def test_the_page_s_svg_has_arms_and_leaves_out_what_the_page_says_itself():
    fig, ax = plots.figure("", "x", "y")
    ax.plot([1, 2], [1, 2], label="a & b")
    output.mark_arms(fig, ["a & b"])
    images = plots.save(fig, "the foot", "the title", "the subtitle")
    for said in ("the foot", "the title", "the subtitle"):
        assert said in images.svg.decode()
    svg, styles = output.inline_svg(images.svg.decode(), "x", "label", (images.title, images.foot))
    assert 'data-arm="a &amp; b"' in svg and not any(said in svg for said in ("the foot", "the title", "the subtitle"))
    assert " style=" not in svg and set(re.findall(r'class="(\w+)"', svg)) == set(styles)
    assert images.title > images.foot > 10


def test_two_verdicts_of_one_id_are_refused():
    out = output.Output("q", {}, None, dict)
    out.verdict("H1", "one", "supported")
    with pytest.raises(ValueError, match="verdict 'H1' is taken"):
        out.verdict("H1", "another", "refuted")
