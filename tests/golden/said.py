"""What the reports say of the committed records, as text: verdicts, prose, tables, the numbers in figures."""

import functools
from pathlib import Path
from unittest import mock

import numpy as np
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from mlexp.analysis import output, page, plots, report, sections
from mlexp.analysis.files import read

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "results" / "raw"
GOLDEN = Path(__file__).parent / "reports"
NO_PICTURE = plots.Images(b"", b'<svg viewBox="0 0 1 1" width="1" height="1"></svg>')


def records_of(question: str) -> list[Path]:
    """The committed files that hold records of a question."""
    return [file for file in sorted(RECORDS.glob("*.json")) if f'"question": "{question}"' in file.read_text()]


def questions() -> list[str]:
    """The questions that have committed records and a report."""
    return [name for name in report.questions(ROOT / "benches") if records_of(name)]


def said_of(question: str) -> dict[str, str]:
    """Everything that the report of a question says of its committed records: file name -> text."""
    figures = []

    def remember(fig, **words):  # in place of making pictures, which is most of the time that a report takes
        figures.append(drawn_in(fig))
        return NO_PICTURE

    file = report.questions(ROOT / "benches")[question]
    with mock.patch.object(output.plots, "save", remember):
        found = sections.sections_of(question, file, read(*records_of(question)))
    drawn, said = iter(figures), {}
    for section in found:
        section.environment = {}  # versions and commits of the records: no finding
        name = "first" if len(section.folder.parts) == 1 else section.folder.name
        said[f"{question}/{name}.md"] = page.summary(section)
        tables = {name: data for name, data in section.out.files.items() if name.endswith(".csv")}
        said |= {f"{question}/{name}/{table}": data.decode() for table, data in tables.items()}
        titles = [block["name"] for block in section.out.blocks if block["kind"] == "figure"]
        said[f"{question}/{name}.figures.txt"] = "\n\n".join(f"# {title}\n{next(drawn)}" for title in titles) + "\n"
    return said


def drawn_in(fig: Figure) -> str:
    """The texts and the numbers of a figure, panel by panel."""
    lines = []
    for ax in fig.axes:
        lines.append(
            " | ".join(["panel", ax.get_title(loc="left") or ax.get_title(), ax.get_xlabel(), ax.get_ylabel()])
        )
        for axis in (ax.xaxis, ax.yaxis):
            if isinstance(getattr(axis.get_major_formatter(), "func", None), functools.partial):  # names, not numbers
                lines.append("ticks " + " | ".join(label.get_text() for label in axis.get_ticklabels()))
        lines += [f"line {numbers(line.get_xydata())}" for line in ax.lines]
        for drawn in ax.collections:
            if isinstance(drawn, PathCollection):
                lines.append(f"dots {numbers(drawn.get_offsets())}")
            elif isinstance(drawn, LineCollection):
                lines.append(f"bars {numbers(np.concatenate([np.zeros((0, 2)), *drawn.get_segments()]))}")
        lines += [f"patch {numbers(patch.get_path().vertices @ _scale(patch))}" for patch in ax.patches]
        lines += [
            f"text {text.get_text()!r} at {numbers([text.get_position()])}" for text in ax.texts if text.get_text()
        ]
        if legend := ax.get_legend():
            lines.append("legend " + " | ".join(text.get_text() for text in legend.get_texts()))
    return "\n".join(lines)


def _scale(patch):
    """Of a bar, from its unit square to data: width and height."""
    return np.diag([patch.get_width(), patch.get_height()]) if hasattr(patch, "get_width") else np.eye(2)


def numbers(values) -> str:
    """Points as text, five significant digits each."""
    points = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan).reshape(-1, 2)
    return " ".join(f"({x:.5g}, {y:.5g})" for x, y in points)
