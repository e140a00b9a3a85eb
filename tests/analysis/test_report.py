"""The driver: every question reported once per context, whole or not at all, whatever a record or a report does."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest

from mlexp.analysis.report import run
from mlexp.analysis.sections import distrust, grid_note
from mlexp.cli import main

SHOW = """
def report(records, out):
    out.table(records[["n", "wall_s"]], "all.csv", "All of " + str(len(records)))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_question_is_reported_with_tables_figures_verdicts_and_a_page(make, place, capsys):
    make.write_json(place / "results/raw/a.json", make.grid())
    make.write_question(place / "benches")
    assert run([]) == 0
    names = [
        "index.html",
        *(f"speed/{name}" for name in ("numbers.txt", "speedup.csv", "speedup.svg", "summary.md")),
    ]
    found = contents(place / "results")
    assert sorted(name for name in found if not name.startswith("raw/")) == sorted(names)
    summary = found["speed/summary.md"].decode()
    assert "| H1 | Larger models gain more. | **supported** | exponent 0.098 |" in summary
    assert summary.index("Verdicts") < summary.index("Speed-up by size") < summary.index("Environment")
    assert "stand-in weights and corpus" in summary
    assert found["speed/numbers.txt"] == b"1 2 3\n"
    assert b"<svg" in found["speed/speedup.svg"]
    told = capsys.readouterr()
    assert "H1 supported: Larger models gain more." in told.out
    assert told.err == ""


def figure_also_as(ending, make, place):
    """The figure in that format, beside which everything is as it is without."""
    make.write_json(place / "a.json", make.grid())
    make.write_question(place / "benches")
    assert main(["report", "a.json", "--out", "plain"]) == 0
    assert main(["report", "a.json", "--out", "with", "--figures", ending]) == 0
    plain, found = contents(place / "plain"), contents(place / "with")
    figure = found.pop(f"speed/speedup.{ending}")
    assert found == plain  # the same layout too, which a PNG settles while it is drawn
    return figure


def test_figures_as_pdf_stand_beside_the_others(make, place):
    """Their fonts are embedded as TrueType, which editors and journals can read as text: no Type 3."""
    pdf = figure_also_as("pdf", make, place)
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf


def test_figures_as_png_stand_beside_the_others(make, place):
    png = figure_also_as("png", make, place)
    assert png.startswith(b"\x89PNG")
    report = place / "benches/speed/report.py"
    report.write_text(report.read_text().replace('"speedup.svg"', '"speedup.png"'))
    assert main(["report", "a.json", "--out", "named"]) == 0
    assert contents(place / "named")["speed/speedup.png"] == png


def test_two_runs_give_the_same_bytes(make, place):
    make.write_json(place / "a.json", make.grid() + make.grid(prompts=3, scale="smoke"))
    make.write_question(place / "benches")
    assert run([place / "a.json"], place / "one") == 0
    assert run([place / "a.json"], place / "two") == 0
    assert contents(place / "one") == contents(place / "two")


def test_contexts_are_reported_apart(make, place):
    make.write_json(place / "a.json", make.grid() + make.grid(slope=0, prompts=3, scale="smoke", dirty=True))
    make.write_question(place / "benches")
    assert run([place / "a.json"]) == 0
    summaries = sorted((place / "results/speed").rglob("summary.md"), key=lambda path: len(path.parts))
    assert summaries[0].parent.name == "speed"
    assert " · quick · " in summaries[0].read_text()
    other = summaries[1].read_text()
    assert " · smoke · " in other
    assert "uncommitted code (dirty)" in other
    assert "uncommitted" not in summaries[0].read_text()
    assert (summaries[1].parent / "speedup.svg").is_file()


def test_a_context_that_answers_something_stands_before_a_more_trusted_one_that_does_not():
    def section(verdicts, **context):
        found = [{"verdict": verdict, "marks": []} for verdict in verdicts]
        return SimpleNamespace(
            out=SimpleNamespace(context=context, verdicts=found, dirty=False), grid="", records=len(verdicts)
        )

    silent = section(["not tested"] * 2, scale="full", weights="pretrained")
    answers = section(["not tested", "refuted"], scale="quick", weights="random")
    better = section(["undecided"], scale="quick", weights="pretrained")
    assert sorted([silent, answers, better], key=distrust) == [better, answers, silent]


def test_records_reach_the_report_of_their_question_alone(make, place, capsys):
    entries = [make.bench({"n": f"n{i}"}, question=question) for question in ("one", "two", "gone") for i in range(3)]
    make.write_json(place / "a.json", entries)
    for name in ("one", "two"):
        make.write_question(place / "benches", name, SHOW)
    assert run([place / "a.json"]) == 0
    assert "3 records of question 'gone': left out, there is a report for one, two" in capsys.readouterr().err
    assert not (place / "results/gone").exists()
    assert len(pd.read_csv(place / "results/one/all.csv")) == 3


def test_a_record_never_chooses_code(make, place):
    (place / "evil.py").write_text("raise SystemExit('ran')")
    make.write_json(
        place / "a.json", [make.bench({"n": "n1"}, question="../evil"), make.bench({"n": "n1"}, question="one")]
    )
    make.write_question(place / "benches", "one", SHOW)
    assert run([place / "a.json"]) == 0
    assert sorted(path.name for path in (place / "results").iterdir()) == ["index.html", "one"]


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (
            "def report(records, out):\n    out.file('a.txt', 'x')\n    records['speed']\n",
            "bad/report.py:3: KeyError: 'speed'",
        ),
        ("def report(records, out:\n", "bad/report.py: SyntaxError"),
        ("import sys\nsys.exit('stop')\n", "bad/report.py:2: SystemExit: stop"),
        ("x = 1\n", "bad/report.py: AttributeError: it has no function report(records, out)"),
        ("def report(records, out):\n    out.file('../a.txt', 'x')\n", "ValueError: file name '../a.txt'"),
        (
            "def report(records, out):\n    out.verdict('H1', 'c', 'proved')\n",
            "choose from supported, refuted, undecided",
        ),
    ],
)
def test_a_report_that_fails_costs_only_itself(make, place, capsys, report, told):
    make.write_json(place / "a.json", [make.bench({"n": "n1"}, question=question) for question in ("bad", "good")])
    make.write_question(place / "benches", "bad", report)
    make.write_question(place / "benches", "good", SHOW)
    assert run([place / "a.json"]) == 3
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert told in errors[0]
    assert not (place / "results/bad").exists()
    assert (place / "results/good/all.csv").is_file()
    assert "A report failed" in (place / "results/index.html").read_text()


def test_unreadable_input_writes_nothing(make, place, capsys):
    make.write_json(place / "good.json", make.grid())
    (place / "bad.json").write_text('{"benchmarks": [')
    make.write_question(place / "benches")
    assert run([place / "good.json", place / "bad.json"]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (place / "results").exists()
    assert run([place / "missing.json"]) == 4
    assert run([place / "good.json"], benches=place / "nowhere") == 4


def test_nothing_to_report(make, place, capsys):
    (place / "benches").mkdir()
    assert run([]) == 2
    assert "no .mlexp/journal.jsonl, no results/raw" in capsys.readouterr().err
    make.write_json(place / "a.json", make.grid())
    assert run([place / "a.json"]) == 2
    assert not (place / "results").exists()


def test_what_did_not_finish_is_listed(make, place):
    entries = make.grid()
    lost, entries = entries[-1]["params"], entries[:-1]
    entries.append(make.bench(lost, status="oom", reason="CUDA out of memory"))
    make.write_json(place / "a.json", entries)
    make.write_question(
        place / "benches",
        report="def report(records, out):\n    out.text(f'{len(records)} and {len(out.unfinished)}')\n",
    )
    assert run([place / "a.json"]) == 0
    summary = (place / "results/speed/summary.md").read_text()
    assert "23 and 1" in summary
    assert "unfinished grid: 23 of 24 cells" in summary
    assert "| benches/speed/bench_speed.py::test_run[xl-p03-tree] | oom | CUDA out of memory |" in summary


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], False),
        (["benches/speed/bench_speed.py::test_run[never]"], True),
        (["benches/other/bench_other.py::test_run"], False),
    ],
)
def test_what_a_run_never_came_to_is_said(make, place, more, said):
    entries = make.grid()
    make.write_json(place / "a.json", entries, planned=[*(entry["fullname"] for entry in entries), *more])
    make.write_question(place / "benches")
    assert run([place / "a.json"]) == 0
    told = "unfinished run: 1 of the cells that it selected never ran"
    assert (told in (place / "results/speed/summary.md").read_text()) is said


def test_a_grid_whose_shapes_belong_to_a_kernel_each_is_finished_when_they_are(make):
    shapes = {"sort": ("n10", "n20"), "sum": ("len1", "len2", "len3")}
    arms = {"sort": ("plain", "fast", "fastest"), "sum": ("plain", "fast")}
    rows = [
        {"kernel": kernel, "shape": shape, "arm": arm, "cell": "b.py::test_it[x]", "status": "passed", "wall_s": 1.0}
        for kernel in shapes
        for shape in shapes[kernel]
        for arm in arms[kernel]
    ]
    assert grid_note(pd.DataFrame(rows)) == ""
    assert grid_note(pd.DataFrame(rows[:-1])) == "unfinished grid: 11 of 12 cells"


def test_a_seed_is_an_axis_only_where_the_cells_bear_it():
    cells = [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    rows = [{"n": f"n{n}", "m": f"m{m}", "seed": seed, "status": "passed"} for n, m, seed in cells]
    for form, note in (("{n}-{m}", ""), ("{n}-seed{seed}-{m}", "unfinished grid: 4 of 8 cells")):
        df = pd.DataFrame([row | {"cell": f"b.py::test_it[{form.format(**row)}]"} for row in rows])
        df.attrs["axes"] = ["seed", "n", "m"]
        assert grid_note(df) == note


def test_a_context_without_a_finished_cell_is_still_shown(make, place):
    make.write_json(
        place / "a.json", [make.bench({"n": "n1"}, question="one", status="failed", reason="assert 1 == 2")]
    )
    make.write_question(place / "benches", "one", "def report(records, out):\n    raise AssertionError\n")
    assert run([place / "a.json"]) == 0
    assert "assert 1 == 2" in (place / "results/one/summary.md").read_text()


def test_a_cell_that_was_killed_is_named(make, place):
    from mlexp.journal import Journal

    path = make.write_journal(place / ".mlexp/journal.jsonl", make.grid())
    Journal(path).start("benches/speed/bench_speed.py::test_run[xl-p09-tree]", "some key", "2026-11-22T11:00:00Z")
    make.write_question(place / "benches")
    assert run([]) == 0
    assert "test_run[xl-p09-tree] | killed |" in (place / "results/speed/summary.md").read_text()


def test_a_failure_newer_than_the_success_of_a_cell_replaces_it(make, place):
    entries = [make.bench({"n": "n1"}, question="one", key="old"), make.bench({"n": "n2"}, question="one")]
    entries.append(
        make.bench({"n": "n1"}, question="one", key="new", when="2026-12-01", status="failed", reason="broken")
    )
    make.write_json(place / "a.json", entries)
    make.write_question(place / "benches", "one", SHOW)
    assert run([place / "a.json"]) == 0
    assert pd.read_csv(place / "results/one/all.csv")["n"].tolist() == ["n2"]
    assert "1 older records of the same cells" in (place / "results/one/summary.md").read_text()


def test_series_and_full_precision_reach_the_report(make, place):
    entries = [make.bench({"n": "n1"}, [0.1234567890123456], question="one")]
    make.write_journal(place / "a.jsonl", entries, {entries[0]["extra_info"]["key"]: {"loss": [3.0, None]}})
    report = (
        SHOW + "    row = next(records.itertuples())\n    out.file('loss.txt', str(out.series(row)['loss'].tolist()))\n"
    )
    report += "    assert out.series('no such key') == {} and out.series(records.iloc[0])['loss'][0] == 3\n"
    make.write_question(place / "benches", "one", report)
    assert run([place / "a.jsonl"]) == 0
    assert (place / "results/one/loss.txt").read_text() == "[3.0, nan]"
    assert "0.1234567890123456" in (place / "results/one/all.csv").read_text()
    assert "| n1 | 123 |" in (place / "results/one/summary.md").read_text()


def test_an_index_with_a_name_is_a_column_and_one_without_is_not(make, place):
    make.write_json(place / "a.json", make.grid())
    report = """
def report(records, out):
    out.table(records.pivot_table(index="model", columns=["decoder", "prompt"], values=["wall_s"]), "wide.csv")
    out.table(records[records.model == "xl"], "xl.csv")
"""
    make.write_question(place / "benches", report=report)
    assert run([place / "a.json"]) == 0
    wide, xl = (pd.read_csv(place / "results/speed" / name) for name in ("wide.csv", "xl.csv"))
    assert list(wide.columns)[:2] == ["model", "wall_s plain p00"]
    assert xl.columns[0] == "model"


@pytest.mark.slow
def test_ten_thousand_records_are_reported_whole(make, place):
    """How long it takes is printed (`pytest -m slow -s -k ten_thousand`); 10 s is the aim."""
    entries = make.grid(prompts=1667)
    make.write_json(place / "a.json", entries)
    make.write_question(place / "benches")
    began = time.perf_counter()
    assert run([place / "a.json"]) == 0
    print(f"{len(entries)} records: {time.perf_counter() - began:.1f} s")
    assert "10002, from a.json" in (place / "results/speed/summary.md").read_text()


def test_reading_and_reporting_never_imports_torch(make, place):
    make.write_json(place / "a.json", make.grid())
    make.write_question(place / "benches")
    code = (
        "import sys; from mlexp.cli import main; s = main(['report', 'a.json']); sys.exit(s or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=python_env())
    assert done.returncode == 0, done.stderr


def python_env():
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
