"""A study's report without drawing: files of records in, sections out, the numbers of its figures beside them."""

import json
from pathlib import Path
from unittest import mock

from mlexp.analysis import output, page
from mlexp.analysis.files import read
from mlexp.analysis.sections import sections_of
from tests.golden.said import NO_PICTURE, drawn_in

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "results" / "raw"


def reported(question: str, *files: Path, folder: Path | None = None) -> list:
    """(section, {figure's file: its texts and numbers}) of each context."""
    drawn = []

    def remember(fig, **words):
        drawn.append(drawn_in(fig))
        return NO_PICTURE

    with mock.patch.object(output.plots, "save", remember):
        found = sections_of(question, folder or ROOT / "benches" / question, read(*files))
    figures = iter(drawn)
    names = [[b["name"] for b in section.out.blocks if b["kind"] == "figure"] for section in found]
    return [(section, {name: next(figures) for name in each}) for section, each in zip(found, names, strict=True)]


def summary_of(section) -> str:
    return page.summary(section)


def changed(source: Path, target: Path, change) -> Path:
    """A copy of a committed file whose entries `change(params, extra_info)` edits; False leaves one out."""
    content = json.loads(source.read_text())
    for kind in ("benchmarks", "unfinished"):
        content[kind] = [b for b in content.get(kind, []) if change(b["params"], b["extra_info"]) is not False]
        for bench in content[kind]:
            old = bench["fullname"]
            bench["fullname"] = bench["extra_info"].get("cell", old)
    target.write_text(json.dumps(content))
    return target


def verdicts(section) -> dict[str, str]:
    return {v["id"]: v["verdict"] for v in section.out.verdicts}
