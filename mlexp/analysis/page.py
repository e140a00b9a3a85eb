"""What was found as a page and as Markdown: `index.html` over all questions, `summary.md` of one section."""

import base64
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import mlexp
from mlexp.analysis.markup import markdown_table
from mlexp.analysis.section import Section

SHOWN_ROWS = 40  # of a table in summary.md


def index(sections: list[Section], errors: list[str]) -> str:
    """The page: a card per question with its verdicts, then everything that was reported, context by context."""
    here = Path(__file__).parent
    loader = jinja2.FileSystemLoader(here)
    env = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    questions = [_question(name, list(g)) for name, g in itertools.groupby(sections, lambda s: s.out.question)]
    return env.get_template("page.html.j2").render(
        questions=questions,
        errors=errors,
        style=Markup(style + "\n".join(f".{name} {{ {css} }}" for name, css in _styles(sections).items())),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        version=mlexp.__version__,
    )


def _question(name: str, sections: list[Section]) -> dict[str, Any]:
    """A question as the page has it: its sections, and where there are several a matrix of claims by contexts."""
    found = [{verdict["id"]: verdict for verdict in section.out.verdicts} for section in sections]
    every = {id: verdict for verdicts in reversed(found) for id, verdict in verdicts.items()}
    rows = [
        {"label": every[id]["label"], "claim": every[id]["claim"], "verdicts": [verdicts.get(id) for verdicts in found]}
        for id in dict.fromkeys(id for verdicts in found for id in verdicts)
    ]
    id = "q-" + re.sub(r"\W+", "-", name)
    matrix = rows if len(sections) > 1 else []
    return {"name": name, "id": id, "asks": sections[0].asks, "sections": sections, "matrix": matrix}


def _styles(sections: Iterable[Section]) -> dict[str, str]:
    """The styles of all figures, by the name of their class."""
    blocks = (block for section in sections for block in section.out.blocks if block["kind"] == "figure")
    return {name: css for block in blocks for name, css in block["styles"].items()}


def summary(section: Section) -> str:
    """`summary.md`: verdicts, then tables and figures, then what did not finish and where it was measured."""
    out = section.out
    parts = [f"# {out.question}", out.line]
    parts += [
        f"**{note}**"
        for note in (out.stand_ins, section.grid, "uncommitted code (dirty)" if out.dirty else "", out.remarks)
        if note
    ]
    if out.answer:
        parts.append(f"**Answer.** {out.answer}")
    for title, checks in (("Verdicts", False), ("Engineering checks", True)):
        verdicts = [v for v in out.verdicts if ("check" in v["marks"]) == checks]
        if verdicts:
            parts += [f"## {title}", _verdict_table(verdicts)]
    parts += [_block(block) for block in out.blocks]
    if section.unfinished:
        parts += ["## Did not finish", _table(["cell", "status", "reason"], section.unfinished)]
    if section.disturbed:
        parts += ["## Disturbed while timed", _table(["cell", "by"], section.disturbed)]
    parts += ["## Environment", _table(["", ""], list(section.environment.items()))]
    return "\n\n".join(parts) + "\n"


def _verdict_table(verdicts: list[dict[str, Any]]) -> str:
    columns = ["", "claim", "verdict", "effect", "interval", "why"]
    marked = any(v["marks"] for v in verdicts)
    rows = [
        [
            v["id"],
            v["claim"],
            f"**{v['verdict']}**",
            f"{v['effect']} {v['extent']}".strip(),
            v["interval"] or "",
            v["why"],
        ]
        + ([", ".join(v["marks"])] if marked else [])
        for v in verdicts
    ]
    return _table([*columns, *(["counts as"] if marked else [])], rows)


def _block(block: dict[str, Any]) -> str:
    if block["kind"] == "heading":
        return f"## {block['text']}"
    if block["kind"] == "text":
        return str(block["text"])
    link = f"[{block['name']}]({block['name']})"
    if block["kind"] == "file":
        return link
    if block["kind"] == "figure":
        return f"**{block['finding']}**\n\n!{link}\n\n{block['caption']} ({block['foot']})"
    left = block["left"] + len(block["rows"]) - len(shown := block["rows"][:SHOWN_ROWS])
    more = f" {left} more rows in the file." if left else ""
    heads = [f"{head['name']} ({head['unit']})" if head["unit"] else head["name"] for head in block["heads"]]
    return f"{_table(heads, shown)}\n\n{link} {block['caption']}{more}".rstrip()


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return markdown_table(columns, rows, _cell)


def _cell(text: str) -> str:
    """Text that breaks out of no table cell and begins no HTML; its emphasis stays."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
