"""The command line: its help, its version, its exit statuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mlexp
from mlexp.cli import main
from mlexp.harness.sweep import Share


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"mlexp {mlexp.__version__}\n"


def test_help_names_the_exit_statuses(capsys):
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "2 nothing to report" in told
    assert "--benches DIR" in told


def test_exports_name_their_endings_and_exit_statuses(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert ".csv, .csv.gz, .jsonl, .jsonl.gz, .parquet or .tex" in told and "2 no records; 4 unreadable input" in told


@pytest.mark.parametrize("command", ["compare", "ab"])
def test_both_gates_name_their_exit_statuses(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "2 nothing or not everything compared; 3 not comparable" in " ".join(capsys.readouterr().out.split())


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_help_is_fast_because_nothing_heavy_is_imported():
    heavy = "{'pandas', 'matplotlib', 'scipy', 'torch', 'jinja2'}"
    code = (
        f"import sys; from mlexp.cli import parser; parser().format_help(); sys.exit(str({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize(("text", "status"), [(None, 4), ("{", 4), ('{"benchmarks": []}', 2)])
def test_exit_status_of_what_cannot_be_reported(tmp_path, monkeypatch, capsys, text, status):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    assert main(["report", "a.json"]) == status
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_given_and_nothing_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert "nothing to report" in capsys.readouterr().err


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "mlexp", "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("mlexp ")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    record = {"fullname": "b.py::test_it", "params": {}, "extra_info": {}, "stats": {"median": 1.0, "data": [1.0]}}
    path = tmp_path / "out.json"
    path.write_text(json.dumps({"benchmarks": [record], "machine_info": {}, "commit_info": {}, "version": "5"}))
    words = [sys.executable, "-m", "mlexp", "compare", str(path), str(path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, "")


@pytest.mark.parametrize(
    ("words", "target", "passed"),
    [
        (
            "report a b --out o --benches q --figures pdf --fresh",
            "mlexp.analysis.report.run",
            ([Path("a"), Path("b")], Path("o"), Path("q"), "pdf", True),
        ),
        ("report", "mlexp.analysis.report.run", ([], Path("results"), None, "svg", False)),
        (
            "export a --to o.tex --question s --columns x,y --table records --benches q",
            "mlexp.analysis.export.run",
            ([Path("a")], Path("o.tex"), "s", "x,y", "records", Path("q")),
        ),
        ("export --to o.csv", "mlexp.analysis.export.run", ([], Path("o.csv"), None, None, None, None)),
        (
            "compare b h --gate g --fail-if x:+1 --fail-if y:-2 --lower l --higher u --cross-machine --json",
            "mlexp.analysis.compare.run",
            (Path("b"), Path("h"), Path("g"), ["x:+1", "y:-2"], "json", True, ["l"], ["u"]),
        ),
        ("compare b h", "mlexp.analysis.compare.run", (Path("b"), Path("h"), None, [], "text", False, [], [])),
        (
            "ab --budget 7 --margin 5 --markdown b h -- q -k x",
            "mlexp.ab.run",
            ("b", "h", ["q", "-k", "x"], 7.0, 0.05, "markdown"),
        ),
        ("ab b h", "mlexp.ab.run", ("b", "h", [], 60, 0.03, "text")),
        (
            "sweep --address a --gpus-per-cell 0.5 --cpus-per-cell 3 --share-cores --retries 4 -- q --resume",
            "mlexp.harness.sweep.run",
            (Share(address="a", gpus=0.5, cpus=3, share_cores=True, retries=4), ["q", "--resume"]),
        ),
        ("sweep", "mlexp.harness.sweep.run", (Share(), [])),
    ],
)
def test_every_option_reaches_what_it_is_for(monkeypatch, words, target, passed):
    calls = []
    monkeypatch.setattr(target, lambda *args: calls.append(args) or 17)
    assert main(words.split()) == 17 and calls == [passed]
