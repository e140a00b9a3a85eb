"""Figures for reports and notebooks: one look for all questions, no global state, identical bytes when drawn again.

    fig, ax = plots.figure("speed-up", xlabel="parameters", ylabel="sequential / arm")
    looks = plots.looks(DECODERS)
    plots.curves(ax, table, x="n_params", y="value", by="decoder", looks=looks)
    plots.log_x(ax, ticks=table["n_params"])
    fig  # a notebook shows it; plots.save(fig).png has it as bytes, fig.savefig("speed.pdf") as a file

A report's figures bear their finding as title, what is drawn below it, and where it comes from at the foot: see `save`.

`ax` is a matplotlib Axes like any other; pyplot has no part in it.
"""

import contextlib
import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine, TightLayoutEngine
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike
from PIL import Image
from scipy.optimize import isotonic_regression

from mlexp.analysis.stats import t_bar

__all__ = [
    "Images", "Look", "averages", "curves", "figure", "figures", "intervals", "log_x", "log_y", "looks", "mark",
    "name_lines", "name_points", "pdf", "points", "reference", "save", "si",
]  # fmt: skip

INK, SOFT, FAINT, PAPER = "#24292f", "#59636e", "#d0d7de", "#ffffff"  # the page replaces these to suit its own colours
# Okabe and Ito's, sky blue and orange darkened: each has a contrast of 3 on white and on the page's dark ground
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b37c00", "#2e94cf", "#6e7781")
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
ARM = "arm="  # how the id of what is drawn of an arm begins; the page highlights arms by it
TITLE, FOOT = "mlexp-title", "mlexp-foot"  # ids of what a page says itself
BAND = "_band"  # the label of an interval that is drawn as a band; no legend shows it
DOTS, LABEL_SIZE = 150, 8  # dots an inch of a PNG; points of the names of lines
STYLE: dict[Any, Any] = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlexp",
    "pdf.fonttype": 42,  # TrueType, embedded: text that can be searched and edited, as journals want it
    "text.parse_math": False,  # names come from records: a dollar sign in one is not mathematics
}

Shared = bool | Literal["none", "all", "row", "col"]  # of the axes of several panels


class Look(NamedTuple):
    """How an arm is drawn, in every figure alike."""

    colour: str
    marker: str
    dash: str


class Images(NamedTuple):
    """A figure as bytes; `title` and `foot` are their room in points: what a page may cut off and say itself."""

    png: bytes
    svg: bytes
    title: float = 0.0
    foot: float = 0.0


class EndLabel(Annotation):
    """The name of a line at the right of the axes, or of a point at its right; its height is chosen when all of them
    are known."""

    beside: float | None = None  # the x of the point, where it is one


class Shown(Figure):
    """A matplotlib Figure that notebooks display. (They know plain ones only once pyplot was imported.)"""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = self.get_size_inches()
        return save(self).png, {"width": round(96 * width), "height": round(96 * height)}

    def savefig(self, *args: Any, **options: Any) -> None:
        """As matplotlib's, drawn as `save` draws it: plain ticks, names at the ends of lines, 150 dots an inch of a PNG
        unless `dpi` says otherwise; a PDF embeds its fonts as TrueType."""
        with _finished(self):
            super().savefig(*args, **{"dpi": DOTS} | options)


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """A look for each arm, by its place among all arms: pass the whole list, so that figures of a part agree.

    Up to seven arms differ in colour (told apart by colour-blind readers) and in marker; up to 28 in colour and
    dash, and in colour and marker.

    Args:
        arms: their names, in the order of drawing; a name that stands twice counts once.
    """
    names, n = list(dict.fromkeys(arms)), len(COLOURS)
    return {
        name: Look(COLOURS[i % n], MARKERS[(i + i // n) % len(MARKERS)], DASHES[i // n % len(DASHES)])
        for i, name in enumerate(names)
    }


def figure(
    title: str = "", xlabel: str = "", ylabel: str = "", size: tuple[float, float] = (7.2, 4.2)
) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes. For several: `figures`.

    Args:
        title: text as it is; a dollar sign in it is no mathematics.
        xlabel: what is on the x axis, with its unit.
        ylabel: the same of the y axis.
        size: width and height in inches.
    """
    fig, panels = figures(1, size=size)
    panels[0].set(title=title, xlabel=xlabel, ylabel=ylabel)  # `save` gives the title its look
    return fig, panels[0]


def figures(
    columns: int,
    rows: int = 1,
    size: tuple[float, float] = (9.6, 4.2),
    sharex: Shared = False,
    sharey: Shared = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of several panels, its axes in one list, row by row.

    Args:
        columns: panels beside each other.
        rows: panels below each other.
        size: width and height of the whole, in inches.
        sharex: whether, or along what, panels share their x axis, as matplotlib's `subplots` has it.
        sharey: the same of the y axis.
    """
    with mpl.rc_context(STYLE):
        fig = Shown(figsize=size, layout="constrained")
        FigureCanvasAgg(fig)
        return fig, list(fig.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).flat)


def curves(
    ax: Axes,
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    looks: dict[str, Look],
    low: str | None = "low",
    high: str | None = "high",
    labels: bool = True,
    dodge: float = 1.0,
) -> None:
    """A line for each arm, named at its end.

    Args:
        ax: where to draw.
        table: a row a point, such as `Pairs.ratios()` with a numeric column for x.
        x: its column for the x axis, numbers.
        y: the same for the y axis.
        by: its column of arms.
        looks: how each arm is drawn, in the order of drawing: see `looks`.
        low: the column of the interval's lower ends, drawn as error bars where the table has both.
        high: that of its upper ends.
        labels: whether the lines are named.
        dodge: above 1, the points of one x stand side by side on a logarithmic axis, each so many times further right
            than the last, so that their intervals are seen; say so where it is used.

    Raises:
        ValueError: for an arm without a look.
    """
    _check_known(table[by], looks)
    with mpl.rc_context(STYLE):
        present = [arm for arm in looks if arm in set(table[by])]
        for i, arm in enumerate(present):
            line = table[table[by] == arm].dropna(subset=[x, y]).sort_values(x)
            if line.empty:
                continue
            line = line.assign(**{x: line[x] * dodge ** (i - (len(present) - 1) / 2)}) if dodge != 1 else line
            look, bars = looks[arm], low in line and high in line
            yerr = _errors(line[y], line[low], line[high]) if bars else None
            style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": look.dash}
            drawn = ax.errorbar(line[x], line[y], yerr, **style, capsize=2.5, elinewidth=1, label=_short(arm))
            mark(arm, *drawn.get_children())
            if labels:
                _name_end(ax, arm, look.colour, line[x].iloc[-1], line[y].iloc[-1])


def averages(
    ax: Axes, x: ArrayLike, runs: ArrayLike, arm: str, look: Look, marks: bool = False, against: ArrayLike | None = None
) -> None:
    """The mean of several runs' curves as a line, with the 95 % t interval of each point as a band.

    Args:
        ax: where to draw.
        x: the points' places, of length n.
        runs: the curves, of shape (runs, n); of a single one there is no band.
        arm: whose they are.
        look: how that arm is drawn.
        marks: whether each point has its marker.
        against: curves of independent runs whose mean is subtracted; the interval is that of the difference, of one
            variance. For paired runs give the differences themselves as `runs`.
    """
    groups = [np.atleast_2d(np.asarray(each, float)) for each in (runs, against) if each is not None]
    mean = groups[0].mean(axis=0) - (groups[1].mean(axis=0) if against is not None else 0)
    df = sum(len(group) - 1 for group in groups)
    with mpl.rc_context(STYLE):
        style: dict[str, Any] = {"color": look.colour, "linestyle": look.dash, "marker": look.marker if marks else None}
        mark(arm, *ax.plot(x, mean, label=_short(arm), **style))
        if all(len(group) > 1 for group in groups):
            squares = sum(((group - group.mean(axis=0)) ** 2).sum(axis=0) for group in groups)
            half = t_bar(df) * np.sqrt(squares / df * sum(1 / len(group) for group in groups))
            mark(arm, ax.fill_between(x, mean - half, mean + half, color=look.colour, alpha=0.15, lw=0, label=BAND))


def name_lines(panels: Iterable[Axes], looks: Mapping[str, Look]) -> None:
    """Name the lines of arms at their ends, each once: in the last panel in which it is drawn."""
    last = {}
    for ax in panels:
        for line in ax.get_lines():
            if (arm := str(line.get_label())) in looks and np.size(line.get_xdata()):
                last[arm] = (ax, line)
    for arm, (ax, line) in last.items():
        x, y = (np.asarray(values, float) for values in line.get_data())
        end = int(np.nanargmax(np.where(np.isfinite(y), x, -np.inf)))
        _name_end(ax, arm, looks[arm].colour, x[end], y[end])


def name_points(ax: Axes, table: pd.DataFrame, x: str, y: str, by: str, looks: Mapping[str, Look]) -> None:
    """Name the point of each arm at its right; names of points at one x stand below each other."""
    for arm, at_x, at_y in table[[by, x, y]].itertuples(index=False, name=None):
        _name_end(ax, arm, looks[arm].colour, at_x, at_y).beside = at_x


def mark(arm: str, *artists: Artist) -> None:
    """Say of what is drawn whose it is: the page highlights it with the arm."""
    for artist in artists:
        artist.set_gid(f"{ARM}{arm}")


def _name_end(ax: Axes, arm: str, colour: str, x: float, y: float) -> EndLabel:
    with mpl.rc_context(STYLE):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6, "shrinkB": 3, "relpos": (0, 0.5)}
        label = EndLabel(
            _short(arm), (x, y), (1.03, 0.5), "data", "axes fraction", arrowprops=line, annotation_clip=False,
            color=colour, fontsize=LABEL_SIZE, va="center",
        )  # fmt: skip
        mark(arm, label)
        ax.add_artist(label)
        label.set_clip_on(False)
    return label


def _part_labels(ax: Axes) -> None:
    """Give the names of lines and points heights near their ends, far enough apart to be read."""
    labels = [artist for artist in ax.texts if isinstance(artist, EndLabel)]
    ax.get_xlim(), ax.get_ylim()  # matplotlib scales its axes when they are asked for, or drawn
    figure: Any = ax.get_figure(root=True)
    height = ax.get_position().height * figure.get_size_inches()[1]
    to_axes = ax.transData + ax.transAxes.inverted()
    for beside in dict.fromkeys(label.beside for label in labels):
        group = [label for label in labels if label.beside == beside]
        ends = to_axes.transform([label.xy for label in group])
        order = np.argsort(ends[:, 1], kind="stable")
        gap = min(1.2 * LABEL_SIZE / 72 / height, 1.06 / max(len(group) - 1, 1))
        steps = gap * np.arange(len(group))
        heights = isotonic_regression(np.clip(ends[order, 1], 0, 1) - steps).x
        heights = np.clip(heights, -0.03, 1.03 - steps[-1]) + steps
        for i, at in zip(order, heights, strict=True):
            group[i].set_position((1.03 if beside is None else ends[i, 0] + 0.015, at))


def points(ax: Axes, table: pd.DataFrame, x: str, y: str, by: str, looks: dict[str, Look]) -> None:
    """A faint dot for each row, behind the curves: the blocks that their means hide.

    Args:
        ax: where to draw.
        table: a row a dot, such as `Pairs.blocks` with a numeric column for x.
        x: its column for the x axis, numbers.
        y: the same for the y axis.
        by: its column of arms.
        looks: how each arm is drawn.

    Raises:
        ValueError: for an arm without a look.
    """
    _check_known(table[by], looks)
    with mpl.rc_context(STYLE):
        for arm, look in looks.items():
            dots = table[table[by] == arm]
            mark(arm, ax.scatter(dots[x], dots[y], s=9, color=look.colour, alpha=0.35, linewidths=0, zorder=1.5))


def intervals(
    ax: Axes, table: pd.DataFrame, name: str, looks: dict[str, Look] | None = None, null: float | None = None
) -> None:
    """A point with its interval for each row of `table`, top to bottom, with a dashed line at `null`.

    Args:
        ax: where to draw.
        table: with the columns `value`, `low` and `high`, as `Pairs.ratios()` and `differences()` give them; where it
            has a column `filled`, the markers of rows that are not are hollow.
        name: its column of labels.
        looks: how each label is drawn; those without a look alike.
        null: where the dashed line stands, such as 1 for ratios; None: nowhere.
    """
    with mpl.rc_context(STYLE):
        for i, row in enumerate(table.to_dict("records")):
            look = (looks or {}).get(row[name], Look(COLOURS[0], "o", "-"))
            error = _errors(*(pd.Series([row[key]]) for key in ("value", "low", "high")))
            fill = "full" if row.get("filled", True) else "none"
            style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "fillstyle": fill}
            drawn = ax.errorbar(row["value"], i, xerr=error, capsize=3, elinewidth=1.4, **style)
            mark(str(row[name]), *drawn.get_children())
        ax.set_yticks(range(len(table)), [_short(value) for value in table[name]])
        ax.set_ylim(len(table) - 0.5, -0.5)
        if null is not None:
            reference(ax, x=null)


def reference(ax: Axes, x: float | None = None, y: float | None = None, label: str = "") -> None:
    """A dashed line at a value to compare with."""
    with mpl.rc_context(STYLE):
        for value, draw in ((x, ax.axvline), (y, ax.axhline)):
            if value is not None:
                draw(value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, label=label or None)
        if label and y is not None:
            ax.annotate(
                label, (0, y), xycoords=("axes fraction", "data"), xytext=(4, 3), textcoords="offset points", fontsize=8
            )


def log_x(ax: Axes, ticks: Iterable[float] | None = None) -> None:
    """A logarithmic x axis, labels in plain numbers (124M, 1.56B), at the values measured where `ticks` gives them."""
    ax.set_xscale("log")
    _at(ax.xaxis, ticks)


def log_y(ax: Axes, ticks: Iterable[float] | None = None) -> None:
    """A logarithmic y axis, labelled in plain numbers, at `ticks` where given."""
    ax.set_yscale("log")
    _at(ax.yaxis, ticks)


def _at(axis: Axis, ticks: Iterable[float] | None) -> None:
    if ticks is not None:
        axis.set_major_locator(FixedLocator(_apart(sorted(set(map(float, ticks))))))


def si(value: float) -> str:
    """A number in three digits with a letter for its thousands: 124M, 1.56B, 0.25."""
    if not np.isfinite(value) or value == 0 or abs(value) < 1000:
        return f"{value:.3g}"
    steps = {1e3: "k", 1e6: "M", 1e9: "B", 1e12: "T"}
    step, letter = next(((size, name) for size, name in steps.items() if abs(value) < 999.5 * size), (1e12, "T"))
    return f"{value / step:.3g}{letter}"


def save(fig: Figure, foot: str = "", title: str = "", subtitle: str = "", png: bool = True) -> Images:
    """The figure as SVG for the page and PNG (150 dots an inch) for elsewhere; the same figure gives the same bytes.

    Args:
        fig: the figure; it is as before afterwards.
        foot: small print below it: where its numbers come from.
        title: what it shows, a sentence, above it.
        subtitle: what is drawn, with which intervals, of how many.
        png: whether there is a PNG, which takes twice as long as the SVG; else its bytes are empty.
    """
    raster, svg = io.BytesIO(), io.BytesIO()
    with _finished(fig, foot, title, subtitle) as room:
        before = fig.get_dpi()
        fig.set_dpi(DOTS)
        canvas: Any = FigureCanvasAgg(fig)
        layout = fig.get_layout_engine()
        if png:
            canvas.draw()
            # without the alpha, which is 1 throughout: half as long to compress as what print_png writes, no larger
            opaque = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
            opaque.save(raster, "png", dpi=(DOTS, DOTS), compress_level=1)
        elif layout is not None:
            layout.execute(fig)
        fig.set_layout_engine("none")  # everything has its place: to find it again takes as long as to draw
        vector: Any = FigureCanvasSVG(fig)
        vector.print_svg(svg, metadata={"Date": None, "Creator": None})
        fig.set_layout_engine(layout)
        FigureCanvasAgg(fig)
        fig.set_dpi(before)
    return Images(raster.getvalue(), svg.getvalue(), *(72 * inches for inches in room))


def pdf(fig: Figure, foot: str = "", title: str = "", subtitle: str = "") -> bytes:
    """The figure as PDF for print, as `save` draws it; its fonts are embedded as TrueType, so that text stays text."""
    content = io.BytesIO()
    with _finished(fig, foot, title, subtitle):
        metadata = {"CreationDate": None, "Creator": None, "Producer": None}
        Figure.savefig(fig, content, format="pdf", metadata=metadata)  # not Shown's, which would drop title and foot
    return content.getvalue()


@contextlib.contextmanager
def _finished(fig: Figure, foot: str = "", title: str = "", subtitle: str = "") -> Iterator[tuple[float, float]]:
    """The figure in the look of all, for the time being with its title and its foot, which make it higher by so many
    inches."""
    with mpl.rc_context(STYLE):
        for ax in fig.axes:
            ax.set_title(ax.get_title() or ax.get_title("left"), loc="left")
            ax.set_title("", loc="center")
            _plain_ticks(ax.xaxis)
            _plain_ticks(ax.yaxis)
            _part_labels(ax)
            if legend := ax.get_legend():  # a report's own call knows nothing of STYLE
                legend.set_frame_on(False)
                for text in legend.get_texts():
                    text.set_color(INK)
        width, height = fig.get_size_inches()
        printed, (above, below) = _frame(fig, foot, title, subtitle)
        try:
            yield above, below
        finally:
            for text in printed:
                text.remove()
            fig.set_size_inches(width, height)
            _leave_room(fig, 0, 0)


def _frame(fig: Figure, foot: str, title: str, subtitle: str) -> tuple[list[Text], tuple[float, float]]:
    """Print title and subtitle above everything else and `foot` below; the room of both, in inches."""
    width, height = fig.get_size_inches()
    heads, subs, feet = (
        textwrap.wrap(text, int(width * letters)) for text, letters in ((title, 10), (subtitle, 15), (foot, 17))
    )
    above = 0.21 * len(heads) + 0.16 * len(subs) + (0.12 if heads or subs else 0)
    below = 0.135 * len(feet) + 0.08 if feet else 0
    whole = height + above + below
    fig.set_size_inches(width, whole)
    _leave_room(fig, above / whole, below / whole)

    def put(lines: list[str], top: float, gid: str, **style: Any) -> list[Text]:
        return [fig.text(0.01, top / whole, "\n".join(lines), gid=gid, **style)] if lines else []

    printed = put(heads, whole - 0.05, TITLE, fontsize=11, fontweight="bold", va="top", linespacing=1.3)
    printed += put(subs, whole - 0.06 - 0.21 * len(heads), TITLE, fontsize=8.5, color=SOFT, va="top", linespacing=1.25)
    printed += put(feet, 0.05, FOOT, fontsize=7, color="#6e7781", va="bottom", linespacing=1.3)
    return printed, (above, below)


def _leave_room(fig: Figure, above: float, below: float) -> None:
    """Keep the panels out of these shares of the height; of a figure whose layout was switched off nothing is moved."""
    layout = fig.get_layout_engine()  # of `figures`: constrained
    if isinstance(layout, ConstrainedLayoutEngine | TightLayoutEngine):
        layout.set(rect=(0, below, 1, 1 - above - below))


def _plain_ticks(axis: Axis) -> None:
    """Numbers on a log axis. Matplotlib's are powers of ten in mathematics (switched off) and none within a decade."""
    if axis.get_scale() != "log":
        return
    low, high = sorted(axis.get_view_interval())
    if not isinstance(axis.get_major_locator(), FixedLocator):
        narrow, wide = (
            MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]),
            LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)),
        )
        axis.set_major_locator(narrow if high < 12 * low else wide)
    axis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))
    axis.set_minor_locator(NullLocator())


def _check_known(arms: pd.Series, looks: dict[str, Look]) -> None:
    unknown = [str(arm) for arm in arms.unique() if arm not in looks]
    if unknown:
        raise ValueError(f"no look for {', '.join(unknown)}; there are looks for {', '.join(looks)}")


def _short(name: object) -> str:
    """A name that leaves room for the axes."""
    text = str(name)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _errors(value: pd.Series, low: pd.Series, high: pd.Series) -> np.ndarray:
    """Distances to both ends; none where the interval is not known or open."""
    both = np.array([value - low, high - value], dtype=float)
    return np.where(np.isfinite(both), np.maximum(both, 0), 0)


def _apart(ticks: list[float], ratio: float = 1.25) -> list[float]:
    """`ticks` without those whose labels would run into their neighbour's on a log axis."""
    apart: list[float] = []
    for tick in ticks:
        if not apart or tick > apart[-1] * ratio:
            apart.append(tick)
    return apart
