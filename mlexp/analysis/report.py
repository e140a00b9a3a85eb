"""The report driver: records in; tables, figures, verdicts, `summary.md` per question and one `index.html` out.

It walks the folders of questions and hands each the records whose `question` is its folder's name, once per context.
What a record says never chooses code. Everything is made in memory first; a report that fails writes nothing. A
question of which nothing changed is taken from the cache (see `cache`), without the libraries that draw.
"""

import sys
import traceback
from collections import Counter
from pathlib import Path

import mlexp
from mlexp.analysis import cache
from mlexp.analysis.files import Loaded, LoadError, read
from mlexp.analysis.page import index, summary
from mlexp.analysis.section import Section
from mlexp.analysis.sources import DEFAULT_PATHS
from mlexp.analysis.verdict import Verdict
from mlexp.store import write

OK, NOTHING, FAILED, UNREADABLE = 0, 2, 3, 4
SILENT = 3  # secondary claims that are not tested and still listed where the command prints verdicts


def run(
    paths: list[Path],
    out: Path = Path("results"),
    benches: Path | None = None,
    figures: str = "svg",
    fresh: bool = False,
) -> int:
    """`mlexp report`: returns the exit status. `figures`: png or pdf: figures are made in this format too;
    as SVG always, the page needs them.
    `fresh`: nothing is taken from the cache."""
    given = paths or default_paths()
    if not given:
        return _fail(
            NOTHING, "nothing to report: no .mlexp/journal.jsonl, no results/raw; run `pytest benches` or give a path"
        )
    try:
        folders, loaded = questions(benches), read(*given)
    except LoadError as error:
        return _fail(UNREADABLE, str(error))
    _name_what_is_left_out(loaded, folders)
    sections, errors = [], []
    for name in [*folders, *(name for name in _declared_in(loaded) if name not in folders)]:
        try:
            sections += _sections(name, folders.get(name), loaded, figures, fresh)
        except (Exception, SystemExit) as error:  # the other questions are still reported
            where = _where(error, folders[name]) if name in folders else name
            errors.append(f"{where}: {type(error).__name__}: {error}".splitlines()[0])
    if not sections and not errors:
        return _fail(NOTHING, f"nothing to report: {len(loaded.rows)} records, none of a question that has a report")
    try:
        write_all(sections, errors, out)
    except OSError as error:
        return _fail(UNREADABLE, f"cannot write below {out}: {error.strerror}")
    _print(sections, out)
    return _fail(FAILED, *errors) if errors else OK


def _sections(name: str, folder: Path | None, loaded: Loaded, also: str, fresh: bool) -> list[Section]:
    """A question's sections: those that were kept, else made now and kept."""
    key = cache.key_of(name, folder, loaded, also)
    if not fresh and (found := cache.get(key)) is not None:
        return found
    from mlexp.analysis.sections import sections_of  # with pandas, scipy and matplotlib

    made = sections_of(name, folder, loaded, also)
    try:
        cache.put(key, made)
    except OSError as error:
        _fail(OK, f"not kept for the next time: {error.strerror or error}")
    return made


def questions(benches: Path | None = None) -> dict[str, Path]:
    """The folder of each question that declares a study or has a report of its own, by name."""
    checkout = Path(mlexp.__file__).parents[1] / "benches"
    folder = benches or next((path for path in (Path("benches"), checkout) if path.is_dir()), Path("benches"))
    if not folder.is_dir():
        raise LoadError(f"{folder}: no such folder; name the folder of questions with --benches")
    own = ("report.py", "study.py", "bench_*.py")
    found = {file.parent for pattern in own for file in folder.glob(f"*/{pattern}")}
    return {path.name: path for path in sorted(found)}


def _declared_in(loaded: Loaded) -> list[str]:
    """The questions whose records carry enough of their study to be reported without a folder."""
    return list(dict.fromkeys(str(row.values.get("question")) for row in loaded.rows if row.study.get("arm")))


def write_all(sections: list[Section], errors: list[str], out: Path) -> None:
    """Every file of every section, and the page last: it never names a file that is not there."""
    files: dict[Path, bytes] = {}
    for section in sections:
        files |= {section.folder / name: content for name, content in section.out.files.items()}
        files[section.folder / "summary.md"] = summary(section).encode()
    files[Path("index.html")] = index(sections, errors).encode()
    for path, content in files.items():
        write(out / path, content)


def default_paths() -> list[Path]:
    """What is read where no path is given: as much of it as there is."""
    return [path for path in DEFAULT_PATHS if _holds_any(path)]


def _holds_any(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.rglob("*.json*")))


def _where(error: BaseException, folder: Path) -> str:
    """The line of the question's code at fault, for an editor to jump to."""
    here = str(folder.absolute())
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(here)]
    if lines:
        return f"{folder / Path(lines[-1].filename).name}:{lines[-1].lineno}"
    own = [name for name in ("report.py", "study.py") if (folder / name).is_file()]
    return str(folder / own[0]) if own else str(folder)


def _name_what_is_left_out(loaded: Loaded, folders: dict[str, Path]) -> None:
    counts = Counter(row.values.get("question") for row in loaded.rows)
    for name, count in counts.items():
        if name is None:
            _fail(OK, f"{count} records name no question (not measured by mlexp): left out")
        elif name not in folders and name not in _declared_in(loaded):
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
    """The verdicts and where to read on; many that are not tested are counted."""
    for section in sections:
        print(f"{section.out.question}  {section.out.foot}" + (f"  ({section.grid})" if section.grid else ""))
        if section.out.answer:
            print(f"  {section.out.answer}")
        silent = [v for v in section.out.verdicts if v["verdict"] == Verdict.NOT_TESTED and "primary" not in v["marks"]]
        folded = silent if len(silent) > SILENT else []
        for verdict in (each for each in section.out.verdicts if each not in folded):
            interval = f" [{verdict['interval']}]" if verdict["interval"] else ""
            marks = f" ({', '.join(verdict['marks'])})" if verdict["marks"] else ""
            shown = " ".join(filter(None, (f"{verdict['effect']}{interval}", verdict["extent"])))
            effect = verdict["why"] if verdict["verdict"] == Verdict.NOT_TESTED else shown
            marks += f" {verdict['more']}" if verdict["more"] else ""
            print(f"  {verdict['id']} {verdict['verdict']}: {verdict['claim']}  {effect}{marks}".rstrip())
        if folded:
            print(f"  {len(folded)} other claims are not tested; summary.md has why")
        if section.unfinished:
            print(f"  did not finish: {len(section.unfinished)}")
        if section.lead:
            print(f"  {out / section.folder / section.lead['name']}")
        print(f"  {out / section.folder / 'summary.md'}")
    print(out / "index.html")
