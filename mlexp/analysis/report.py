"""The report driver: records in; tables, figures, verdicts, `summary.md` per question and one `index.html` out.

It walks `benches/*/report.py` and hands each the records whose `question` is its folder's name, once per context. What
a record says never chooses code. Everything is made in memory first; a report that fails writes nothing.
"""

import base64
import hashlib
import importlib.util
import itertools
import math
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

import mlexp
from mlexp.analysis import history, results, times
from mlexp.analysis.disturbed import disturbances, remarks
from mlexp.analysis.files import Loaded, LoadError, arrays, read
from mlexp.analysis.output import SHOWN_ROWS, Output, cell_text, write
from mlexp.analysis.stats import Verdict
from mlexp.record import CONTEXT, metrics_of

DEFAULT_PATHS = (Path(".mlexp/journal.jsonl"), Path("results/raw"))
OK, NOTHING, FAILED, UNREADABLE = 0, 2, 3, 4


@dataclass
class Section:
    """A question in one context: what its report said, and what stands around it."""

    out: Output
    folder: Path  # below the results folder
    records: int
    grid: str
    unfinished: list[tuple[str, str, str]]  # cell, status, reason
    environment: dict[str, str]
    asks: str = ""  # the question as its README puts it
    history: str = ""  # how many commits and changes; empty where there are too few
    disturbed: list[tuple[str, str]] = field(default_factory=list)  # cell, by what

    @property
    def notes(self) -> list[str]:
        """What a reader must know before believing anything."""
        dirty = "measured with uncommitted code (dirty)" if self.out.dirty else ""
        lost = f"did not finish: {len(self.unfinished)}" if self.unfinished else ""
        return [note for note in (self.out.stand_ins, self.grid, dirty, lost, self.out.remarks) if note]

    @property
    def tally(self) -> dict[str, int]:
        return tally(self.out.verdicts)


def run(paths: list[Path], out: Path = Path("results"), benches: Path | None = None) -> int:
    """`mlexp report`: returns the exit status."""
    given = paths or [path for path in DEFAULT_PATHS if _holds_any(path)]
    if not given:
        return _fail(
            NOTHING, "nothing to report: no .mlexp/journal.jsonl, no results/raw; run `pytest benches` or give a path"
        )
    try:
        folders, loaded = questions(benches), read(*given)
    except LoadError as error:
        return _fail(UNREADABLE, str(error))
    _tell_what_is_left_out(loaded, folders)
    sections, errors = [], []
    for name, file in folders.items():
        try:
            sections += sections_of(name, file, loaded)
        except (Exception, SystemExit) as error:  # the other questions are still reported
            errors.append(f"{_where(error, file)}: {type(error).__name__}: {error}".splitlines()[0])
    if not sections and not errors:
        return _fail(NOTHING, f"nothing to report: {len(loaded.rows)} records, none of a question that has a report")
    try:
        write_all(sections, errors, out)
    except OSError as error:
        return _fail(UNREADABLE, f"cannot write below {out}: {error.strerror}")
    _print(sections, out)
    return _fail(FAILED, *errors) if errors else OK


def questions(benches: Path | None = None) -> dict[str, Path]:
    """The report of each question, by the name of its folder."""
    checkout = Path(mlexp.__file__).parents[1] / "benches"
    folder = benches or next((path for path in (Path("benches"), checkout) if path.is_dir()), Path("benches"))
    if not folder.is_dir():
        raise LoadError(f"{folder}: no such folder; name the folder of questions with --benches")
    return {file.parent.name: file for file in sorted(folder.glob("*/report.py"))}


def sections_of(name: str, file: Path, loaded: Loaded) -> list[Section]:
    """What the report of one question says, context by context; the one with most finished cells comes first."""
    rows = {row.values.get("key"): row for row in loaded.rows if row.values.get("question") == name}
    if not rows:
        return []
    report = _load_report(name, file)
    declared = loaded.metrics.get(name, {})
    df = results.frame(Loaded(list(rows.values()), {name: declared}))
    df = results.latest(df)
    groups = sorted(results.contexts(df), key=lambda group: -(group[1]["status"] == "passed").sum())
    over_commits, asks = by_context(name, loaded), asked(file.with_name("README.md"))
    killed = [start for start in loaded.died if f"/{name}/" in f"/{start['cell']}" and not _ran_since(df, start)]
    never_ran = [cell for cell in loaded.never_ran if f"/{name}/" in f"/{cell}"]
    sections = []
    for context, mine in groups:
        passed = mine["status"] == "passed"
        records, rest = (mine[keep].reset_index(drop=True) for keep in (passed, ~passed))
        out = Output(
            name,
            context,
            rest,
            lambda key: arrays(rows[key]) if key in rows else {},
            bool(mine["dirty"].any()),
            remarks(records),
        )
        if len(records):
            report(records, out)
        past = over_commits.get(_fields(context))
        told = "" if past is None else history.add(past, metrics_of(declared), loaded.commits, out)
        unfinished = [(row.cell, row.status, cell_text(row.reason)) for row in rest.itertuples()]
        if not sections:
            unfinished += [(start["cell"], "killed", "started and never ended, or still running") for start in killed]
        folder = Path(name, out.slug) if sections else Path(name)
        note = grid_note(mine)
        if never_ran and not note:
            note = f"unfinished run: {len(never_ran)} of the cells that it selected never ran"
        facts, disturbed = environment(mine), disturbances(records)
        sections.append(Section(out, folder, len(records), note, unfinished, facts, asks, told, disturbed))
    return sections


def asked(readme: Path) -> str:
    """The question in one sentence: what follows the name in the first heading of its README; empty where none does."""
    try:
        first = readme.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return ""
    text = first.removeprefix("#").partition(":")[2].strip()
    return text[:1].upper() + text[1:]


def by_context(name: str, loaded: Loaded) -> dict[tuple, pd.DataFrame]:
    """Every record of a question, earlier commits too, by the fields of its context; empty below DRAWN_FROM."""
    rows = [row for row in (*loaded.rows, *loaded.older) if row.values.get("question") == name]
    if len({row.values.get("commit") for row in rows}) < history.DRAWN_FROM:
        return {}
    df = results.frame(Loaded(rows, {name: loaded.metrics.get(name, {})}))
    return {_fields(context): mine for context, mine in results.contexts(df)}


def _fields(context: dict) -> tuple:
    return tuple(context.get(field) for field in CONTEXT)


def _load_report(name: str, file: Path) -> Callable[[pd.DataFrame, Output], None]:
    """The function `report` of a question's report.py, as a module whose name no other has."""
    spec = importlib.util.spec_from_file_location(f"mlexp_report_of_{name}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, "report", None)):
        raise AttributeError("it has no function report(records, out)")
    return module.report


def _ran_since(df: pd.DataFrame, start: dict) -> bool:
    started, when = times.seconds(start.get("when")), df.loc[df["cell"] == start["cell"], "when"]
    return bool((when.map(times.seconds).astype(float) > started).any())


def grid_note(df: pd.DataFrame) -> str:
    """How much of the grid is finished, judged by the axis values seen; empty where all of it is."""
    done = total = 0
    for _, cells in df.groupby(df["cell"].str.partition("[")[0]):
        axes = [axis for axis in results.axes(df) if cells[axis].notna().all()]
        if not cells["cell"].str.contains(r"\bseed\d").all():  # every record has a seed; here it is no axis
            axes = [axis for axis in axes if axis != "seed"]
        total, done = total + grid_size(cells, axes), done + int((cells["status"] == "passed").sum())
    return f"unfinished grid: {done} of {total} cells" if done < total else ""


def grid_size(cells: pd.DataFrame, axes: list[str]) -> int:
    """Cells of the grid that these are of: the product of its axes. An axis whose values have values of another axis to
    themselves (kernels with shapes of their own) makes a grid for each.
    """
    for outer, inner in itertools.permutations(axes, 2):
        if cells[outer].nunique() > 1 and cells.groupby(inner)[outer].nunique().max() == 1:
            rest = [axis for axis in axes if axis != outer]
            return sum(grid_size(mine, rest) for _, mine in cells.groupby(outer))
    return math.prod(cells[axis].nunique() for axis in axes)


def environment(df: pd.DataFrame) -> dict[str, str]:
    """What the records were made with, and when."""

    def all_of(name):
        return ", ".join(sorted(map(str, df[name].dropna().unique())))

    dirty = int(df["dirty"].fillna(False).astype(bool).sum())
    replayed = int(df["replayed"].fillna(False).astype(bool).sum())
    when = times.in_order(df["when"])
    facts = {name: all_of(name) for name in ("machine", "device", "dtype", "scale", "weights", "corpus", "overrides")}
    facts["commit"] = all_of("commit") + (f" (uncommitted changes in {dirty} of {len(df)} records)" if dirty else "")
    facts |= {name: all_of(name) for name in ("torch", "transformers", "python")}
    facts["measured"] = " to ".join(dict.fromkeys((when[0], when[-1]))) if when else ""
    facts["records"] = f"{len(df)}" + (f", {replayed} replayed" if replayed else "") + f", from {all_of('source')}"
    finished = df[df["status"] == "passed"]
    disturbed = len(disturbances(finished))
    facts["disturbed"] = f"{disturbed} of {len(finished)} records" if disturbed else ""
    facts["cpu governor"] = all_of("cpu_governor") if "cpu_governor" in df else ""
    older = df.attrs.get("superseded", 0)
    facts["left out"] = f"{older} older records of the same cells" if older else ""
    return {name: text for name, text in facts.items() if text}


def write_all(sections: list[Section], errors: list[str], out: Path) -> None:
    """Every file of every section, and the page last: it never names a file that is not there."""
    files = {}
    for section in sections:
        files |= {section.folder / name: content for name, content in section.out.files.items()}
        files[section.folder / "summary.md"] = summary(section).encode()
    files["index.html"] = index(sections, errors).encode()
    for path, content in files.items():
        write(out / path, content)


def index(sections: list[Section], errors: list[str]) -> str:
    """The page: a card per question with its verdicts, then everything that the reports said, context by context."""
    here = Path(__file__).parent
    loader = jinja2.FileSystemLoader(here)
    env = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    questions = [
        {"name": name, "id": "q-" + re.sub(r"\W+", "-", name), "asks": mine[0].asks, "sections": mine}
        for name, mine in ((name, list(mine)) for name, mine in itertools.groupby(sections, lambda s: s.out.question))
    ]
    return env.get_template("page.html.j2").render(
        questions=questions,
        errors=errors,
        tallies=tally(said for section in sections for said in section.out.verdicts),
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        version=mlexp.__version__,
    )


def tally(verdicts: Iterable[dict]) -> dict[str, int]:
    """How many of each verdict there are, in the order of `Verdict`."""
    counts = Counter(said["verdict"] for said in verdicts)
    return {str(word): counts[word] for word in Verdict if counts[word]}


def summary(section: Section) -> str:
    """`summary.md`: verdicts, then tables and figures, then what did not finish and where it was measured."""
    out = section.out
    parts = [f"# {out.question}", out.line]
    parts += [
        f"**{note}**"
        for note in (out.stand_ins, section.grid, "uncommitted code (dirty)" if out.dirty else "", out.remarks)
        if note
    ]
    if out.verdicts:
        columns = ["", "claim", "verdict", "effect", "interval", "why"]
        rows = [
            [v["id"], v["claim"], f"**{v['verdict']}**", v["effect"], v["interval"] or "", v["why"]]
            for v in out.verdicts
        ]
        parts += ["## Verdicts", _table(columns, rows)]
    parts += [_block(block) for block in out.blocks]
    if section.unfinished:
        parts += ["## Did not finish", _table(["cell", "status", "reason"], section.unfinished)]
    if section.disturbed:
        parts += ["## Disturbed while timed", _table(["cell", "by"], section.disturbed)]
    parts += ["## Environment", _table(["", ""], list(section.environment.items()))]
    return "\n\n".join(parts) + "\n"


def _block(block: dict) -> str:
    if block["kind"] == "heading":
        return f"## {block['text']}"
    if block["kind"] == "text":
        return block["text"]
    link = f"[{block['name']}]({block['name']})"
    if block["kind"] == "file":
        return link
    if block["kind"] == "figure":
        return f"!{link}\n\n{block['caption']} ({block['foot']})".replace("\n\n ", "\n\n")
    left = block["left"] + len(block["rows"]) - len(shown := block["rows"][:SHOWN_ROWS])
    more = f" {left} more rows in the file." if left else ""
    foot = f" ({block['foot']})" if block["foot"] else ""
    return f"{_table(block['columns'], shown)}\n\n{link} {block['caption']}{more}{foot}".rstrip()


def _table(columns: list[str], rows: list) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    """Text that breaks out of no table cell and begins no HTML."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|").replace("<", "&lt;")


def _holds_any(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.rglob("*.json*")))


def _where(error: BaseException, file: Path) -> str:
    """The line of the report at fault, for an editor to jump to."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file.absolute())
    ]
    return f"{file}:{lines[-1]}" if lines else str(file)


def _tell_what_is_left_out(loaded: Loaded, folders: dict[str, Path]) -> None:
    counts = Counter(row.values.get("question") for row in loaded.rows)
    for name, count in counts.items():
        if name is None:
            _fail(OK, f"{count} records name no question (not measured by mlexp): left out")
        elif name not in folders:
            _fail(
                OK,
                f"{count} records of question {name!r}: left out, there is a report for {', '.join(folders) or 'none'} "
                "(--benches DIR: in another folder)",
            )
    for note in loaded.notes:
        _fail(OK, note)


def _fail(status: int, *lines: str) -> int:
    for line in lines:
        print(f"mlexp report: {line}", file=sys.stderr)
    return status


def _print(sections: list[Section], out: Path) -> None:
    """The verdicts and where to read on."""
    for section in sections:
        print(f"{section.out.question}  {section.out.foot}" + (f"  ({section.grid})" if section.grid else ""))
        for said in section.out.verdicts:
            interval = f" [{said['interval']}]" if said["interval"] else ""
            print(f"  {said['id']} {said['verdict']}: {said['claim']}  {said['effect']}{interval}".rstrip())
        if section.unfinished:
            print(f"  did not finish: {len(section.unfinished)}")
        print(f"  {out / section.folder / 'summary.md'}")
    print(out / "index.html")
