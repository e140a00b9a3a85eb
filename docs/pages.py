"""Pages of the site that stand elsewhere in the repository, shown without a copy; a hook of mkdocs.

A link in them is relative to their own file. To a page of the site it leads there, to any other file of the repository
it becomes the file's name: the site is read without the repository. And no page loads a script from elsewhere.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PLACES = {
    **{f"questions/{readme.parent.name}.md": readme for readme in sorted(ROOT.glob("benches/*/README.md"))},
    "reference/records.md": ROOT / "results/README.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
}  # page -> file
# What the theme's search needs where pages are opened as files: it would fetch the first.
FROM_ELSEWHERE, OURS = "https://unpkg.com/iframe-worker/shim", "file_worker.js"
LINK = re.compile(r"(?<!!)\[([^]\n]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """mkdocs reads the files where they are."""
    for page, file in PLACES.items():
        files.append(File.generated(config, page, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page with the links of the site."""
    file = PLACES.get(page.file.src_uri)
    return linked(markdown, file, page.file.src_uri) if file else markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """A page with our script in place of the theme's."""
    return output.replace(FROM_ELSEWHERE, relative(OURS, page.file.dest_uri))


def on_post_template(output_content: str, **_: Any) -> str:
    """The same of pages that are no document's, such as that of an error."""
    return output_content.replace(FROM_ELSEWHERE, OURS)


def linked(markdown: str, file: Path, page: str) -> str:
    """The text of a file, its links those of its page."""

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target:
            return found[0]
        path = Path(os.path.normpath(file.parent / target))
        if not path.exists():
            raise FileNotFoundError(f"{file.relative_to(ROOT)}: the link to {target} leads nowhere")
        place = page_of(path)
        return f"[{text}]({relative(place, page)}{anchor})" if place else f"`{path.relative_to(ROOT)}`"

    return LINK.sub(link, markdown)


def page_of(path: Path) -> str:
    """The page that shows a file, or the README of a folder; empty where none does."""
    file = path / "README.md" if path.is_dir() else path
    named = {place: page for page, place in PLACES.items()}
    docs = ROOT / "docs"
    return named.get(file) or (file.relative_to(docs).as_posix() if file.is_relative_to(docs) else "")


def relative(target: str, page: str) -> str:
    return PurePosixPath(os.path.relpath(target, PurePosixPath(page).parent)).as_posix()
