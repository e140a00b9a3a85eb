"""The commands around a project's questions: init, new, list, show; workflow files against their public schema."""

import ast
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlexp.cli import main
from mlexp.commands import init
from mlexp.commands.listing import _axes, shown
from mlexp.commands.show import bars, named, newest_first
from mlexp.study import Study

from .needs import needs

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
FILES = [".github/workflows/benches.yml", ".gitignore", "benches/first/README.md", "benches/first/bench_first.py"]
PLUGIN = "mlexp.harness.plugin"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty folder to work in. Bench files of the same name in another are another's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("bench_")]:
        del sys.modules[name]


def files(folder):
    """Every file under a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*argv):
    """What a command printed; it must succeed."""
    done = subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def verdict(reported, claim):
    return re.search(rf"^  {claim} (supported|refuted|undecided): ", reported, re.MULTILINE)


def test_init_makes_a_project_whose_first_question_ends_in_a_verdict(project, capsys):
    assert main(["init"]) == 0
    told = capsys.readouterr().out
    assert sorted(files(project)) == sorted([*FILES, "pytest.ini"])
    assert all(f"  {name}" in told for name in files(project))
    assert told.splitlines()[-3].split()[:2] == ["pytest", "benches"]
    run("pytest", "benches/first/bench_first.py", "--scale", "smoke", "--benchmark-json", "out.json")
    reported = run("mlexp", "report", "out.json")
    assert verdict(reported, "H1") and verdict(reported, "H2")


def test_the_first_question_needs_numpy_alone(project):
    main(["init"])
    tree = ast.parse((project / "benches/first/bench_first.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in nodes}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"numpy", "mlexp"}


@pytest.mark.parametrize("where", [".", "lib"])
def test_a_bench_file_imports_the_project_s_own_modules(project, where):
    """Under pytest, and where `mlexp`, started as a command, reads what the file declares."""
    main(["init"])
    main(["new", "sorting"])
    (project / where).mkdir(exist_ok=True)
    (project / where / "mywork.py").write_text("ARMS = {'baseline': 4, 'variant': 1}\n")
    ini_file, bench = project / "pytest.ini", project / "benches/sorting/bench_sorting.py"
    ini_file.write_text(ini_file.read_text().replace("pythonpath = .", f"pythonpath = {where}"))
    bench.write_text(re.sub("ARMS = .*", "from mywork import ARMS", bench.read_text()))
    command = [sys.executable, "-P", "-m"]  # as a script's, its path does not begin with the working folder
    for words in (
        ["pytest", "benches/sorting", "--scale", "smoke", "--benchmark-json", "out.json"],
        ["mlexp", "report", "out.json"],
        ["mlexp", "export", "out.json", "--to", "out.tex"],
        ["mlexp", "list"],
    ):
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_init_again_changes_nothing_and_names_what_is_there(project, capsys):
    main(["init"])
    (project / "benches/first/README.md").write_text("mine")
    before = files(project)
    capsys.readouterr()
    assert main(["init"]) == 0
    assert files(project) == before
    told = capsys.readouterr().out
    assert "wrote" not in told and all(f"kept   {name}" in told for name in before)


def test_init_in_a_folder_that_is_not_there_yet_says_where_to_go(project, capsys):
    assert main(["init", "sub/folder"]) == 0
    assert sorted(files(project / "sub/folder")) == sorted([*FILES, "pytest.ini"])
    assert "    cd sub/folder\n" in capsys.readouterr().out


def test_init_adds_to_gitignore_what_it_lacks(project):
    (project / ".gitignore").write_text("*.pyc\n.mlexp/")
    main(["init"])
    lines = (project / ".gitignore").read_text().splitlines()
    assert lines[:2] == ["*.pyc", ".mlexp/"] and "/results/*" in lines and lines.count(".mlexp/") == 1


def test_what_a_first_session_leaves_is_not_for_the_repository(project):
    subprocess.run(["git", "init", "-q"], check=True)
    main(["init"])
    for left in (
        ".venv/pyvenv.cfg",
        "venv/pyvenv.cfg",
        "out.json",
        "again.json",
        "again.series/a.npz",
        "results/a.csv",
    ):
        (project / left).parent.mkdir(exist_ok=True)
        (project / left).touch()
    for kept in ("results/raw/base.json", "benches/first/prompts.json"):
        (project / kept).parent.mkdir(exist_ok=True)
        (project / kept).touch()
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True)
    kept = ["benches/first/prompts.json", "pytest.ini", "results/raw/base.json"]
    assert sorted(done.stdout.split()) == sorted([*FILES, *kept])


def test_init_writes_no_first_question_where_there_are_others(project):
    main(["new", "mine"])
    main(["init"])
    assert not (project / "benches/first").exists()


def test_init_where_a_file_is_in_the_way_is_one_line(project, capsys):
    (project / "benches").write_text("")
    assert main(["init"]) == 4
    assert capsys.readouterr().err.startswith("mlexp init: ")


CONFIGURED = {  # file -> its content, which configures pytest
    "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-ra -q"\n',
    "sub/pyproject.toml": "[tool.pytest.ini_options]\nxfail_strict = true\n",
    "list/pyproject.toml": '[tool.pytest.ini_options]\naddopts = ["-ra", "-q"]\n',
    "native/pyproject.toml": '[tool.pytest]\naddopts = ["-ra"]\n',
    "tox.ini": "[tox]\nenv_list = py\n[pytest]\naddopts = -ra\n  -q\n",
    "setup.cfg": "[tool:pytest]\nxfail_strict = true\n",
    "pytest.ini": "",
    ".pytest.ini": "[pytest]\naddopts = -ra\n",
    "pytest.toml": "[pytest]\nxfail_strict = true\n",
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_where_pytest_is_configured_init_says_which_lines_to_add(name, project, capsys, monkeypatch):
    path = project / name
    path.parent.mkdir(exist_ok=True)
    monkeypatch.chdir(path.parent)
    path.write_text(CONFIGURED[name])
    assert main(["init"]) == 1
    told = capsys.readouterr().out
    assert path.read_text() == CONFIGURED[name]
    table, line = re.search(r"let it say\n\n    (\[.*\])\n    (addopts = .*)\n", told).groups()
    assert f"left to do: {path.name} configures pytest" in told and PLUGIN in line
    assert all(option in line for option in ("-ra", "-q") if option in CONFIGURED[name])  # what stands there stays

    def is_on():
        done = subprocess.run([sys.executable, "-m", "pytest", "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return "experiment cells" in done.stdout

    if re.fullmatch(r"(native/)?py(test|project)\.toml", name) and pytest.version_tuple < (9,) and ".ini" not in table:
        return  # this pytest reads no such table
    assert not is_on()
    others = [row for row in CONFIGURED[name].splitlines() if row != table and "-q" not in row and "-ra" not in row]
    path.write_text("\n".join([*(others if table not in CONFIGURED[name] else []), table, line]))
    assert is_on() and main(["init"]) == 0


def test_a_pyproject_that_is_silent_on_pytest_gets_a_pytest_ini_beside_it(project):
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert main(["init"]) == 0
    assert (project / "pytest.ini").exists()


def test_a_configuration_that_cannot_be_read_is_one_line(project, capsys):
    (project / "pyproject.toml").write_text("[tool")
    assert main(["init"]) == 4
    assert re.match(r"mlexp init: pyproject.toml: .*\n\Z", capsys.readouterr().err)


def workflow_errors(*paths):
    """What the public schema of workflow files says of these; empty where they are valid."""
    pytest.importorskip("check_jsonschema")
    words = ["-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, paths)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode else ""


def test_workflows_are_valid_by_their_public_schema(project):
    main(["init", "--install", 'mlexp @ git+https://example.org/"x"#\\y'])
    own = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert own and not workflow_errors(project / FILES[0], *own)


def test_a_workflow_that_is_wrong_is_seen(project):
    main(["init"])
    text = (project / FILES[0]).read_text()
    (project / "wrong.yml").write_text(text.replace("runs-on:", "run-on:"))
    assert "run-on" in workflow_errors(project / "wrong.yml")


def test_the_workflow_installs_what_it_is_told(project, capsys, monkeypatch):
    monkeypatch.setattr(init, "source", lambda: "")
    main(["init", "one", "--install", "wheels/x.whl"])
    assert '  MLEXP: "wheels/x.whl" # what pip installs' in Path("one", FILES[0]).read_text()
    assert "before you push" not in capsys.readouterr().out
    main(["init", "two"])
    assert '  MLEXP: "" # EDIT: ' in Path("two", FILES[0]).read_text()
    for _ in range(2):  # as long as nothing stands there
        assert "before you push .github/workflows/benches.yml" in capsys.readouterr().out
        assert main(["init", "two"]) == 0


def test_a_workflow_that_is_there_and_installs_something_else_is_left_to_edit(project, capsys):
    """`--install` overwrites nothing, and does not pass it over in silence."""
    main(["init"])
    workflow = project / FILES[0]
    number = next(i for i, line in enumerate(workflow.read_text().splitlines(), 1) if "MLEXP:" in line)
    capsys.readouterr()
    assert main(["init", "--install", "wheels/x.whl"]) == 1
    said = f'left to do: {FILES[0]}:{number} was there and says `MLEXP: ""`; let it say\n\n    MLEXP: "wheels/x.whl"\n'
    assert said in capsys.readouterr().out
    for written in ('"wheels/x.whl" # ours', "wheels/x.whl", "'wheels/x.whl'"):
        workflow.write_text(re.sub("MLEXP: .*", f"MLEXP: {written}", workflow.read_text(), count=1))
        assert main(["init", "--install", "wheels/x.whl"]) == 0
        assert "left to do" not in capsys.readouterr().out
    workflow.write_text("on: push\n")
    assert main(["init", "--install", "wheels/x.whl"]) == 1
    assert "has no line `MLEXP:`; let its `pip install` take wheels/x.whl\n" in capsys.readouterr().out


@pytest.mark.parametrize("install", ["", "wheels/x.whl"])
def test_the_workflow_s_first_step_fails_while_it_is_not_said_what_to_install(install):
    first = init.workflow(install).partition("    steps:\n")[2].partition("      - uses:")[0]
    script = textwrap.dedent(first.partition("run: |\n")[2])
    done = subprocess.run(
        ["bash", "-e", "-c", script], capture_output=True, text=True, check=False, env={"MLEXP": install}
    )
    assert (done.returncode, bool(done.stdout)) == ((0, False) if install else (1, True))
    if not install:
        assert re.match(r"::error::the line MLEXP: of .github/workflows/benches.yml is empty; .*\n\Z", done.stdout)


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        (None, "mlexp-x==1.2"),
        ("no RECORD: the metadata that a build left in a checkout", ""),
        ({"url": "file:///home/me/mlexp", "dir_info": {"editable": True}}, ""),
        ({"url": "https://example.org/x.whl", "archive_info": {}}, "mlexp-x @ https://example.org/x.whl"),
        (
            {"url": "https://example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "mlexp-x @ git+https://example.org/r.git@abc",
        ),
    ],
)
def test_where_this_installation_came_from(origin, source, monkeypatch):
    class Installed:
        version = "1.2"

        def read_text(self, name):
            if isinstance(origin, str):
                return None
            return "" if name == "RECORD" else origin and json.dumps(origin)

    monkeypatch.setattr(init.metadata, "packages_distributions", lambda: {"mlexp": ["mlexp-x"]})
    monkeypatch.setattr(init.metadata, "distribution", lambda name: Installed())
    assert init.source() == source


@pytest.mark.parametrize("options", [[], ["--arms", "a,b,c", "--over", "size"]], ids=["plain", "over"])
def test_a_new_question_runs_as_it_is_written(project, options, capsys):
    assert main(["new", "sorting", *options]) == 0
    assert "pytest benches/sorting " in capsys.readouterr().out
    (project / "pytest.ini").write_text(f"[pytest]\naddopts = -p {PLUGIN}\n")
    run("pytest", "benches/sorting/bench_sorting.py", "--scale", "smoke", "--benchmark-json", "out.json")
    assert verdict(run("mlexp", "report", "out.json"), "H1")
    assert "@" not in (project / "benches/sorting/README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    if not options:
        assert (project / "benches/sorting/bench_sorting.py").read_text().count("\n") < example.count("\n")


@pytest.mark.parametrize("options", [[], ["--arms", "a_long_name,another_long_name", "--over", "sequence_length"]])
def test_what_is_written_passes_ruff(project, options):
    main(["init"])
    main(["new", "sorting", *options])
    for words in ("check --select E,F,W,B,UP,SIM", "format --check"):
        ruff = [sys.executable, "-m", "ruff", *words.split(), "--line-length", "120", "benches"]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Sorting"], "'Sorting' is no name; use a-z, 0-9 and _, a letter first"),
        (["a/b"], "'a/b' is no name"),
        (["2fast"], "'2fast' is no name"),
        (["class"], "'class' is no name"),
        (["there"], "benches/there exists; choose another name"),
        (["fast", "--arms", "slow,fast"], "'fast' holds the arm 'fast': `-k fast` would select all of it; rename one"),
        (["fast_sort", "--arms", "slow,fast"], "'fast_sort' holds the arm 'fast'"),
        (["sorting", "--arms", "one"], "--arms one: give two or more, each once"),
        (["sorting", "--arms", "one,one"], "--arms one,one: give two or more, each once"),
        (["sorting", "--arms", "one,B-2"], "arm 'B-2' cannot stand in a test id"),
        (["sorting", "--over", "seed"], "--over seed: the name is taken"),
        (["sorting", "--over", "Size"], "'Size' is no name"),
    ],
)
def test_a_name_that_will_not_do_is_one_line(project, capsys, words, message):
    (project / "benches/there").mkdir(parents=True)
    assert main(["new", *words]) == 4
    told = capsys.readouterr().err
    assert told.startswith(f"mlexp new: {message}") and told.count("\n") == 1
    assert list((project / "benches").iterdir()) == [project / "benches/there"]


def test_list_shows_what_there_is(project, capsys):
    main(["init"])
    capsys.readouterr()
    assert main(["list", "--scale", "smoke"]) == 0
    told = capsys.readouterr().out
    for line in (
        "first  Which moving average is fast, and what does it cost in digits?",
        "  benches/first/bench_first.py: 9 cells at scale smoke (other scales: quick, full)",
        "  cells     test_average(n, seed, method): 9",
        "  axes      n: 1000",
        "            method: loop, convolve, cumsum (compared; baseline loop)",
        "            width: int = 32; at least 1",
        "            error_eps: eps, lower is better; largest relative error of the last 100 means, in units of 2**-52",
        "  claims    H1 (primary): At every length running sums are more than 5 times as fast as a loop",
    ):
        assert line in told.splitlines()
    assert not (project / ".mlexp").exists()


def test_list_shows_of_an_axis_what_any_function_takes_of_it():
    bench = SimpleNamespace(study=Study("?", arm="arm", arms=("a", "b"), baseline="a", outcome="wall_s"), axes={
        "test_all": {"arm": ["a", "b"], "n": [1, 2]}, "test_some": {"n": [2, 3], "arm": ["b"]}})  # fmt: skip
    assert list(_axes(bench)) == ["arm: a, b (compared; baseline a)", "n: 1, 2, 3"]


def test_list_as_json_counts_what_pytest_collects(project, capsys):
    main(["init"])
    main(["new", "mine"])
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    first, mine = json.loads(capsys.readouterr().out)
    collected = run("pytest", *(f"benches/{q}/bench_{q}.py" for q in ("first", "mine")), "--collect-only", "-q")
    for found in (first, mine):
        assert found["cells"] == collected.count(f"bench_{found['question']}.py::") > 1
    assert first["functions"]["test_average"]["axes"]["n"] == [1000, 10000, 100000]
    width = {"name": "width", "type": "int", "value": 32, "bounds": ["at least 1"], "axis": ""}
    assert width in first["settings"] and first["claims"]["H1"]["primary"]
    assert mine["metrics"]["items"] == {"unit": "count", "better": "none", "what": "values sorted"}


def test_list_has_the_metrics_of_costs_and_claims(project, capsys):
    main(["new", "mine"])
    bench = project / "benches/mine/bench_mine.py"
    text = bench.read_text()
    (claim,) = re.findall(r'ratio\("\w+", "\w+"\)', text)
    bench.write_text(
        text.replace(claim, f'{claim[:-1]}, "energy_j")').replace("    arm=", '    costs=("n_params",),\n    arm=')
    )
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert set(found["metrics"]) == {"wall_s", "items", "energy_j", "n_params"}


def test_list_of_a_question_without_a_study(toy, capsys, monkeypatch):
    monkeypatch.chdir(toy.pytester.path)
    toy.edit("def test_toy", "def test_other(cell, model):\n    cell.time(list)\n\ndef test_toy")
    assert main(["list", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["asks"].startswith("A toy question: two models") and found["claims"] == {}
    assert {name: part["cells"] for name, part in found["functions"].items()} == {"test_other": 2, "test_toy": 8}
    assert main(["list", "benches/toy/bench_toy.py"]) == 0
    assert "            share: float = 0.5" in capsys.readouterr().out
    assert toy.ran() == []


def test_list_of_our_own_questions_loads_no_torch():
    needs("torch")  # else they say what they lack
    code = "import sys; from mlexp.cli import main; main(['list']); print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *listed, loaded = done.stdout.splitlines()
    assert loaded == "set()"
    questions = {path.parent.name for path in (ROOT / "benches").glob("*/bench_*.py")}
    assert {line.partition("  ")[0] for line in listed if line[:1].isalpha()} == questions


def test_list_names_what_cannot_be_collected_and_lists_the_rest(project, capsys):
    main(["new", "mine"])
    main(["new", "other"])
    bench = project / "benches/other/bench_other.py"
    bench.write_text(bench.read_text().replace('"seed": "seeds"', '"seed": "sees"'))
    capsys.readouterr()
    assert main(["list"]) == 4
    out, err = capsys.readouterr()
    assert out.startswith("mine  ") and re.match(r"mlexp list: benches/other/bench_other.py:\d+: .*'seeds'\?\n\Z", err)


@pytest.mark.parametrize(("words", "status"), [(["nowhere"], 2), (["."], 2)])
def test_list_of_nothing(project, capsys, words, status):
    assert main(["list", *words]) == status
    assert capsys.readouterr().err.startswith(f"mlexp list: {words[0]}: no ")


def test_long_lists_are_cut():
    assert shown(list(range(8))) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert shown(list(range(40))) == "0, 1, 2, 3, 4, 5, ..., 39 (40)"
    assert (shown(()), shown("text")) == ("()", "text")


@pytest.fixture
def measured(toy, monkeypatch, capsys):
    """A toy project with a journal of eight cells, one of them failed."""
    monkeypatch.chdir(toy.pytester.path)
    toy.script("m_two-seed2-ours", "raise RuntimeError('odd')")
    toy.run("--benchmark-json", "out.json")
    capsys.readouterr()
    return toy


def test_show_has_all_of_a_record(measured, capsys):
    assert main(["show", "m_one-seed1-ours"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "benches/toy/bench_toy.py::test_toy[m_one-seed1-ours]  passed"
    assert told[1:4] == ["  axes        model = m_one", "              seed = 1", "              arm = ours"]
    assert re.match(r"  metrics     wall_s = \S+ s \(interquartile range \S+ s, 3 rounds\)  median", told[4])
    assert told[5] == "              things = 3 count  how many things, lower is better"
    assert "              accuracy = 0.5 fraction  share of correct outcomes, higher is better" in told
    assert "  settings    share = 0.5" in told and "              size = 3" in told
    assert "  series      curve: 3 values, 1 to nan, within 1 and 2.5  ▁█ " in told
    assert "              scale = quick" in told and any("key = " in line for line in told)


def test_show_as_json(measured, capsys):
    assert main(["show", "test_toy[m_two-seed2-ours]", "out.json", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["status"], record["reason"]) == ("failed", "RuntimeError: odd")
    assert record["axes"] == {"model": "m_two", "seed": 2, "arm": "ours"}
    assert main(["show", "m_one-seed1-ours", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert record["series"] == {"curve": [1.0, 2.5, None]}
    assert record["metrics"]["things"] == {"value": 3, "unit": "count", "better": "lower", "what": "how many things"}


@pytest.mark.parametrize("name", ["key", "cell", "part"])
def test_a_cell_is_found_by_every_name(measured, capsys, name):
    bench = measured.json()["benchmarks"][0]
    given = {"key": bench["extra_info"]["key"], "cell": bench["fullname"], "part": bench["fullname"][-22:-3]}[name]
    assert main(["show", given]) in (0, 4)
    out, err = capsys.readouterr()
    assert bench["fullname"] in out + err


def test_a_name_of_several_cells_lists_them(measured, capsys):
    assert main(["show", "seed1-ours"]) == 4
    first, *cells = capsys.readouterr().err.splitlines()
    assert first == "mlexp show: 'seed1-ours' is part of 2 cells:"
    assert [cell.strip() for cell in cells] == [
        f"benches/toy/bench_toy.py::test_toy[{model}-seed1-ours]" for model in ("m_one", "m_two")
    ]


def test_a_whole_name_is_meant_although_it_is_part_of_another(measured, capsys):
    measured.run("--set", "seeds=1,11", "-k", "m_one")
    capsys.readouterr()
    assert main(["show", "m_one-seed1-ours"]) == 0
    assert "test_toy[m_one-seed1-ours]" in capsys.readouterr().out


def test_the_newest_record_is_shown_first(measured, capsys):
    measured.run("--set", "size=5", "-k", "m_one-seed1-ours")
    capsys.readouterr()
    assert main(["show", "m_one-seed1-ours"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"things = (\d)", told) == ["5", "3"]
    assert "overrides = size=5" in told


def test_of_records_of_one_second_the_last_in_the_files_is_the_newest():
    second, later = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00"
    rows = [
        SimpleNamespace(values={"when": when, "key": key})
        for when, key in zip((later, second, second), "abc", strict=True)
    ]
    assert [row.values["key"] for row in newest_first(rows)] == ["a", "c", "b"]


def test_a_cell_that_never_ended_is_said(measured, capsys):
    measured.run("--set", "seeds=7", "-k", "m_one and ours")
    lines = measured.journal.read_text().splitlines(keepends=True)
    measured.journal.write_text("".join(line for line in lines if not ('"event":"cell"' in line and "seed7" in line)))
    capsys.readouterr()
    assert main(["show", "m_one-seed7-ours"]) == 2
    assert re.search(r"\[m_one-seed7-ours\] started at \S+ and never ended", capsys.readouterr().err)


@pytest.mark.parametrize(("words", "status"), [(["zzz"], 2), (["x", "nowhere.json"], 4)])
def test_show_of_nothing(measured, capsys, words, status):
    assert main(["show", *words]) == status
    assert capsys.readouterr().err.startswith("mlexp show: ")


def test_a_whole_name_means_no_longer_one():
    """`n1` is the cell of that id, and not `n10` too; a part is everything that has it."""
    short, long = (SimpleNamespace(values={"cell": f"bench_a.py::test_a[{name}]"}) for name in ("n1", "n10"))
    assert named([short, long], "n1") == [short]
    assert named([short, long], "test_a") == [short, long]


def test_show_without_any_records(project, capsys):
    assert main(["show", "x"]) == 2
    assert "run `pytest benches`" in capsys.readouterr().err


def test_bars_show_the_shape_of_a_series():
    assert bars(np.arange(8.0)) == "▁▂▃▄▅▆▇█"
    assert bars(np.array([1.0, np.nan, 3.0])) == "▁ █"
    assert bars(np.ones(3)) == "▁▁▁"
    assert len(bars(np.arange(1000.0))) == 32
