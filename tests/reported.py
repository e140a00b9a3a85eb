"""Made-up records on the path that `mlexp report` takes, figures not rendered; what a reader finds in it."""

import io
import json
from unittest import mock

import pandas as pd

from mlexp import study
from mlexp.analysis import output, plots, sections
from mlexp.analysis.files import Loaded, Row

from .command import ROOT

NO_PICTURE = plots.Images(b"", b'<svg viewBox="0 0 1 1" width="1" height="1"></svg>')
CONTEXT = {"machine": "a machine", "device": "cpu", "dtype": "float32", "scale": "quick", "weights": None,
           "corpus": "some text"}  # fmt: skip


def folder(question):
    return ROOT / "benches" / question


def part(question, file):
    """A file of a study as the module that the driver uses."""
    return study.load(folder(question) / f"{file}.py")


def record(question, function, params, values, settings, series=None, **context) -> Row:
    """A finished cell; its key is its name."""
    words = [f"seed{value}" if name == "seed" else str(value) for name, value in params.items()]
    cell = f"benches/{question}/bench_{question}.py::{function}[{'-'.join(words)}]"
    known = {"status": "passed", "question": question, "cell": cell, "key": cell, "source": "made up",
             "settings": json.dumps(settings)}  # fmt: skip
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    return Row(params, CONTEXT | {"wall_s": 1.0, "rounds": 1} | plain | known | context, series or {})


class Reported:
    """What stands in the section of one context: tables as read from their CSV, figures as drawn, findings by id."""

    def __init__(self, section, figures):
        self.section, out = section, section.out
        self.out, self.findings, self.answer, self.files = out, out.findings, out.answer, out.files
        self.tables = {name: read(content) for name, content in out.files.items() if name.endswith(".csv")}
        names = [block["name"] for block in out.blocks if block["kind"] == "figure"]
        self.figures = dict(zip(names, figures, strict=True))
        self.words = "\n".join(block["text"] for block in out.blocks if block["kind"] in ("text", "heading"))

    def text(self, name) -> str:
        return self.files[name].decode()

    @property
    def verdicts(self) -> dict[str, str]:
        return {id: str(finding.verdict) for id, finding in self.findings.items()}


def read(content: bytes) -> pd.DataFrame:
    """A table from its CSV; one without columns is empty."""
    return pd.read_csv(io.BytesIO(content)) if content.strip() else pd.DataFrame()


def reported(question, rows) -> Reported:
    """The report of records that share a context."""
    figures = []

    def remember(figure, **words):
        figures.append(figure)
        return NO_PICTURE

    with mock.patch.object(output.plots, "save", remember):
        (section,) = sections.sections_of(question, folder(question), loaded(question, rows))
    return Reported(section, figures)


def findings_of(question, rows) -> dict:
    """The findings alone: the same path, with a report that adds nothing."""
    with mock.patch.object(sections, "report_of", lambda _: lambda records, out: None):
        (section,) = sections.sections_of(question, folder(question), loaded(question, rows))
    return section.out.findings


def loaded(question, rows) -> Loaded:
    return Loaded(list(rows), {question: dict(part(question, "study").STUDY.metrics)})
