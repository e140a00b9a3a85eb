"""The driver of a sweep over a stand-in for Ray: what cells are started with, and what becomes of those that are lost.

Ray's client is played by an object whose calls are done when they are made; the sessions that run cells are real ones.
With Ray itself: tests/faults/test_sweep.py.
"""

import os
from types import SimpleNamespace

import pytest

from mlexp import journal
from mlexp.analysis import results
from mlexp.harness import measure
from mlexp.harness.cluster import FORWARDED
from mlexp.harness.dispatch import Dispatch, Worker
from mlexp.harness.plan import PLAN
from mlexp.harness.session import PEER
from mlexp.harness.sweep import Share, Sweep

pytest_plugins = ["pytester"]


class RayError(Exception):
    """What Ray raises for a worker that is gone."""


class Ref:
    """A call that is done."""

    def __init__(self, value):
        self.value = value


class Actor:
    """An actor whose methods run in this process when they are called; `failing` says which raise RayError instead."""

    def __init__(self, ray, cls):
        self._ray, self._place = ray, cls()

    def __getattr__(self, name):
        def remote(*args):
            self._ray.calls.append((name, *args))
            if self._ray.failing and self._ray.failing[0] == name:
                self._ray.failing.pop(0)
                return RayError("gone")
            return Ref(getattr(self._place, name)(*args))

        return SimpleNamespace(remote=remote)


class OneNode:
    """Ray, as far as a sweep knows it: one node with two cores."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, failing=()):
        self.calls, self.failing, self.killed = [], list(failing), 0

    def init(self, **how):
        self.calls.append(("init", how))

    def shutdown(self):
        self.calls.append(("shutdown",))

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, cls):
        def options(**how):
            self.calls.append(("options", how))
            return SimpleNamespace(remote=lambda: Actor(self, cls))

        return SimpleNamespace(options=options)

    def wait(self, refs, timeout=None, num_returns=1):
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref):
        if isinstance(ref, RayError):
            raise ref
        return ref.value

    def kill(self, actor):
        self.killed += 1

    def made(self, name):
        """The arguments of every call of that name."""
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def swept(toy, monkeypatch):
    """Sweep the toy project."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None, raising=False)

    def run(ray, *args, share=None):
        sweep = Sweep(ray, share or Share(cpus=1))
        words = ["benches", "-p", "mlexp.harness.plugin", "-p", "no:cacheprovider", "--benchmark-json", "out.json"]
        return toy.pytester.inline_run(*words, *args, plugins=[sweep], no_reraise_ctrlc=True).ret

    return run


SAME = ("things", "accuracy", "key", "settings", "seed", "status", "machine", "overrides")


def test_a_sweep_leaves_the_records_of_a_local_run(toy, swept, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    toy.run("--benchmark-json", "home.json", "--journal", "home.jsonl", "--set", "size=4")
    home = {b["fullname"]: b for b in toy.json("home.json")["benchmarks"]}
    toy.ran()
    ray = OneNode()
    assert swept(ray, "--set", "size=4") == 0
    out = toy.json()
    assert len(toy.ran()) == 8 and out["series"] == toy.json("home.json")["series"]
    for bench in out["benchmarks"]:
        at_home = home.pop(bench["fullname"])
        assert {name: bench["extra_info"][name] for name in SAME} == {n: at_home["extra_info"][n] for n in SAME}
        assert len(bench["stats"]["data"]) == 3 and not bench["extra_info"]["replayed"]
    assert not home and len(journal.read(toy.journal).entries) == 8 and not journal.read(toy.journal).died
    assert ray.made("options") == [({"num_cpus": 1, "num_gpus": 0.0, "max_restarts": 0},)] * 2  # two cores, two workers
    assert sorted(cores for _, cores in ray.made("start")) == [[0], [1]]  # each its own
    assert ray.calls[-1] == ("shutdown",) and ray.killed == 2


def test_large_series_travel_and_each_cell_is_told_once(toy, swept):
    toy.edit("cell.series(curve=", "cell.series(w=list(range(20_000)), curve=")
    told = "    open('told', 'a').write(f\"{record['cell']} {sum(series['w'])}\\n\")\n"
    toy.pytester.makeconftest(f"def pytest_mlexp_record(record, series):\n{told}")
    assert swept(OneNode(), "-k", "m_one") == 0
    assert [arrays["w"].sum() for arrays in results.load_series(toy.journal).values()] == [199_990_000] * 4
    assert results.load_series(toy.pytester.path / "out.json").keys() == results.load_series(toy.journal).keys()
    assert toy.journal.stat().st_size < 20_000
    lines = (toy.pytester.path / "told").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 4 and all(line.endswith(" 199990000.0") for line in lines)


def test_workers_start_with_the_driver_s_arguments_and_its_part_of_the_environment(toy, swept, monkeypatch):
    for name, value in {"OMP_NUM_THREADS": "1", "HF_HOME": "there", "XDG_CACHE_HOME": "here", "SECRET": "s"}.items():
        monkeypatch.setenv(name, value)
    ray = OneNode()
    args = ["-k", "m_one-seed1", "--cell-timeout", "60", "--dtype", "bfloat16"]
    assert swept(ray, *args, share=Share(cpus=2)) == 0
    ((call, cores),) = ray.made("start")
    assert cores == [0, 1] and ray.made("options")[0][0]["num_cpus"] == 2
    assert {"-k", "m_one-seed1", "--dtype", "bfloat16", "--cell-timeout"} <= set(call.args)
    assert call.args[-2:] == ["--mlexp-device", "cpu"]  # as the driver has settled it
    assert call.files == [str(toy.bench)] and call.folder == str(toy.pytester.path)
    assert call.isolate and call.limit == 60.0
    assert {"OMP_NUM_THREADS": "1", "HF_HOME": "there", "XDG_CACHE_HOME": "here"}.items() <= call.env.items()
    assert all(name.startswith(FORWARDED) for name in call.env) and "SECRET" not in call.env
    assert {b["extra_info"]["dtype"] for b in toy.json()["benchmarks"]} == {"bfloat16"}


@pytest.mark.parametrize(("losses", "retries", "status"), [(1, 1, "passed"), (2, 1, "crashed"), (1, 0, "crashed")])
def test_a_cell_that_loses_its_worker_is_run_again_as_often_as_it_may(toy, swept, losses, retries, status):
    ray = OneNode(failing=["run"] * losses)
    ended = swept(ray, "-k", "m_one-seed1-base", share=Share(cpus=1, retries=retries))
    (entry,) = journal.read(toy.journal).entries
    assert (entry.status, ended) == (status, 0 if status == "passed" else 1)
    assert len(ray.made("run")) == min(losses, retries) + 1
    if status == "crashed":
        lost = f"lost {losses} times" if losses > 1 else "was lost (RayError)"
        assert lost in entry.record["reason"] and entry.record["machine"] == measure.machine("cpu")


def test_what_a_journal_holds_from_such_a_machine_is_not_run(toy, swept, monkeypatch):
    assert swept(OneNode(), "-k", "m_one-seed1-base") == 0
    monkeypatch.setattr(Sweep, "machines", lambda self, device: {"another", measure.machine(device)})
    toy.ran()
    ray = OneNode()
    assert swept(ray, "-k", "m_one-seed1", "--resume") == 0
    assert toy.ran() == ["m_one-seed1-ours"]
    assert {b["params"]["arm"]: b["extra_info"]["replayed"] for b in toy.json()["benchmarks"]} == {
        "base": True, "ours": False,
    }  # fmt: skip


@pytest.mark.parametrize("share", [Share(cpus=3), Share(cpus=1, gpus=1.0)])
def test_no_room_is_an_error_and_runs_nothing(toy, swept, share):
    args = ["--device", "cpu"] if share.gpus else []
    assert swept(OneNode(), *args, share=share) == pytest.ExitCode.USAGE_ERROR
    assert toy.ran() == []


def test_a_cell_has_the_key_and_the_record_the_name_of_the_machine_that_ran_it():
    started, ended, dispatch = [], [], Dispatch.__new__(Dispatch)
    plan = SimpleNamespace(name="c", key="key here")
    item = SimpleNamespace(stash={PLAN: plan}, config=SimpleNamespace(stash={PEER: None}))  # no hook to call
    dispatch.state = SimpleNamespace(
        keys=SimpleNamespace(key_on=lambda plan, machine: f"key on {machine}"),
        journal=SimpleNamespace(start=lambda *line: started.append(line[:2])),
        new_entry=lambda plan, *ended: journal.Entry("c", plan.key, "q", {}, {"machine": "the driver's"}),
        swept=lambda plan, entry: ended.append(entry),
    )
    dispatch.waiting, dispatch.done = {}, 0
    actor = SimpleNamespace(run=SimpleNamespace(remote=lambda *args: args))
    dispatch.hand_out(Worker(actor, machine="another"), item)
    assert plan.key == "key on another"
    assert started == list(dispatch.waiting) == [("c", "key on another")]
    dispatch.crashed(item, "another", "lost")
    assert [(entry.key, entry.record["machine"]) for entry in ended] == [("key on another", "another")]
