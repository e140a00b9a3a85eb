"""Text as HTML and as Markdown: the little that reports need, with everything else made harmless."""

import html
import re
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup


def paragraphs(markdown: str) -> Markup:
    """The little Markdown that reports need, as HTML; everything else is escaped."""
    blocks = []
    for block in re.split(r"\n\s*\n", markdown.strip()):
        lines = [line.strip() for line in block.splitlines()]
        if lines and all(line.startswith(("- ", "* ")) for line in lines):
            blocks.append("<ul>" + "".join(f"<li>{_spans(line[2:])}</li>" for line in lines) + "</ul>")
        else:
            blocks.append(f"<p>{_spans(' '.join(lines))}</p>")
    return Markup("\n".join(blocks))


def code_spans(text: str) -> Markup:
    """A line of plain text, what stands in backticks set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text)))


def _spans(text: str) -> str:
    codes: list[str] = []  # set aside first: what stands in code is neither emphasis nor link

    def code(match: re.Match[str]) -> str:
        codes.append(match[1])
        return f"\0{len(codes) - 1}\0"

    text = re.sub(r"`([^`]+)`", code, html.escape(text.replace("\0", "")))
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?![\w*])", r"<em>\1</em>", text)
    text = re.sub(r"\[([^\]]+)\]\((https?://[^\s)]+)\)", r'<a href="\2">\1</a>', text)
    return re.sub("\0(\\d+)\0", lambda match: f"<code>{codes[int(match[1])]}</code>", text)


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], cell: Callable[[str], str] | None = None
) -> str:
    """A GitHub table; what cells hold breaks out of none and begins no HTML.

    `cell`: how a text is made safe; by default it is shown as it stands, and no Markdown in it acts.
    """
    safe = cell or _escaped
    lines: list[Sequence[object]] = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(safe(str(text)) for text in line) + " |" for line in lines)


def _escaped(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    if len(text) > 1 and text[0] == text[-1] == "`":  # code: only a bar would end the cell
        return f"`{text[1:-1].replace('`', '')}`".replace("|", "\\|")
    return re.sub(r"([\\|*_`~<\[\]])", r"\\\1", text) if text.strip("-") else text
