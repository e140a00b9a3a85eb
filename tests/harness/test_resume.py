"""Nothing finished is lost: kill -9, Ctrl+C within a round, out of memory, torn and altered journals."""

import signal

import pytest

from mlexp import journal

pytest_plugins = ["pytester"]

ALL = 8
FIFTH = "m_two-seed1-base"


def durations(output):
    return {bench["fullname"]: bench["stats"]["data"] for bench in output["benchmarks"]}


@pytest.fixture
def recorded(toy):
    """What the journal of `toy` holds: name -> durations."""
    return lambda: {e.cell: e.durations for e in journal.read(toy.journal).entries if e.status == "passed"}


@pytest.mark.parametrize(
    ("code", "finished"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 4),
        ("os.kill(os.getpid(), signal.SIGTERM)", 4),
        ("raise KeyboardInterrupt", 4),
        ("raise MemoryError", 7),
    ],
)
def test_an_interrupted_run_is_taken_up_again(toy, recorded, code, finished):
    toy.script(FIFTH, code)
    toy.run("--benchmark-json", "out.json", subprocess=True)
    before = recorded()
    assert len(before) == finished
    toy.ran()
    toy.run("--benchmark-json", "out.json", "--resume", subprocess=True).assert_outcomes(passed=ALL)
    assert len(toy.ran()) == ALL - finished
    after = durations(toy.json())
    assert len(after) == ALL and before.items() <= after.items()
    replayed = {b["fullname"] for b in toy.json()["benchmarks"] if b["extra_info"]["replayed"]}
    assert replayed == set(before)


def test_a_benchmark_json_beside_the_bench_file_is_no_input(toy):
    """A repository may have its bench file at the top, where the JSON is written; any other file there is an input."""
    out = toy.folder / "out.json"
    toy.run("--benchmark-json", str(out), "-k", "m_one").assert_outcomes(passed=4)
    assert len(toy.ran()) == 4
    (toy.folder / "begun.json").touch()  # as pytest-benchmark before 5.3 has its own until the session ends
    for name in (out, toy.folder / "other.json", out):  # the last is there already
        toy.run("--benchmark-json", str(name), "-k", "m_one", "--resume").assert_outcomes(passed=4)
        assert not toy.ran()
    (toy.folder / "tuned.json").write_text('{"rate": 0.1}')
    toy.run("-k", "m_one", "--resume").assert_outcomes(passed=4)
    assert len(toy.ran()) == 4


def test_ctrl_c_within_a_round_leaves_the_json_of_what_had_finished(toy):
    toy.script(FIFTH, "raise KeyboardInterrupt")
    assert toy.run("--benchmark-json", "out.json", subprocess=True).ret == 2
    assert len(toy.json()["benchmarks"]) == 4


def test_ctrl_c_between_rounds_does_not_pass_half_a_cell_off_as_whole(toy):
    toy.script(FIFTH, f"pathlib.Path({str(toy.folder / f'{FIFTH}.again.py')!r}).write_text('raise KeyboardInterrupt')")
    assert toy.run("--benchmark-json", "out.json", subprocess=True).ret == 2
    assert not any(FIFTH in bench["fullname"] for bench in toy.json()["benchmarks"])


def test_a_killed_cell_is_known(toy):
    toy.script(FIFTH, "os.kill(os.getpid(), signal.SIGKILL)")
    result = toy.run(subprocess=True)
    assert result.ret == -signal.SIGKILL
    (died,) = journal.read(toy.journal).died
    assert FIFTH in died["cell"]


def test_a_replayed_record_says_so_and_keeps_its_origin(toy):
    toy.run("--benchmark-json", "one.json")
    toy.run("--benchmark-json", "two.json", "--resume")
    for old, new in zip(toy.json("one.json")["benchmarks"], toy.json("two.json")["benchmarks"], strict=True):
        assert new["extra_info"] == old["extra_info"] | {"replayed": True}
        assert new["stats"] == old["stats"]
    assert toy.json("one.json")["series"] == toy.json("two.json")["series"]
    assert len(journal.read(toy.journal).entries) == ALL  # a replay is not journaled again


def damage(text: bytes, kind: str) -> bytes:
    if kind == "torn":
        return text[:-40]
    lines = text.splitlines(keepends=True)
    middle = next(
        i for i, line in enumerate(lines) if FIFTH.encode() in line and b'"cell"' in line and b"record" in line
    )
    lines[middle] = lines[middle].replace(b'"accuracy":0.5', b'"accuracy":0.9')
    return b"".join(lines)


@pytest.mark.parametrize("kind", ["torn", "altered"])
def test_a_damaged_line_costs_its_own_cell(toy, kind):
    toy.run()
    toy.ran()
    toy.journal.write_bytes(damage(toy.journal.read_bytes(), kind))
    result = toy.run("--resume", "--benchmark-json", "out.json")
    result.assert_outcomes(passed=ALL)
    assert len(toy.ran()) == 1
    assert {bench["extra_info"]["accuracy"] for bench in toy.json()["benchmarks"]} == {0.5}
    if kind == "altered":
        result.stdout.fnmatch_lines(["*lines [[][0-9]*were altered and are not replayed*"])
    toy.run("--resume")
    assert toy.ran() == []  # the new line stands whole behind the torn one


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        (lambda toy: toy.bench.write_text(toy.bench.read_text() + "\n# changed\n"), True),
        (lambda toy: (toy.folder / "facts.jsonl").write_text("{}"), True),
        (lambda toy: (toy.folder / "README.md").write_text("words"), False),
        (lambda toy: (toy.folder / "report.py").write_text("x = 1"), False),
    ],
)
def test_changed_source_and_inputs_are_run_again(toy, change, rerun):
    toy.run("-k", "m_one")
    toy.ran()
    change(toy)
    toy.run("--resume", "-k", "m_one")
    assert len(toy.ran()) == (4 if rerun else 0)


@pytest.mark.parametrize("args", [["--set", "size=4"], ["--scale", "smoke"], ["--dtype", "bfloat16"]])
def test_other_settings_are_run_again(toy, args):
    toy.run("-k", "m_one")
    toy.ran()
    toy.run("--resume", "-k", "m_one", *args)
    assert len(toy.ran()) == 4


def test_a_helper_that_the_bench_imports_is_part_of_the_key(toy):
    helper = toy.pytester.path / "pack" / "inner.py"
    helper.parent.mkdir()
    (helper.parent / "__init__.py").write_text("")
    helper.write_text("X = 1\n")
    toy.bench.write_text("def lazily():\n    from pack import inner\n" + toy.bench.read_text())
    toy.run("-k", "m_one")
    toy.ran()
    helper.write_text("X = 2\n")
    toy.run("--resume", "-k", "m_one", subprocess=True)
    assert len(toy.ran()) == 4


def test_words_and_comments_replay_and_a_changed_number_measures_anew(fit):
    """Of a study: outcome, docstrings, comments, the words on a metric."""
    fit.edit('sizes: tuple[str, ...] = ("n1000", "n2000")', 'sizes: tuple[str, ...] = ("n1000",)')
    fit.edit('"n1000", 43, "half"', '"n9", 43, "half"')
    fit.run().assert_outcomes(passed=4)
    fit.edit("whether half is enough", "is it?")
    fit.edit("    sizes:", "    # how much\n    sizes:")
    fit.edit('outcome="perplexity"', 'outcome="wall_s"')
    result = fit.run("--resume", "--benchmark-json", "out.json")
    assert any(line.startswith("mlexp: 4 replayed;") for line in result.outlines)
    assert fit.json()["studies"]["fit"]["outcome"] == "wall_s"
    fit.edit("37.4", "37.5")
    assert any(line.startswith("mlexp: 4 measured;") for line in fit.run("--resume").outlines)
