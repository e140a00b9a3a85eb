"""The command line: its help, its version, its exit statuses."""

import json
import subprocess
import sys

import pytest

import mlexp
from mlexp.cli import main


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
