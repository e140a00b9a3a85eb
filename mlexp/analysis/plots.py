"""Figures for reports and notebooks: one look for all questions, no global state, identical bytes when drawn again.

    fig, ax = plots.figure("speed-up", xlabel="parameters", ylabel="sequential / arm")
    looks = plots.looks(DECODERS)
    plots.curves(ax, table, x="n_params", y="value", by="decoder", looks=looks)
    plots.log_x(ax, ticks=table["n_params"])
    fig  # a notebook shows it; plots.save(fig).png has it as bytes, fig.savefig("speed.pdf") as a file

`ax` is a matplotlib Axes like any other; pyplot has no part in it.
"""

import contextlib
import io
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

__all__ = [
    "Images", "Look", "curves", "figure", "figures", "intervals", "log_x", "log_y", "looks", "pdf", "points",
    "reference", "save", "si",
]  # fmt: skip

INK, FAINT, PAPER = "#24292f", "#d0d7de", "#ffffff"  # the page replaces these to suit its own colours
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6d31")
MARKERS, DASHES = "osD^vPX", ("-", "--", ":")
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
    "axes.titlesize": 11,
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
    """A figure as bytes."""

    png: bytes
    svg: bytes


class Shown(Figure):
    """A matplotlib Figure that notebooks display. (They know plain ones only once pyplot was imported.)"""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = self.get_size_inches()
        return save(self).png, {"width": round(96 * width), "height": round(96 * height)}

    def savefig(self, *args: Any, **options: Any) -> None:
        """As matplotlib's, in the look of `save`; a PDF embeds its fonts as TrueType."""
        with mpl.rc_context(STYLE):
            super().savefig(*args, **options)


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """A look for each arm, by its place among all arms: pass the whole list, so that figures of a part agree.

    Colours are Okabe and Ito's, told apart by colour-blind readers; markers and dashes differ too, for more than seven.

    Args:
        arms: their names, in the order of drawing; a name that stands twice counts once.
    """
    names, n = list(dict.fromkeys(arms)), len(OKABE_ITO)
    return {
        name: Look(OKABE_ITO[i % n], MARKERS[(i + i // n) % len(MARKERS)], DASHES[i // n % len(DASHES)])
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
) -> None:
    """A line for each arm, named beside the axes in the order in which the lines end.

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

    Raises:
        ValueError: for an arm without a look.
    """
    _check_known(table[by], looks)
    ends: list[tuple[float, int, ErrorbarContainer]] = []
    with mpl.rc_context(STYLE):
        for arm in looks:
            line = table[table[by] == arm].dropna(subset=[x, y]).sort_values(x)
            if line.empty:
                continue
            look, bars = looks[arm], low in line and high in line
            yerr = _errors(line[y], line[low], line[high]) if bars else None
            style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": look.dash}
            drawn = ax.errorbar(line[x], line[y], yerr, **style, capsize=2.5, elinewidth=1, label=_short(arm))
            ends.append((-line[y].iloc[-1], len(ends), drawn))
        if labels and ends:
            ax.legend(handles=[drawn for *_, drawn in sorted(ends)], loc="upper left", bbox_to_anchor=(1.01, 1.02))


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
            ax.scatter(dots[x], dots[y], s=9, color=look.colour, alpha=0.35, linewidths=0, zorder=1.5)


def intervals(
    ax: Axes, table: pd.DataFrame, name: str, looks: dict[str, Look] | None = None, null: float | None = None
) -> None:
    """A point with its interval for each row of `table`, top to bottom, with a dashed line at `null`.

    Args:
        ax: where to draw.
        table: with the columns `value`, `low` and `high`, as `Pairs.ratios()` and `differences()` give them.
        name: its column of labels.
        looks: how each label is drawn; those without a look alike.
        null: where the dashed line stands, such as 1 for ratios; None: nowhere.
    """
    with mpl.rc_context(STYLE):
        for i, row in enumerate(table.to_dict("records")):
            look = (looks or {}).get(row[name], Look(OKABE_ITO[0], "o", "-"))
            error = _errors(*(pd.Series([row[key]]) for key in ("value", "low", "high")))
            ax.errorbar(row["value"], i, xerr=error, color=look.colour, marker=look.marker, capsize=3, elinewidth=1.4)
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


def save(fig: Figure, foot: str = "") -> Images:
    """The figure as PNG (150 dots an inch) for people and SVG for the page, `foot` printed below; the same figure gives
    the same bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    with _finished(fig, foot):
        fig.savefig(png, format="png", dpi=150, metadata={"Software": None})
        layout = fig.get_layout_engine()
        fig.set_layout_engine("none")  # everything has its place: to find it again takes as long as to draw
        fig.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        fig.set_layout_engine(layout)
    return Images(png.getvalue(), svg.getvalue())


def pdf(fig: Figure, foot: str = "") -> bytes:
    """The figure as PDF for print, as `save` draws it; its fonts are embedded as TrueType, so that text stays text."""
    content = io.BytesIO()
    with _finished(fig, foot):
        fig.savefig(content, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return content.getvalue()


@contextlib.contextmanager
def _finished(fig: Figure, foot: str) -> Iterator[None]:
    """The figure in the look of all, with `foot` for the time being."""
    with mpl.rc_context(STYLE):
        printed = _print_foot(fig, foot)
        for ax in fig.axes:
            ax.set_title(ax.get_title() or ax.get_title("left"), loc="left")
            ax.set_title("", loc="center")
            _plain_ticks(ax.xaxis)
            _plain_ticks(ax.yaxis)
            if legend := ax.get_legend():  # a report's own call knows nothing of STYLE
                legend.set_frame_on(False)
                for text in legend.get_texts():
                    text.set_color(INK)
        yield
        printed.remove()


def _print_foot(fig: Figure, foot: str) -> Text:
    """`foot` in small print below everything else, which makes room for it."""
    width, height = fig.get_size_inches()
    lines = textwrap.wrap(foot, int(width * 17))
    room = (len(lines) * 0.135 + 0.08) / height if lines else 0
    layout: Any = fig.get_layout_engine()  # of `figures`: constrained
    layout.set(rect=(0, room, 1, 1 - room))
    return fig.text(0.01, 0.05 / height, "\n".join(lines), fontsize=7, color="#6e7781", va="bottom", linespacing=1.3)


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
    return text if len(text) <= 32 else f"{text[:31]}…"


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
