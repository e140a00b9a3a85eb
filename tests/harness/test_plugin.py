"""The plugin in a scratch project: the grid, the JSON, statuses, and errors before the first cell."""

import hashlib
import itertools
import json
import os
import sys

import pytest

from mlexp.harness import measure

pytest_plugins = ["pytester"]

ALL = 8


def test_a_run_writes_one_complete_record_a_cell(toy):
    toy.run("--benchmark-json", "out.json").assert_outcomes(passed=ALL)
    benchmarks = toy.json()["benchmarks"]
    assert len(benchmarks) == ALL
    for bench in benchmarks:
        info = bench["extra_info"]
        assert info["things"] == 3 and info["accuracy"] == 0.5 and info["peak_bytes"] is not None
        assert info["status"] == "passed" and info["question"] == "toy" and info["settings"] == '{"share":0.5,"size":3}'
        assert len(bench["stats"]["data"]) == 3 and min(bench["stats"]["data"]) >= 0.001
        assert toy.json()["series"][info["key"]] == {"curve": [bench["params"]["seed"], 2.5, None]}
    assert len({bench["extra_info"]["key"] for bench in benchmarks}) == ALL
    assert toy.json()["metrics"]["toy"]["things"] == ["count", "lower", "how many things"]
    assert toy.json()["machine_info"]["threads"] >= 1


def test_arms_of_a_block_share_the_seed_and_rotate(toy):
    toy.run("--benchmark-json", "out.json")
    seeds, order = {}, {}
    for bench in toy.json()["benchmarks"]:
        block = bench["params"]["model"], bench["params"]["seed"]
        order.setdefault(block, []).append(bench["params"]["arm"])
    assert toy.ran()[:4] == ["m_one-seed1-base", "m_one-seed1-ours", "m_one-seed2-ours", "m_one-seed2-base"]
    toy.bench.write_text(toy.bench.read_text().replace("things=len(things)", "things=cell.seed"))
    toy.run("--benchmark-json", "out.json")
    for bench in toy.json()["benchmarks"]:
        block = bench["params"]["model"], bench["params"]["seed"]
        seeds.setdefault(block, set()).add(bench["extra_info"]["things"])
    assert all(len(of_block) == 1 for of_block in seeds.values())
    assert len(set.union(*seeds.values())) == len(seeds)


def test_k_selects_by_axis_value_and_collection_runs_nothing(toy):
    result = toy.run("--collect-only", "-q", "-k", "m_two and ours")
    result.stdout.fnmatch_lines(["*test_toy[[]m_two-seed1-ours]", "*test_toy[[]m_two-seed2-ours]"])
    assert toy.ran() == [] and not toy.journal.exists()


@pytest.mark.parametrize(
    ("code", "status", "outcome"),
    [
        ("raise MemoryError('no room')", "oom", "xfailed"),
        ("raise RuntimeError('[enforce fail] DefaultCPUAllocator: not enough memory')", "oom", "xfailed"),
        ("raise FloatingPointError('loss is nan')", "diverged", "xfailed"),
        ("raise RuntimeError('odd')", "failed", "failed"),
    ],
)
def test_a_cell_that_raises_is_recorded_but_never_timed(toy, code, status, outcome):
    toy.script("m_one-seed1-ours", code)
    toy.run("--benchmark-json", "out.json").assert_outcomes(passed=ALL - 1, **{outcome: 1})
    assert len(toy.json()["benchmarks"]) == ALL - 1
    (red,) = toy.json()["unfinished"]
    assert red["extra_info"]["status"] == status and red["params"] == {"model": "m_one", "seed": 1, "arm": "ours"}
    assert red["fullname"].endswith("test_toy[m_one-seed1-ours]")


def test_an_assert_after_the_measurement_keeps_the_cell_out_of_table_and_json(toy):
    toy.bench.write_text(toy.bench.read_text() + '\n    assert (model, arm) != ("m_one", "ours"), "worse"\n')
    result = toy.run("--benchmark-json", "out.json")
    result.assert_outcomes(passed=6, failed=2)
    assert {bench["params"]["arm"] for bench in toy.json()["benchmarks"] if bench["params"]["model"] == "m_one"} == {
        "base"
    }
    table = [line for line in result.outlines if line.startswith("test_toy[") and "(1.0)" in line]
    assert not any("m_one-seed1-ours" in line for line in table)


COLLECTS = """
def collects(params, settings, device):
    return (params["arm"], device) != ("ours", "cpu") and (params["model"], params["seed"]) != ("m_one", 2)
"""


def test_a_question_may_collect_a_part_of_its_grid(toy):
    toy.bench.write_text(toy.bench.read_text() + COLLECTS)
    toy.run("--device", "cpu", "--benchmark-json", "out.json").assert_outcomes(passed=3)
    ran = {tuple(bench["params"].values()) for bench in toy.json()["benchmarks"]}
    assert ran == {("m_one", 1, "base"), ("m_two", 1, "base"), ("m_two", 2, "base")}
    result = toy.run("--device", "cpu", "--set", "arms=ours")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*toy: these settings leave no cell on cpu (benches/toy/bench_toy.py)"])
    more = COLLECTS.replace("return", "return 'seed' in params and") + "\ndef test_more(cell, model, arm): pass\n"
    toy.bench.write_text(toy.bench.read_text().replace(COLLECTS, more))
    toy.run("--device", "cpu").assert_outcomes(passed=3, deselected=1)  # a function without cells is none


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("accuracy=float('nan')", "accuracy is nan"),
        ("accuracy=1.5", "a fraction lies in [0, 1]"),
        ("accuracy=__import__('numpy').ones(2)", "accuracy is a numpy.ndarray"),
        ("thinks=3", "unknown metric 'thinks'"),
    ],
)
def test_a_bad_record_fails_its_cell_and_names_the_value(toy, record, reason):
    toy.bench.write_text(toy.bench.read_text().replace("things=len(things), accuracy=0.5", record))
    toy.run("--benchmark-json", "out.json").assert_outcomes(failed=ALL)
    output = toy.json()  # written by the plugin: pytest-benchmark has nothing to write
    assert output["benchmarks"] == [] and len(output["unfinished"]) == ALL
    assert reason in output["unfinished"][0]["extra_info"]["reason"]


def test_a_cell_that_measures_nothing_fails(toy):
    toy.bench.write_text(toy.bench.read_text().replace("cell.time(run, rounds=3, warmup=False)", "run()"))
    result = toy.run("-k", "m_one-seed1-base")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*nothing was measured*"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--scale", "huge"], "*invalid choice: 'huge'*smoke*quick*full*"),
        (["--set", "sise=3"], "*unknown setting 'sise'; choose from models, seeds, arms, size, share"),
        (["--set", "size=many"], "*--set size=many: expected int, not 'many'"),
        (["--set", "size=0"], "*--set size=0: size is 0; at least 1"),
        (["--set", "share=nan"], "*expected a finite number, not 'nan'"),
        (["--set", "size"], "*expected NAME=VALUE*"),
        (["--set", "other.size=3"], "*unknown question; selected: toy"),
        (["--set", "arms=GPT-2"], "*'GPT-2' cannot stand in a test id*"),
        (["--device", "tpu"], "*invalid choice: 'tpu'*"),
        (["--prompts", "nowhere.jsonl"], "*--prompts nowhere.jsonl: no such file"),
        (["--corpus", "nowhere.txt"], "*--corpus nowhere.txt: no such file"),
        (["--benchmark-json", "nowhere/out.json"], "*nowhere*"),
        (["--benchmark-json", "out.json", "--benchmark-disable"], "*would write nothing*"),
        (["--journal", "benches"], "*cannot write the journal*"),
    ],
)
def test_bad_input_is_one_line_before_the_first_cell(toy, args, message):
    result = toy.run(*args)
    assert result.ret not in (0, 1, 5)
    lines = [
        line
        for line in result.errlines + result.outlines
        if line.startswith(("ERROR", "E  ", "benches/toy/bench_toy.py:")) or "error:" in line
    ]
    pytest.LineMatcher(lines).fnmatch_lines([message])
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
    assert toy.ran() == [] and not (toy.pytester.path / "out.json").exists() and not toy.journal.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_json_is_an_error(toy):
    folder = toy.pytester.mkdir("locked")
    folder.chmod(0o500)
    assert toy.run("--benchmark-json", "locked/out.json").ret == 4


def test_gpu_is_refused_where_there_is_none(toy, monkeypatch):
    monkeypatch.setattr("mlexp.harness.measure.gpu_present", lambda: False)
    result = toy.run("--device", "cuda")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*--device cuda: the CUDA driver finds no device; choose from auto, cpu"])


@pytest.mark.parametrize(("flags", "outcome"), [([], {"skipped": 1}), (["--require-gpu"], {"errors": 1})])
def test_a_cell_that_needs_a_gpu(toy, monkeypatch, flags, outcome):
    monkeypatch.setattr("mlexp.harness.measure.gpu_present", lambda: False)
    marked = "import pytest\n@pytest.mark.needs_gpu\ndef test_it({}): pass\n"
    toy.pytester.makepyfile(test_cell=marked.format("cell"), test_other=marked.format(""))
    toy.run(*flags, where="test_cell.py").assert_outcomes(**outcome)
    toy.run(*flags, where="test_other.py").assert_outcomes(passed=1)  # the marker is somebody else's there


def test_bare_set_is_refused_when_several_questions_are_selected(toy):
    other = toy.folder.parent / "other"
    other.mkdir()
    (other / "bench_other.py").write_text(toy.bench.read_text())
    result = toy.run("--set", "size=2")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*2 questions are selected; say which: other.size, toy.size"])
    toy.run("--set", "size=2", "-k", "bench_toy").assert_outcomes(passed=ALL, deselected=ALL)
    result = toy.run("--set", "toy.size=2", "--benchmark-json", "out.json")
    result.assert_outcomes(passed=2 * ALL)
    things = {(b["extra_info"]["question"], b["extra_info"]["things"]) for b in toy.json()["benchmarks"]}
    assert things == {("toy", 2), ("other", 3)}
    assert {b["extra_info"]["overrides"] for b in toy.json()["benchmarks"]} == {"size=2", ""}


def test_an_axis_can_be_set_without_changing_the_key(toy):
    toy.run("--benchmark-json", "out.json")
    toy.ran()
    toy.run("--resume", "--set", "seeds=1..3", "--set", "arms=ours").assert_outcomes(passed=6)
    assert toy.ran() == ["m_one-seed3-ours", "m_two-seed3-ours"]


def test_the_json_is_plain_pytest_benchmark(toy):
    """`pytest-benchmark compare` reads two of them and groups by an axis."""
    for name in ("one.json", "two.json"):
        toy.run("--benchmark-json", name)
    result = toy.pytester.run(
        sys.executable, "-m", "pytest_benchmark", "compare", "one.json", "two.json", "--group-by=param:model"
    )
    result.stdout.fnmatch_lines(["*model=m_one*8 tests*"])
    assert "NaN" not in (toy.pytester.path / "one.json").read_text()


def test_compare_groups_by_an_axis_that_some_cells_lack(toy):
    other = toy.folder.parent / "other"
    other.mkdir()
    (other / "bench_other.py").write_text("def test_it(cell):\n    cell.time(lambda: None, rounds=2, warmup=False)\n")
    toy.pytester.makeconftest("from mlexp.harness.plugin import pytest_benchmark_group_stats")
    toy.run("--benchmark-json", "out.json", "--benchmark-group-by=param:model").assert_outcomes(passed=ALL + 1)
    result = toy.pytester.run(sys.executable, "-m", "pytest_benchmark", "compare", "out.json", "--group-by=param:model")
    result.stdout.fnmatch_lines(["*model=-*1 tests*", "*model=m_one*4 tests*"])


def test_isolate_gives_the_same_records_and_survives_what_kills_a_process(toy):
    toy.script("m_one-seed1-ours", "os.kill(os.getpid(), signal.SIGSEGV)")
    toy.script("m_one-seed1-base", "raise MemoryError('no room')")
    result = toy.run("--isolate", "--benchmark-json", "out.json", "--set", "models=m_one", "--set", "seeds=1,2")
    result.assert_outcomes(passed=2, failed=1, xfailed=1)
    red = {entry["params"]["arm"]: entry["extra_info"] for entry in toy.json()["unfinished"]}
    assert red["ours"]["status"] == "crashed" and "SIGSEGV" in red["ours"]["reason"]
    assert red["base"]["status"] == "oom"
    for bench in toy.json()["benchmarks"]:
        assert bench["extra_info"]["things"] == 3 and not bench["extra_info"]["replayed"]
        assert len(bench["stats"]["data"]) == 3
    entries = [json.loads(line) for line in toy.journal.read_text().splitlines()]
    assert sum(entry["event"] == "cell" for entry in entries) == 4
    toy.ran()
    toy.run("--resume", "--set", "models=m_one").assert_outcomes(passed=4)
    assert sorted(toy.ran()) == ["m_one-seed1-base", "m_one-seed1-ours"]


def test_quiet_prints_no_progress_and_names_the_journal(toy):
    result = toy.run("-q")
    result.stdout.fnmatch_lines(["mlexp: 8 measured; journal: .mlexp/journal.jsonl"])


MORE = """
def more(options):
    if "base" in options.model:
        raise ValueError("--model base: an arm of this name is there")
    return {"arm": tuple(options.model)}
"""


@pytest.mark.parametrize("isolated", [(), ("--isolate",)], ids=["here", "isolated"])
def test_a_model_of_the_command_line_is_a_further_value_of_an_axis(toy, isolated):
    toy.bench.write_text(toy.bench.read_text() + MORE)
    toy.pytester.mkdir("folder")
    result = toy.run("--model", "mine=folder", "-k", "m_one and seed1", "--benchmark-json", "out.json", *isolated)
    result.assert_outcomes(passed=3)
    arms = [bench["params"]["arm"] for bench in toy.json()["benchmarks"]]
    assert sorted(arms) == ["base", "mine", "ours"]
    assert len({bench["extra_info"]["seed"] for bench in toy.json()["benchmarks"]}) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [("base=.", "an arm of this name is there"), ("mine=none", "no such folder"), ("mine", "expected NAME=FOLDER")],
)
def test_a_model_that_cannot_be_taken_is_one_line(toy, model, message):
    toy.bench.write_text(toy.bench.read_text() + MORE)
    result = toy.run("--model", model)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --model*{message}*"])
    assert not toy.ran()


def test_a_model_that_nobody_takes_is_refused(toy):
    result = toy.run("--model", "mine=.")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --model mine: not taken by what is selected: toy"])


@pytest.mark.parametrize("isolated", [(), ("--isolate",)], ids=["here", "isolated"])
def test_every_option_of_a_subject_reaches_the_cell_under_its_own_name(toy, isolated):
    """`--weights`, `--prompts`, `--corpus`, `--device`, `--dtype`, `--scale`: what the cell sees is what was typed."""
    for name in ("p.jsonl", "c.txt"):
        (toy.pytester.path / name).write_text("")
    seen = "repr((vars(cell.options), cell.device, cell.dtype, cell.scale, cell.settings.size))"
    toy.edit("    def run():", f"    open(HERE / 'seen.log', 'w').write({seen})\n    def run():")
    options = ["--weights", "w", "--prompts", "p.jsonl", "--corpus", "c.txt", "--device", "cpu", "--dtype", "bfloat16"]
    toy.run("-k", "m_one-seed1-base", "--scale", "full", *options, *isolated).assert_outcomes(passed=1)
    given = {"weights": "w", "prompts": "p.jsonl", "corpus": "c.txt", "model": {}}
    assert (toy.folder / "seen.log").read_text() == repr((given, "cpu", "bfloat16", "full", 9))


@pytest.mark.parametrize(
    ("name", "inputs"), [("--weights", ["w", "v"]), ("--prompts", ["a.jsonl", "b.jsonl"]), ("--corpus", ["a", "b"])]
)
def test_inputs_that_options_name_are_part_of_the_key(toy, name, inputs):
    """Through the question's own `inputs`, whose hashes stand in the record too."""
    for path in inputs:
        (toy.pytester.path / path).write_text(path)
    toy.edit(
        "def test_toy", "def inputs(params, settings, options):\n    return {'corpus': repr(options)}\n\ndef test_toy"
    )
    for path, runs in ((inputs[0], 1), (inputs[1], 1), (inputs[0], 0)):
        toy.run("-k", "m_one-seed1-base", "--resume", name, path).assert_outcomes(passed=1)
        assert len(toy.ran()) == runs


def test_a_journal_lies_where_the_option_says(toy):
    (toy.pytester.path / "elsewhere").mkdir()
    toy.run("-k", "m_one-seed1-base", "--journal", "elsewhere/j.jsonl").assert_outcomes(passed=1)
    assert (toy.pytester.path / "elsewhere/j.jsonl").read_text().count('"event":"cell"') == 1
    assert not toy.journal.exists()


def test_a_seed_of_the_grid_is_the_record_s_and_one_s_own_else(toy):
    """Where there is an axis `seed` its value is recorded; where not, the 32 bits that the block's axes give."""
    toy.run("-k", "m_one-seed2-base", "--benchmark-json", "out.json")
    assert toy.json()["benchmarks"][0]["extra_info"]["seed"] == 2
    toy.edit('"seed": "seeds"', '"batch": "seeds"')
    toy.edit("def test_toy(cell, model, seed, arm):", "def test_toy(cell, model, batch, arm):\n    seed = batch")
    toy.run("-k", "m_one-batch2", "--benchmark-json", "out.json")
    digest = hashlib.sha256(b'{"batch":2,"model":"m_one","question":"toy"}').digest()
    assert {b["extra_info"]["seed"] for b in toy.json()["benchmarks"]} == {int.from_bytes(digest[:4], "big")}


def test_what_was_planned_and_never_ran_is_in_the_json(toy):
    toy.script("m_one-seed1-ours", "raise KeyboardInterrupt")
    toy.run("-k", "m_one", "--benchmark-json", "out.json", subprocess=True)
    output = toy.json()
    assert len(output["planned"]) == 4 and len(output["benchmarks"]) == 1


def test_every_cell_is_timed_by_the_one_clock(toy, monkeypatch):
    ticks = itertools.count(0, 7)
    monkeypatch.setattr(measure.Clock, "__call__", lambda self: float(next(ticks)))
    toy.run("-k", "m_one", "--benchmark-json", "out.json").assert_outcomes(passed=4)
    assert [bench["stats"]["data"] for bench in toy.json()["benchmarks"]] == [[7.0] * 3] * 4


def test_a_bare_set_of_several_questions_names_those_that_have_the_setting(toy):
    other = toy.folder.parent / "other"
    other.mkdir()
    (other / "bench_other.py").write_text(toy.bench.read_text().replace("size", "width"))
    toy.run("--set", "size=2").stderr.fnmatch_lines(["*2 questions are selected; say which: toy.size"])
    toy.run("--set", "speed=2").stderr.fnmatch_lines(["*say which: none of them has a setting 'speed'"])
