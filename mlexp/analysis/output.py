"""What one report says, collected in memory and written at once: nothing half-finished ever stands on disk."""

import html
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mlexp.analysis import columns, plots
from mlexp.analysis.markup import code_spans, paragraphs
from mlexp.analysis.results import describe
from mlexp.analysis.stats import Verdict
from mlexp.record import METRICS

if TYPE_CHECKING:
    from mlexp.analysis.data import Data
    from mlexp.analysis.findings import Finding

STAND_INS = {"weights": ("random", "trained"), "corpus": ("pydoc_topics",)}  # how the values of stand-ins begin
PAGE_ROWS = 400  # of a table on the page, where it scrolls and sorts


class Output:
    """Where a report puts its tables, figures, verdicts and files, for one question in one context.

    `data`: the study's records as its claims see them; None where nothing declares what the study is.
    `context` is what all its records share; `unfinished` the records of cells that failed or ran out of memory;
    `remarks` what stands once, and at the foot of each figure, about how the records were measured; `grid` what is
    missing of it. `also`: figures are made in this format too, png or pdf. `lead` is the name of the figure that stands
    with the answer.
    """

    def __init__(
        self,
        question: str,
        context: dict[str, Any],
        unfinished: pd.DataFrame,
        series: Callable[[str], Mapping[str, np.ndarray]],
        dirty: bool = False,
        remarks: str = "",
        data: "Data | None" = None,
        also: str = "",
        grid: str = "",
    ):
        self.question, self.context, self.unfinished = question, context, unfinished
        self.line, self.dirty, self.remarks = describe(context), dirty, remarks
        self.stand_ins = stand_ins(context)
        self.data, self.also, self.grid = data, also, grid
        self.answer = self.lead = ""
        self.findings: Mapping[str, Finding] = {}
        self.blocks: list[dict[str, Any]] = []
        self.verdicts: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self._series = series

    def series(self, row_or_key: Any) -> Mapping[str, np.ndarray]:
        """The named arrays of a record, by its key or its row; empty where it has none."""
        key = row_or_key
        if not isinstance(key, str):
            key = key["key"] if isinstance(key, pd.Series | Mapping) else key.key
        return self._series(key)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.blocks.append({"kind": "heading", "text": text})

    def text(self, markdown: str) -> None:
        """A paragraph or a list, in Markdown: emphasis, code, links, `- ` items; no HTML."""
        self.blocks.append({"kind": "text", "text": markdown.strip(), "html": paragraphs(markdown)})

    def table(self, df: pd.DataFrame, name: str, caption: str = "") -> None:
        """A table: at full precision in the CSV file `name`, as people read it (`columns`) on the page."""
        df = df.reset_index(drop=df.index.names == [None])
        df.columns = [" ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name) for name in df.columns]
        self._add(name, ".csv", df.to_csv(index=False, lineterminator="\n").encode())
        metrics = self.data.metrics if self.data else METRICS
        arm = self.arm_of(df)
        shown = columns.columns(df.head(PAGE_ROWS), metrics, arm)
        block = {"name": name, "caption": caption, "left": len(df) - len(df.head(PAGE_ROWS))}
        whose = [str(value) for value in df[arm].head(PAGE_ROWS)] if arm else []
        rows = list(zip(*(each.cells for each in shown), strict=True))
        heads = [each._asdict() | {"cells": len(each.cells)} for each in shown]
        self.blocks.append({"kind": "table", **block, "heads": heads, "rows": rows, "arms": whose})

    def arm_of(self, df: pd.DataFrame) -> str:
        """The column of a table that says of which arm each row is; empty where there is none."""
        if self.data is None:
            return ""
        arms = set(self.data.arms)
        return next((str(name) for name in df if len(df) and set(df[name].map(str)) & arms), "")

    def figure(
        self,
        fig: Figure,
        name: str,
        finding: str,
        measure: str = "",
        bars: str = "",
        n: str = "",
        shown: Literal["open", "folded", "linked"] = "open",
    ) -> None:
        """A figure, as SVG; as PNG too if `name` says so or PNGs are asked for. A file alone says all that its reader
        must know.

        Args:
            fig: the figure.
            name: its file name, with .svg or .png.
            finding: what it shows, a sentence made from the numbers that it draws: its title.
            measure: what is drawn, with its unit.
            bars: what its error bars or bands are. Raises ValueError where it has some and this is empty.
            n: of how many it speaks, where those are not all replicates of the study.
            shown: how the page has it: open, folded away until it is asked for, or as a link to its file alone.
        """
        if not bars and (drawn := bars_of(fig)):
            raise ValueError(f"figure {name}: it has {drawn}; say what they are: bars='95 % t interval over seeds'")
        sentences = [measure, f"Bars: {bars}" if bars else "", f"n: {n or self.blocks_in_words()}"]
        subtitle = " ".join(f"{text.rstrip('.')}." for text in sentences if text.removeprefix("n: "))
        if self.data is not None:
            mark_arms(fig, self.data.arms)
        words: dict[str, str] = {"foot": self.foot, "title": finding, "subtitle": subtitle}
        stem, _, ending = name.rpartition(".")
        if ending not in ("svg", "png"):
            raise ValueError(f"figure {name}: its name must end in .svg or .png")
        images = plots.save(fig, **words, png="png" in (ending, self.also))
        self._add(f"{stem}.svg", ".svg", images.svg)
        if images.png:
            self._add(f"{stem}.png", ".png", images.png)
        if self.also == "pdf":
            self._add(f"{stem}.pdf", ".pdf", plots.pdf(fig, **words))
        prefix = f"{self.mark}-{len(self.blocks)}"
        svg, styles = Markup(""), dict[str, str]()
        if shown != "linked":
            svg, styles = inline_svg(images.svg.decode(), prefix, f"{finding} {subtitle}", (images.title, images.foot))
        block = {
            "finding": finding,
            "caption": subtitle,
            "foot": self.origin,
            "svg": svg,
            "styles": styles,
            "shown": shown,
        }
        self.blocks.append({"kind": "figure", "name": name, **block})

    def blocks_in_words(self) -> str:
        """How many replicates there are: 5 seeds; empty where nothing declares what they are."""
        return self.data.blocks_in_words() if self.data else ""

    def verdict(
        self,
        id: str,
        claim: str,
        verdict: str,
        effect: str = "",
        interval: str | tuple[float, float] | None = None,
        why: str = "",
        marks: Sequence[str] = (),
        more: str = "",
        extent: str = "",
    ) -> None:
        """What the data say of claim `id`: its text, the effect in words, its interval, the reason; `marks`: how the
        claim counts (primary, secondary, check) and whether it was registered before the measurement; `more`: what
        would decide it, or that nothing would; `extent`: which of several quantities the effect is."""
        if verdict not in list(Verdict):
            raise ValueError(f"verdict {verdict!r} of {id}: choose from {', '.join(Verdict)}")
        if any(row["id"] == id for row in self.verdicts):
            raise ValueError(f"verdict {id!r} is taken; every claim needs an id of its own")
        if isinstance(interval, tuple):
            interval = " to ".join(f"{float(end):.3g}" for end in interval)
        row: dict[str, Any] = {"id": id, "claim": claim, "verdict": str(verdict), "effect": effect, "why": why}
        row |= {"interval": interval, "extent": extent}
        in_claim = re.split(r"[^\w-]+", claim)
        label = " ".join(word for i, word in enumerate(id.split()) if i == 0 or word not in in_claim)
        self.verdicts.append(row | {"label": label, "why_html": code_spans(why), "marks": list(marks), "more": more})

    def claims(self, findings: Mapping[str, "Finding"]) -> None:
        """The evaluated claims of the study: verdicts, and `claims.json` for programs."""
        for id, found in findings.items():
            marks = (found.rank, "registered" if found.registered else "post hoc")
            more = found.no_spread or found.to_decide if found.verdict == Verdict.UNDECIDED else ""
            ends = found.interval or None
            words = (found.claim.text, found.verdict, found.effect, ends, found.reason, marks, more, found.extent)
            self.verdict(id, *words)
        content = json.dumps([found.as_json() for found in findings.values()], indent=1, allow_nan=False)
        self._add("claims.json", ".json", f"{content}\n".encode())

    def file(self, name: str, text: str) -> None:
        """A file of the question's own, as its text stands."""
        self._add(name, "", text.encode())
        self.blocks.append({"kind": "file", "name": name})

    @property
    def mark(self) -> str:
        """What tells this question and context from every other in few letters, the same in every run: ids begin so."""
        return f"x{zlib.crc32(repr((self.question, sorted(self.context.items()))).encode()):08x}"

    @property
    def slug(self) -> str:
        """A folder name for this context: readable, the same in every run, unlike that of any other."""
        return re.sub(r"[^a-z0-9]+", "-", self.line.lower()).strip("-")[:60].rstrip("-") + f"-{self.mark[1:]}"

    @property
    def foot(self) -> str:
        """The line below every figure: its origin, and how the records were measured."""
        return " · ".join(filter(None, (self.origin, self.remarks)))

    @property
    def origin(self) -> str:
        """Where the numbers come from, what is missing and what is not the real thing."""
        parts = [
            self.line,
            *([self.grid] if self.grid else []),
            *(["uncommitted code (dirty)"] if self.dirty else []),
            *([self.stand_ins] if self.stand_ins else []),
        ]
        return " · ".join(parts)

    def _add(self, name: str, suffix: str, content: bytes) -> None:
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII) or not name.endswith(suffix):
            allowed = "letters, digits, '.', '_' and '-' only" + (f", ending in {suffix}" if suffix else "")
            raise ValueError(f"file name {name!r}: {allowed}")
        if name in self.files or name == "summary.md":
            raise ValueError(f"file name {name!r} is taken; every table, figure and file needs its own")
        self.files[name] = content


def stand_ins(context: Mapping[str, Any], fields: Sequence[str] = tuple(STAND_INS)) -> str:
    """What in this context is a substitute for the real thing, as a phrase; empty where nothing is."""
    found = [field for field in fields if str(context.get(field) or "").startswith(STAND_INS[field])]
    return f"stand-in {' and '.join(found)}" if found else ""


def bars_of(fig: Figure) -> str:
    """What of a figure is an interval, and so must be named; empty where nothing is."""
    for ax in fig.axes:
        if any(isinstance(each, ErrorbarContainer) and each.lines[2] for each in ax.containers):
            return "error bars"
        if any(artist.get_label() == plots.BAND for artist in ax.collections):
            return "bands"
    return ""


def mark_arms(fig: Figure, arms: Iterable[str]) -> None:
    """Lines and names of arms, also those that a report drew by its own calls, say whose they are."""
    known = set(arms)
    for ax in fig.axes:
        legend = ax.get_legend()
        named = isinstance(ax.yaxis.get_major_formatter(), FuncFormatter)  # as set_yticks(places, names) leaves it
        texts = [*(legend.get_texts() if legend else ()), *(ax.get_yticklabels() if named else ()), *ax.texts]
        for artist, name in [*((text, text.get_text()) for text in texts), *((x, x.get_label()) for x in ax.lines)]:
            if name in known:
                plots.mark(str(name), artist)


def inline_svg(svg: str, prefix: str, label: str, trim: tuple[float, float] = (0, 0)) -> tuple[Markup, dict[str, str]]:
    """(an SVG for the page, its styles by class). It has ids of its own, as few as needed, the page's greys, its size
    as a wish; no metadata, and neither title nor foot, `trim` points high, which the page says itself."""
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(rf'<g id="(?:{plots.TITLE}|{plots.FOOT})">.*?</g>\s*', "", svg, flags=re.DOTALL)
    needed = set(re.findall(r'href="#([^"]*)"', svg)) | set(re.findall(r"url\(#([^)]*)\)", svg))
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box, "an SVG of matplotlib's says how large it is"
    width, height = (float(size) for size in box.groups())
    shown = f'viewBox="0 {trim[0]:.6g} {width:.6g} {height - sum(trim):.6g}"'

    def own_id(id: re.Match[str]) -> str:
        if id[1].startswith(plots.ARM):
            return f' data-arm="{id[1].removeprefix(plots.ARM)}"'
        return f' id="{prefix}-{id[1]}"' if id[1] in needed else ""

    styles: dict[str, str] = {}

    def own_class(style: re.Match[str]) -> str:  # a hundred styles stand in thousands of places
        css = re.sub(r"#[0-9a-f]{6}\b", _page_colour, html.unescape(style[1]))
        name = f"c{zlib.crc32(css.encode()):08x}"
        styles[name] = css
        return f' class="{name}"'

    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r' id="([^"]*)"', own_id),
        (r'(href="#|url\(#)', rf"\1{prefix}-"),
        (r' (?:d|x|y)="[^"]*"', lambda numbers: re.sub(r"(\.\d\d)\d+", r"\1", numbers[0])),
        (r' style="([^"]*)"', own_class),
        (r'viewBox="[^"]*"', shown),
        (r'^<svg (.*?) ?\b(?:width|height)="[^"]*"(.*?) ?\b(?:width|height)="[^"]*"', r"<svg \1\2"),
        (r"^<svg ", f'<svg role="img" aria-label="{html.escape(label)}" width="{round(1.25 * width)}" '),
    ]

    def own(tag: re.Match[str]) -> str:  # text between tags stays, whatever it looks like
        text = tag[0]
        for pattern, new in rules:
            text = re.sub(pattern, new, text, flags=re.DOTALL)
        return text

    return Markup(re.sub(r"<[^>]*>", own, svg)), styles


def _page_colour(colour: re.Match[str]) -> str:
    """A grey of a figure as the page has it, light or dark; what has a hue stays."""
    red, green, blue = (int(colour[0][i : i + 2], 16) for i in (1, 3, 5))
    if max(red, green, blue) - min(red, green, blue) > 30:
        return colour[0]
    light = (red + green + blue) / 765
    names = {0.35: "currentColor", 0.65: "var(--soft)", 0.95: "var(--line)", 1.0: "var(--paper)"}
    return next(name for darkest, name in names.items() if light <= darkest)
