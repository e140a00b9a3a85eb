"""What was reported is kept: taken again where nothing changed, made anew where anything did, the same either way."""

import json
import subprocess
import sys

import pytest

from mlexp.analysis import cache, sections
from mlexp.analysis.report import run


@pytest.fixture
def place(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make.write_json(tmp_path / "a.json", make.grid())
    make.write_question(tmp_path / "benches")
    return tmp_path


@pytest.fixture
def made(monkeypatch):
    """The questions that were reported anew."""
    names, real = [], sections.sections_of
    monkeypatch.setattr(sections, "sections_of", lambda name, *rest: names.append(name) or real(name, *rest))
    return names


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_second_report_is_the_first_one_to_the_byte_and_makes_nothing(place, made):
    assert run([place / "a.json"], place / "one") == run([place / "a.json"], place / "two") == 0
    assert made == ["speed"] and files(place / "one") == files(place / "two")
    assert run([place / "a.json"], place / "three", fresh=True) == 0
    assert made == ["speed", "speed"] and files(place / "three") == files(place / "one")


def record(place):
    content = json.loads((place / "a.json").read_text())
    content["benchmarks"][0]["extra_info"]["n_params"] += 1
    (place / "a.json").write_text(json.dumps(content))


def readme(place):
    (place / "benches/speed/README.md").write_text("# speed: is it so?\n")


def code(place):
    report = place / "benches/speed/report.py"
    report.write_text(report.read_text().replace("Geometric means", "Means"))


def damage(place):
    (file,) = (place / "cache/mlexp/reports").iterdir()
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("change", [record, readme, code, damage])
def test_whatever_changes_is_reported_anew(place, made, change):
    run([place / "a.json"])
    change(place)
    run([place / "a.json"])
    assert made == ["speed", "speed"]


def test_a_module_of_the_project_is_part_of_it(place, made, monkeypatch):
    (place / "own.py").write_text("NOTE = 'one'\n")
    monkeypatch.syspath_prepend(place)
    report = place / "benches/speed/report.py"
    report.write_text("import own\n" + report.read_text().replace("Geometric means", "' + own.NOTE + '"))
    for _ in range(2):
        assert run([place / "a.json"]) == 0
    assert made == ["speed"]
    (place / "own.py").write_text("NOTE = 'two'\n")
    run([place / "a.json"])
    assert made == ["speed", "speed"]
    sys.modules.pop("own")


def test_a_report_that_fails_is_not_kept(place, made):
    report = place / "benches/speed/report.py"
    report.write_text("def report(records, out):\n    raise RuntimeError('no')\n")
    assert run([place / "a.json"]) == run([place / "a.json"]) == 3
    assert made == ["speed", "speed"]


def test_a_cache_that_cannot_be_written_is_said_and_nothing_is_lost(place, capsys, monkeypatch):
    (place / "cache").write_text("in the way")
    assert run([place / "a.json"]) == 0
    assert "not kept for the next time" in capsys.readouterr().err
    assert (place / "results/index.html").exists()


def test_what_is_kept_needs_none_of_the_libraries_that_draw(place):
    code = "import sys; from mlexp.analysis.report import run; from pathlib import Path; run([Path('a.json')])"
    code += "; print(sorted({'pandas', 'scipy', 'matplotlib'} & set(sys.modules)))"
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2)]
    assert [each.stdout.splitlines()[-1] for each in said] == ["['matplotlib', 'pandas', 'scipy']", "[]"]


def test_what_nobody_asked_for_is_thrown_away(place, monkeypatch):
    run([place / "a.json"])
    (first,) = (place / "cache/mlexp/reports").iterdir()
    monkeypatch.setattr(cache, "DAYS", -1)
    readme(place)
    run([place / "a.json"])
    assert not first.exists()
