"""Figures: stable looks, plain tick labels, identical bytes, hostile names drawn as they are."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlexp.analysis import plots

HOSTILE = ["</svg><script>alert(1)</script>", "$\\frac{1}$", "a & b", "\u2028", "x" * 80]


def drawing(names=("plain", "tree"), foot="cpu · float32"):
    rows = [
        {"arm": name, "size": size, "value": 1.5 + i, "low": 1.2 + i, "high": 1.9 + i}
        for i, name in enumerate(names)
        for size in (1.2e8, 1.5e9)
    ]
    fig, ax = plots.figure("Speed-up", "parameters", "ratio")
    plots.curves(ax, pd.DataFrame(rows), "size", "value", "arm", plots.looks(names))
    plots.log_x(ax, ticks=[1.2e8, 1.5e9])
    plots.log_y(ax)
    plots.reference(ax, y=1, label="no gain")
    return plots.save(fig, foot)


def texts(images):
    root = ElementTree.fromstring(images.svg)
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_same_figure_gives_the_same_bytes():
    assert drawing() == drawing()


def test_a_pdf_is_the_same_again_and_a_saved_file_has_its_fonts(tmp_path):
    fig, ax = plots.figure("cost of $x", "n", "s")
    ax.plot([1, 2], [3, 4])
    assert plots.pdf(fig, "foot") == plots.pdf(fig, "foot") != plots.pdf(fig)
    fig.savefig(tmp_path / "a.pdf")
    for content in ((tmp_path / "a.pdf").read_bytes(), plots.pdf(fig)):
        assert b"/FontFile2" in content and b"/Type3" not in content
    assert mpl.rcParams["pdf.fonttype"] == mpl.rcParamsDefault["pdf.fonttype"] == 3  # what it is without mlexp


def drawn_on_log_axes():
    fig, ax = plots.figure("Speed-up", "parameters", "ratio")
    table = pd.DataFrame({"arm": ["plain", "tree"] * 2, "x": [120e6, 120e6, 1.5e9, 1.5e9], "y": [1.0, 1.5, 1.1, 1900]})
    plots.curves(ax, table, "x", "y", "arm", plots.looks(["plain", "tree"]))
    plots.log_x(ax, ticks=table["x"])
    plots.log_y(ax)
    return fig


def pdf_texts(content):
    """The texts of an uncompressed PDF: strings of two bytes a letter, with their kerning between them."""
    shown = re.findall(rb"\[ (.*?) \] TJ", content)
    return {b"".join(re.findall(rb"\((.*?)\)", text)).replace(b"\0", b"").decode("latin-1") for text in shown}


def test_a_figure_saved_to_a_file_is_finished_like_a_report_s(tmp_path):
    fig, wanted = drawn_on_log_axes(), {"120M", "1.5B", "100", "1k", "plain", "tree", "Speed-up"}
    with mpl.rc_context({"pdf.compression": 0}):
        for ending in ("pdf", "svg", "png"):
            drawn_on_log_axes().savefig(tmp_path / f"a.{ending}")  # each new: none finds what another finished
    found = texts(plots.Images(b"", (tmp_path / "a.svg").read_bytes()))
    assert wanted <= set(found) and not any("$" in text for text in found)
    in_pdf = pdf_texts((tmp_path / "a.pdf").read_bytes())
    assert wanted - {"Speed-up"} <= in_pdf and not any("$" in text for text in in_pdf)
    (tmp_path / "b.png").write_bytes(plots.save(fig).png)
    np.testing.assert_array_equal(*(mpl.image.imread(tmp_path / f"{name}.png")[..., :3] for name in "ab"))


def test_a_figure_saved_after_a_report_leaves_no_room_for_the_report_s_title(tmp_path):
    fig = drawn_on_log_axes()
    plots.save(fig, "foot", "A finding", "what is drawn")
    fig.savefig(tmp_path / "a.png")
    fresh = drawn_on_log_axes()
    fresh.savefig(tmp_path / "b.png")
    np.testing.assert_allclose(*(each.axes[0].get_position().bounds for each in (fig, fresh)), atol=0.005)
    fig.set_layout_engine("none")
    fig.savefig(tmp_path / "c.png", dpi=50)
    assert mpl.image.imread(tmp_path / "c.png").shape[:2] == (210, 360)


def test_ticks_are_plain_numbers_and_the_foot_is_printed():
    found = texts(drawing())
    assert {"120M", "1.5B", "2", "plain", "tree", "no gain", "Speed-up", "cpu · float32"} <= set(found)
    assert not [text for text in found if "$" in text]


def test_a_report_s_own_log_axis_gets_plain_ticks_too():
    fig, ax = plots.figure()
    ax.plot([1, 1e6], [1, 2])
    ax.set_xscale("log")
    assert "1M" in texts(plots.save(fig))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name):
    found = texts(drawing(names=("plain", name)))
    assert any(name.strip()[:31] in text for text in found) or not name.strip()


def test_looks_differ_and_stay_with_their_arm():
    arms = [f"arm{i}" for i in range(27)]
    looks = plots.looks(arms)
    for part in (("colour", "marker"), ("colour", "dash")):
        assert len({tuple(getattr(look, name) for name in part) for look in looks.values()}) == 27
    first = list(looks.values())[:7]
    assert len({look.colour for look in first}) == len({look.marker for look in first}) == 7
    assert plots.looks(arms)["arm5"] == looks["arm5"]


def labels(fig):
    (ax,) = fig.axes
    return {text.get_text(): text for text in ax.texts if isinstance(text, plots.EndLabel)}


@given(ends=st.lists(st.integers(0, 40).map(lambda tick: tick / 40), min_size=1, max_size=27))
@settings(max_examples=15, deadline=None)
def test_names_at_line_ends_keep_the_order_of_their_lines_and_do_not_overlap(ends):
    names = [f"a{i}" for i in range(len(ends))]
    table = pd.DataFrame([{"arm": n, "x": x, "y": x * y} for n, y in zip(names, ends, strict=True) for x in (0, 1)])
    fig, ax = plots.figure("", "x", "y")
    plots.curves(ax, table, "x", "y", "arm", plots.looks(names))
    plots.save(fig)
    drawn = labels(fig)
    order = sorted(range(len(ends)), key=lambda i: ends[i])
    heights = [drawn[names[i]].get_position()[1] for i in order]
    assert set(drawn) == set(names)
    for (i, one), (j, other) in itertools.pairwise(zip(order, heights, strict=True)):
        assert other > one or ends[i] == ends[j]
        assert abs(other - one) > 0.03 or len(ends) > 26


def test_names_with_room_between_them_stand_at_the_height_of_their_line_s_end():
    table = pd.DataFrame({"arm": list("aabbcc"), "x": [0, 1] * 3, "y": [0.0, 0.0, 0.0, 3.0, 0.0, 10.0]})
    fig, ax = plots.figure("", "x", "y")
    plots.curves(ax, table, "x", "y", "arm", plots.looks("abc"))
    plots.save(fig)
    drawn, low_high = labels(fig), np.array(ax.get_ylim())
    for name, end in zip("abc", (0, 3, 10), strict=True):
        share = (end - low_high[0]) / np.diff(low_high)[0]
        assert drawn[name].get_position()[1] == pytest.approx(share, abs=0.01), name


def test_the_mean_of_runs_has_scipy_s_interval_as_a_band():
    runs, base = np.random.default_rng(0).normal(size=(2, 5, 3))
    look = plots.looks(["a"])["a"]
    _, panels = plots.figures(2)
    plots.averages(panels[0], [1, 2, 3], runs, "a", look)
    plots.averages(panels[1], [1, 2, 3], runs, "a", look, against=base)
    wanted = (stats.ttest_1samp(runs, 0).confidence_interval(), stats.ttest_ind(runs, base).confidence_interval())
    for ax, interval in zip(panels, wanted, strict=True):
        ends = ax.collections[0].get_paths()[0].vertices
        for i, x in enumerate((1, 2, 3)):
            at = ends[ends[:, 0] == x, 1]
            assert (at.min(), at.max()) == pytest.approx((interval.low[i], interval.high[i]))
    np.testing.assert_allclose(panels[1].lines[0].get_ydata(), (runs - base).mean(axis=0))
    _, ax = plots.figure()
    plots.averages(ax, [1, 2, 3], runs[:1], "a", look)
    assert not ax.collections  # of one run there is none


def test_a_saved_figure_bears_its_title_and_is_as_before_afterwards():
    fig, ax = plots.figure("", "x", "y")
    ax.plot([1, 2])
    size, dots = tuple(fig.get_size_inches()), fig.get_dpi()
    images = plots.save(fig, "foot", "A long finding " * 12, "what is drawn")
    assert {"what is drawn", "foot"} <= set(texts(images))
    assert (tuple(fig.get_size_inches()), fig.get_dpi()) == (size, dots) and not fig.texts
    assert images.title > plots.save(fig, "foot", "Short", "what is drawn").title


def test_open_and_missing_intervals_do_not_break_the_drawing():
    table = pd.DataFrame({"arm": ["a", "a", "b"], "x": [1, 2, 1], "value": [1.0, 2.0, None], "low": [0.5, None, None]})
    table["high"] = [float("inf"), None, None]
    fig, ax = plots.figure()
    plots.curves(ax, table, "x", "value", "arm", plots.looks(["a", "b", "c"]))
    plots.save(fig)
    fig, ax = plots.figure()
    plots.intervals(ax, table.dropna(subset=["value"]), "arm", null=1.0)
    assert "a" in texts(plots.save(fig))


def test_an_arm_without_a_look_is_refused_rather_than_left_out():
    table = pd.DataFrame({"arm": ["a", "b"], "x": [1, 2], "value": [1.0, 2.0]})
    with pytest.raises(ValueError, match="no look for b; there are looks for a"):
        plots.curves(plots.figure()[1], table, "x", "value", "arm", plots.looks(["a"]))


def test_points_lie_behind_the_curves():
    _, ax = plots.figure()
    plots.points(
        ax, pd.DataFrame({"arm": ["a", "b"], "x": [1, 2], "y": [1, 2]}), "x", "y", "arm", plots.looks(["a", "b"])
    )
    assert len(ax.collections) == 2


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    drawing()
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (999, "999"),
        (1000, "1k"),
        (124e6, "124M"),
        (999.9e6, "1B"),
        (1.5576e9, "1.56B"),
        (-2e3, "-2k"),
    ],
)
def test_si(value, text):
    assert plots.si(value) == text
