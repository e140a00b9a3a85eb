"""`pytest_mlexp_record`: once for every finished cell, where the journal is; the examples in docs/hook.md."""

import json
import re

import pytest

from ..command import ROOT

pytest_plugins = ["pytester"]
TELLS = """
import json, pathlib
def pytest_mlexp_record(config, record, series):
    line = json.dumps({**record, "series": {name: list(series[name]) for name in series}})
    with open(pathlib.Path(__file__).with_name("told.jsonl"), "a") as file:
        file.write(line + "\\n")
"""


def told(toy):
    path = toy.pytester.path / "told.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return {record["cell"].partition("[")[2].rstrip("]"): record for record in map(json.loads, lines)}, len(lines)


@pytest.mark.parametrize("isolated", [(), ("--isolate",)], ids=["here", "isolated"])
def test_every_finished_cell_is_told_once(toy, isolated):
    toy.pytester.makeconftest(TELLS)
    toy.script("m_one-seed1-ours", "assert 0, 'no'")
    toy.run("-k", "m_one", *isolated)
    found, count = told(toy)
    assert count == len(found) == 4
    assert found["m_one-seed1-ours"]["status"] == "failed" and "wall_s" not in found["m_one-seed1-ours"]
    one = found["m_one-seed1-base"]
    assert (one["model"], one["arm"], one["things"], one["rounds"], one["status"]) == ("m_one", "base", 3, 3, "passed")
    assert one["wall_s"] > 0 and not one["replayed"] and one["series"] == {"curve": [1, 2.5, None]}
    toy.run("-k", "m_one", "--resume", *isolated)
    found, count = told(toy)
    assert count == 4 and [name for name, record in found.items() if not record["replayed"]] == ["m_one-seed1-ours"]


def test_what_a_hook_raises_is_one_line_and_costs_nothing(toy):
    toy.pytester.makeconftest("def pytest_mlexp_record(record):\n    raise KeyError('no\\nserver')\n")
    result = toy.run("-k", "m_one", "--benchmark-json", "out.json")
    result.assert_outcomes(passed=4)
    lines = [line for line in result.outlines if line.startswith("mlexp: pytest_mlexp_record, ")]
    assert len(lines) == 4 and all("KeyError: 'no" in line for line in lines)
    assert len(toy.json()["benchmarks"]) == 4
    assert len([line for line in result.outlines if re.match("  m_one seed", line)]) == 4


def test_an_unknown_argument_of_a_hook_is_an_error(toy):
    toy.pytester.makeconftest("def pytest_mlexp_record(recrod):\n    pass\n")
    assert toy.run(subprocess=True).ret != 0


def test_collecting_and_disabling_tell_nothing(toy):
    toy.pytester.makeconftest(TELLS)
    for flag in ("--collect-only", "--benchmark-disable"):
        toy.run(flag)
    assert told(toy) == ({}, 0)


STAND_INS = {
    "wandb": """
import json, pathlib
class Run:
    def __init__(self, **kwargs):
        self.kwargs, self.summary, self.steps = kwargs, {}, []
    def __enter__(self):
        return self
    def __exit__(self, *_):
        with open(pathlib.Path(__file__).with_name("told.jsonl"), "a") as file:
            file.write(json.dumps([self.kwargs, self.summary, self.steps]) + "\\n")
    def log(self, values, step):
        self.steps.append([step, values])
def init(*, project, name, group, config):
    return Run(project=project, name=name, config=config)
""",
    "mlflow": """
import contextlib, json, pathlib
run = None
def set_experiment(name):
    globals()["project"] = name
@contextlib.contextmanager
def start_run(*, run_name):
    global run
    run = [{"project": project, "name": run_name}, {}, []]
    yield
    with open(pathlib.Path(__file__).with_name("told.jsonl"), "a") as file:
        file.write(json.dumps(run) + "\\n")
def log_params(params):
    run[0]["config"] = params
def log_metrics(metrics):
    run[1].update(metrics)
def log_metric(key, value, step):
    run[2].append([step, {key: value}])
""",
}


@pytest.mark.parametrize("name", STAND_INS)
def test_the_examples_of_the_document_run(toy, name):
    (example,) = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```", (ROOT / "docs/hook.md").read_text(), re.DOTALL)
    toy.pytester.makepyfile(**{name: STAND_INS[name]})
    toy.pytester.makeconftest(example)
    toy.edit('curve=[seed, 2.5, float("nan")]', "loss=[2.5, 1.5]")
    result = toy.run("-k", "m_one and seed1", "-p", "no:randomly", subprocess=True)
    assert not [line for line in result.outlines if "pytest_mlexp_record" in line]
    rows = [json.loads(line) for line in (toy.pytester.path / "told.jsonl").read_text().splitlines()]
    assert [row[0]["project"] for row in rows] == ["toy", "toy"]
    assert rows[0][0]["name"].endswith("test_toy[m_one-seed1-base]") and rows[0][0]["config"]["things"] == 3
    assert rows[0][1]["accuracy"] == 0.5 and rows[0][1]["wall_s"] > 0
    assert rows[0][2] == [[0, {"loss": 2.5}], [1, {"loss": 1.5}]]
    toy.run("-k", "m_one and seed1", "--resume", subprocess=True)
    assert len((toy.pytester.path / "told.jsonl").read_text().splitlines()) == 2
