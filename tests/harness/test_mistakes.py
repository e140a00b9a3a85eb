"""Mistakes that newcomers make in a bench file: each is told in one line with the file, the line and the mend."""

import re

import pytest

pytest_plugins = ["pytester"]

BENCH = '''
"""Is b faster than a?"""
from dataclasses import dataclass
from mlexp.study import Above, At, Claim, Study, ratio

@dataclass(frozen=True)
class Sizes:
    sizes: tuple[int, ...] = (1, 2)
    seeds: tuple[int, ...] = (1, 2)
    arms: tuple[str, ...] = ("aa", "bb")
    width: int = 3

STUDY = Study(
    asks="Is b faster than a?",
    arm="arm",
    arms=("aa", "bb"),
    baseline="aa",
    over=("size",),
    replicates=("seed",),
    outcome="wall_s",
    settings={"quick": Sizes(), "full": Sizes()},
    axes={"size": "sizes", "seed": "seeds", "arm": "arms"},
    metrics={"items": ("count", "none", "how many")},
    claims={"H1": Claim("b is faster", Above(At(ratio("aa", "bb")), 1.0))},
)

def inputs(params, settings, options):
    return {}

def collects(params, settings, device):
    return True

def more(options):
    return {}

def test_it(cell, size, seed, arm):
    done = cell.time(lambda: [0] * cell.settings.width)
    cell.record(items=len(done))
'''.lstrip()
INI = """[pytest]
addopts = -p mlexp.harness.plugin --import-mode=importlib
python_files = bench_*.py
"""

# what is changed (old, new); the line that the message names (a piece of it); the message
DECLARED = {
    "no axes": (
        ('    axes={"size": "sizes", "seed": "seeds", "arm": "arms"},\n', ""),
        "def test_it",
        "test_it has an argument 'size', neither an axis nor a fixture; there are no axes: axes={*} in STUDY",
    ),
    "axes without settings": (
        ('    settings={"quick": Sizes(), "full": Sizes()},\n', ""),
        "    axes=",
        "there are axes and no settings; settings list the values of each axis, a row a scale",
    ),
    "values in axes": (
        ('"seed": "seeds"', '"seed": (1, 2)'),
        "    axes=",
        "axis 'seed' is (1, 2); give the name of the field of the settings that lists its values",
    ),
    "axes is no dict": (
        ('axes={"size": "sizes", "seed": "seeds", "arm": "arms"}', 'axes=("size", "seed")'),
        "    axes=",
        "axes is ('size', 'seed'); give a dict: *",
    ),
    "an axis of no field": (
        ('"size": "sizes"', '"size": "sises"'),
        "    axes=",
        "axis 'size' names the setting 'sises', which Sizes has no field for; did you mean 'sizes'?",
    ),
    "a field without a type": (
        ("sizes: tuple[int, ...] = (1, 2)", "sizes = (1, 2)"),
        "    axes=",
        "axis 'size' names the setting 'sizes', which Sizes has no field for; annotate it: sizes: tuple[[]*",
    ),
    "a value where a tuple is meant": (
        ("seeds: tuple[int, ...] = (1, 2)", "seeds: int = 5"),
        "    seeds: int",
        "axis 'seed': setting 'seeds' is 5; give a tuple of its values",
    ),
    "a text where a tuple is meant": (
        ('arms: tuple[str, ...] = ("aa", "bb")', 'arms: str = ("aa")'),
        "    arms: str",
        "axis 'arm': setting 'arms' is 'aa'; give a tuple of its values",
    ),
    "a value twice": (
        ("seeds: tuple[int, ...] = (1, 2)", "seeds: tuple[int, ...] = (1, 1)"),
        "    axes=",
        "axis 'seed' has 1 twice; each value once",
    ),
    "a value that is no name": (
        ('arms: tuple[str, ...] = ("aa", "bb")', 'arms: tuple[str, ...] = ("aa", "B-2")'),
        "    axes=",
        "axis 'arm': 'B-2' cannot stand in a test id; use [[]a-z0-9_]+",
    ),
    "a scale left out": (
        ('{"quick": Sizes(), "full": Sizes()}', '{"smoke": Sizes(), "full": Sizes()}'),
        "    settings=",
        "settings has no row for scale 'quick'; add one, or choose with --scale: smoke, full",
    ),
    "a scale that is none": (
        ('"full": Sizes()', '"large": Sizes()'),
        "    settings=",
        "settings has a row 'large'; scales are smoke, quick, full",
    ),
    "one row for all scales": (
        ('{"quick": Sizes(), "full": Sizes()}', "Sizes()"),
        "    settings=",
        "settings is a Sizes; give a row a scale: *",
    ),
    "the class for its instance": (
        ('{"quick": Sizes(), "full": Sizes()}', '{"quick": Sizes}'),
        "    settings=",
        "settings[[]'quick'] is the class Sizes; give an instance of a dataclass, such as Sizes(samples=2)",
    ),
    "a name where a tuple is meant": (
        ('replicates=("seed",)', 'replicates=("seed")'),
        "    replicates=",
        "replicates is the text 'seed'; give a tuple: replicates=('seed',)",
    ),
    "replicates that are no axis": (
        ('replicates=("seed",)', 'replicates=("draw",)'),
        "    replicates=",
        "replicates names 'draw', which is no axis; add 'draw': '<field of the settings>' to axes=, or take it out of "
        "replicates=",
    ),
    "a curve axis that is no axis": (
        ('"size": "sizes", ', ""),
        "    over=",
        "over names 'size', which is no axis; add 'size': 'sizes' to axes=, or take it out of over=",
    ),
    "a curve axis misspelt": (
        ('over=("size",)', 'over=("sise",)'),
        "    over=",
        "over names 'sise', which is no axis; did you mean 'size'?",
    ),
    "no seed": (
        ('"seed": "seeds", ', ""),
        "    replicates=",
        "replicates names 'seed', which is no axis; add 'seed': 'seeds' to axes=, or take it out of replicates= (its "
        "default is ('seed',))",
    ),
    "an arm that is no axis": (
        ('arm="arm"', 'arm="method"'),
        "    arm=",
        "arm names 'method', which is no axis; add 'method': '<field of the settings>' to axes=, or choose from size, "
        "seed, arm",
    ),
    "an axis that no cell takes": (
        ("(cell, size, seed, arm):", "(cell, tmp_path, seed, arm):"),
        "def test_it",
        "axis 'size' is declared in axes= but test_it does not take it; write def test_it(cell, tmp_path, size, seed, "
        "arm)",
    ),
    "no arm taken": (
        ("(cell, size, seed, arm):", "(cell, size, seed):"),
        "def test_it",
        "axis 'arm' is declared in axes= but test_it does not take it; write def test_it(cell, size, seed, arm)",
    ),
    "no axis taken": (
        ("(cell, size, seed, arm):", "(cell):"),
        "def test_it",
        "axis 'size' is declared in axes= but test_it does not take it; write def test_it(cell, size, seed, arm)",
    ),
    "the arm before the seed": (
        ("size, seed, arm):", "size, arm, seed):"),
        "def test_it",
        "test_it takes the arm 'arm' before 'seed'; the arm comes last: test_it(cell, size, seed, arm)",
    ),
    "an argument that is neither": (
        ("size, seed, arm):", "size, sead, arm):"),
        "def test_it",
        "test_it has an argument 'sead', neither an axis nor a fixture; did you mean 'seed'?",
    ),
    "no cell": (
        ("(cell, size, seed, arm):", "(size, seed, arm):"),
        "def test_it",
        "test_it takes axes and no `cell`; write test_it(cell, size, seed, arm)",
    ),
    "STUDY of a wrong type": (
        ("STUDY = Study(", "STUDY = dict("),
        "STUDY = ",
        "STUDY is a dict; give a mlexp.study.Study",
    ),
    "a Study that refuses": (
        ('baseline="aa"', 'baseline="cc"'),
        "    baseline=",
        "baseline 'cc' is no arm; choose from aa, bb",
    ),
    "an outcome that is no metric": (
        ('outcome="wall_s"', 'outcome="walls"'),
        "    outcome=",
        "outcome 'walls' is no metric; declare it in metrics=; did you mean 'wall_s'?",
    ),
    "a misspelt argument": (
        ("    asks=", "    ask="),
        "STUDY = ",
        "Study.__init__() got an unexpected keyword argument 'ask'*; did you mean 'asks'?",
    ),
    "an argument that there is not": (
        ("    asks=", "    question='', asks="),
        "STUDY = ",
        "Study.__init__() got an unexpected keyword argument 'question'; fields of Study are asks, arm, *",
    ),
    "a misspelt argument of a claim": (
        ("1.0))}", "1.0), primry=True)}"),
        "    claims=",
        "Claim.__init__() got an unexpected keyword argument 'primry'*; did you mean 'primary'?",
    ),
    "a misspelt setting": (
        ('{"quick": Sizes()', '{"quick": Sizes(widht=4)'),
        "    settings=",
        "Sizes.__init__() got an unexpected keyword argument 'widht'*; did you mean 'width'?",
    ),
    "an argument left out": (
        ('    baseline="aa",\n', ""),
        "STUDY = ",
        "Study.__init__() missing 1 required positional argument: 'baseline'",
    ),
    "an arm misspelt in a claim": (
        ('ratio("aa", "bb")', 'ratio("aa", "bbb")'),
        "    claims=",
        "claim H1: 'bbb' is no arm; did you mean 'bb'?",
    ),
    "the second of two claims": (
        ("1.0))}", "1.0)),\n        'H2': Claim('', Above(At(ratio('aa', 'x')), 1.0))}"),
        "        'H2'",
        "claim H2: 'x' is no arm; choose from aa, bb",
    ),
    "a metric of a claim that nobody declared": (
        ('ratio("aa", "bb")', 'ratio("aa", "bb", "wrong")'),
        "    claims=",
        "claim H1: 'wrong' is no metric; declare it in metrics=; known: *wall_s",
    ),
    "a metric of a claim misspelt": (
        ('ratio("aa", "bb")', 'ratio("aa", "bb", "itms")'),
        "    claims=",
        "claim H1: 'itms' is no metric; declare it in metrics=; did you mean 'items'?",
    ),
    "a claim about nothing": (
        ("1.0))}", '1.0), about="speed")}'),
        "    claims=",
        "claim 'b is faster': about is 'speed'; choose from cost, behaviour",
    ),
    "a metric with a bad row": (
        ('("count", "none", "how many")', '("count", "up", "how many")'),
        "    metrics=",
        "METRICS[[]'items'] is ('count', 'up', 'how many'); give (unit, 'lower' | 'higher' | 'none', what it is)",
    ),
    "a metric that is a text": (
        ('("count", "none", "how many")', '"count"'),
        "    metrics=",
        "METRICS[[]'items'] is 'count'; give (unit, *",
    ),
    "inputs with other arguments": (
        ("inputs(params, settings, options)", "inputs(params)"),
        "def inputs",
        "inputs is called with (params, settings, options): too many positional arguments",
    ),
    "inputs without a result": (
        ("    return {}\n\ndef collects", "    pass\n\ndef collects"),
        "def inputs",
        "inputs returned None; give a dict: name -> text, hash",
    ),
    "inputs with a bug": (
        ("    return {}\n\ndef collects", "    return params['sise']\n\ndef collects"),
        "    return params",
        "inputs: KeyError: 'sise'",
    ),
    "collects with other arguments": (
        ("collects(params, settings, device)", "collects(params, settings, device, more)"),
        "def collects",
        "collects is called with (params, settings, device): missing a required argument: 'more'",
    ),
    "collects with a bug": (
        ("    return True", "    return params['sise'] > 1"),
        "    return params",
        "collects: KeyError: 'sise'",
    ),
    "more with other arguments": (
        ("more(options)", "more()"),
        "def more",
        "more is called with (options): too many positional arguments",
    ),
}
RUN = {
    "a setting that is not there": (
        ("cell.settings.width", "cell.settings.widht"),
        "    done = ",
        "AttributeError: 'Sizes' object has no attribute 'widht'*settings: did you mean 'width'?",
    ),
    "a field of the cell that is not there": (
        ("cell.settings.width", "cell.seeds"),
        "    done = ",
        "AttributeError: 'Cell' object has no attribute 'seeds'*cell: did you mean 'seed'?",
    ),
    "a metric that is not declared": (
        ("items=len(done)", "itens=len(done)"),
        "    cell.record",
        "ValueError: unknown metric 'itens'; declare it, metrics={\"itens\": *} in STUDY*",
    ),
    "a result where a function is meant": (
        ("cell.time(lambda: ", "cell.time("),
        "    done = ",
        "TypeError: cell.time was given a list, no function; write cell.time(lambda: ...)",
    ),
    "a cell without cell.time": (
        ("cell.time(lambda: [0] * cell.settings.width)", "[]"),
        "def test_it",
        "the cell ended without cell.time: nothing was measured; time the work: cell.time(lambda: ...)",
    ),
    "a cell that times twice": (
        ("    cell.record", "    cell.time(list)\n    cell.record"),
        "    cell.time(list)",
        "*cell.time was called twice; a cell is one measurement",
    ),
}


@pytest.fixture
def run(pytester):
    """Run a bench file that was changed; (result, the lines of its output)."""
    pytester.makeini(INI)

    def changed(old, new, *args):
        assert BENCH.count(old) == 1
        write(pytester, "it", BENCH.replace(old, new))
        result = pytester.runpytest_inprocess("benches", "-p", "no:cacheprovider", *args)
        return result, [*result.outlines, *result.errlines]

    return changed


def write(pytester, question, text, where="benches", name="it"):
    folder = pytester.path / where / question
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"bench_{name}.py").write_text(text)


def line_of(old, new, piece):
    """The number of the line that begins so once the file is changed."""
    lines = BENCH.replace(old, new).splitlines()
    (number,) = (i for i, line in enumerate(lines, 1) if line.startswith(piece))
    return number


def without_tracebacks(text):
    """No frame of the harness is shown, and none of pytest."""
    assert not re.search(r"mlexp/(harness|study|settings|record)\S*\.py:\d+|INTERNALERROR|Traceback", text), text


@pytest.mark.parametrize("case", DECLARED)
def test_a_mistake_in_what_is_declared_is_one_line_before_the_first_cell(run, case):
    change, piece, message = DECLARED[case]
    result, lines = run(*change)
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    where = f"benches/it/bench_it.py:{line_of(*change, piece)}"
    told = [line.removeprefix("ERROR: ") for line in lines if line.removeprefix("ERROR: ").startswith(where)]
    assert len(told) == 1, lines
    pytest.LineMatcher(told).fnmatch_lines([f"{where}: {message}"])
    without_tracebacks("\n".join(lines))


@pytest.mark.parametrize("case", RUN)
def test_a_mistake_in_a_cell_ends_in_the_user_s_line(run, case):
    change, piece, message = RUN[case]
    result, lines = run(*change, "-k", "size1-seed1-aa")
    result.assert_outcomes(failed=1)
    where = f"benches/it/bench_it.py:{line_of(*change, piece)}"
    assert any(line.startswith(where) for line in lines), lines
    text = " ".join(line.removeprefix("E   ").strip() for line in lines if line.startswith(("E  ", where)))
    pytest.LineMatcher([text]).fnmatch_lines([f"*{message}*"])
    without_tracebacks("\n".join(lines))


def test_the_whole_traceback_is_there_for_who_asks(run):
    _, lines = run("items=len(done)", "itens=len(done)", "-k", "size1-seed1-aa", "--full-trace")
    assert any("mlexp/record.py" in line for line in lines)


def test_functions_of_one_file_may_each_take_some_of_the_axes(pytester):
    pytester.makeini(INI)
    one = BENCH.replace("def test_it(cell, size, seed, arm)", "def test_it(cell, seed, arm)")
    own = "@pytest.fixture\ndef own(cell):\n    return cell\n"
    by_fixture = f"{one}import pytest\n{own}def test_other(own, size, arm):\n    own.time(list)\n"
    in_class = f"{one}class TestIt:\n    def test_other(self, cell, size, arm):\n        cell.time(list)\n"
    write(pytester, "it", by_fixture)
    write(pytester, "that", in_class)
    pytester.runpytest_inprocess("benches").assert_outcomes(passed=16)
    pytester.runpytest_inprocess("benches/it/bench_it.py", "-k", "test_it").assert_outcomes(passed=4, deselected=4)
    result = pytester.runpytest_inprocess("benches/that/bench_it.py::TestIt::test_other")
    result.assert_outcomes(passed=4)


def test_an_axis_may_list_what_only_collects_reads(pytester):
    pytester.makeini(INI)
    text = BENCH.replace('"size": "sizes", ', '"size": "sizes", "where": "wheres", ')
    text = text.replace("    width: int", "    wheres: tuple[int, ...] = (1,)\n    width: int")
    write(pytester, "it", text.replace("return True", 'return params["size"] in settings.wheres'))
    pytester.runpytest_inprocess("benches").assert_outcomes(passed=4)
    text = BENCH.replace("(cell, size, seed", "(cell, seed").replace("return True", "return bool(settings.sizes)")
    write(pytester, "other", text)  # there it is in `over`, which claims need
    result = pytester.runpytest_inprocess("benches/other")
    result.stdout.fnmatch_lines(["*axis 'size' is declared in axes= but test_it does not take it; *"])


def test_an_axis_that_is_spelt_like_another_is_missed_all_the_same(run):
    result, lines = run('"size": "sizes", ', '"size": "sizes", "sizes": "sizes", ')
    assert result.ret == pytest.ExitCode.INTERRUPTED
    said = "but test_it does not take it; write def test_it(cell, size, sizes, seed, arm)"
    assert any(line.endswith(f"axis 'sizes' is declared in axes= {said}") for line in lines)


def test_files_of_one_folder_may_share_a_study(pytester):
    pytester.makeini(INI)
    head, _ = BENCH.split("def test_it")
    for name, taken in (("it", "size, arm"), ("that", "seed, arm")):
        write(pytester, "q", f"from mlexp.study import beside\nSTUDY = beside(__file__).STUDY\n"
              f"def test_{name}(cell, {taken}):\n    cell.time(list)\n", name=name)  # fmt: skip
    (pytester.path / "benches/q/study.py").write_text(head)
    pytester.runpytest_inprocess("benches").assert_outcomes(passed=8)


def test_without_a_mistake_nothing_is_said(run):
    result, lines = run("width: int = 3", "width: int = 4")
    result.assert_outcomes(passed=8)
    assert not [line for line in lines if "bench_it.py:" in line or line.startswith("mlexp: benches")]


def test_two_folders_of_one_name_are_no_two_questions(pytester):
    pytester.makeini(INI)
    for where in ("benches/one", "benches/two"):
        write(pytester, "it", BENCH, where)
    result = pytester.runpytest_inprocess("benches")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    wanted = (
        "ERROR: benches/one/it and benches/two/it: a question is known by its folder's name; rename one, or run one"
    )
    result.stderr.fnmatch_lines([wanted])
    pytester.runpytest_inprocess("benches/one").assert_outcomes(passed=8)


def test_a_question_without_a_cell_names_what_is_empty(run):
    result, lines = run("seeds: tuple[int, ...] = (1, 2)", "seeds: tuple[int, ...] = ()")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: it: these settings leave no cell on cpu: seeds empty (benches/it/bench_it.py:20)" in lines


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("def test_it():\n    pass\n", "no test takes `cell`, so nothing is measured; write def test_it(cell, ...)"),
        ("def measure_it(cell, size, seed, arm):\n    pass\n", "no test; a cell is a function def test_...(cell, ...)"),
    ],
)
def test_a_declaration_that_no_cell_uses_is_said(pytester, test, said):
    pytester.makeini(INI)
    head, cell = BENCH.split("def test_it")
    write(pytester, "it", head + test)
    result = pytester.runpytest_inprocess("benches")
    result.stdout.fnmatch_lines([f"mlexp: benches/it/bench_it.py: {said}"])
    write(pytester, "both", f"{head}def test_it{cell}\ndef test_other():\n    pass\n")
    assert "mlexp: benches" not in pytester.runpytest_inprocess("benches/both", "-k", "other").stdout.str()


def test_what_is_no_question_may_be_called_as_it_likes(pytester):
    """Cells without a declaration, in folders of one name; modules with an AXES of their own."""
    pytester.makeini(f"{INI}    test_*.py\n")
    for where in ("one", "two"):
        folder = pytester.path / where / "tests"
        folder.mkdir(parents=True)
        (folder / "test_cell.py").write_text("def test_it(cell):\n    cell.time(list)\n")
    (folder / "test_own.py").write_text("AXES = [{}]\nSTUDY = 1\ndef test_it():\n    pass\n")
    pytester.runpytest_inprocess().assert_outcomes(passed=3)


def test_a_study_that_is_not_there_is_one_line(pytester):
    pytester.makeini(INI)
    write(pytester, "it", "from mlexp.study import beside\n\nSTUDY = beside(__file__).STUDY\ndef test_it(cell): pass\n")
    result = pytester.runpytest_inprocess("benches")
    result.stdout.fnmatch_lines(["benches/it/bench_it.py:3: there is no study.py beside bench_it.py"])
    without_tracebacks(result.stdout.str())


def test_fixtures_and_what_others_parametrize_are_no_mistakes(pytester):
    pytester.makeini(INI)
    pytester.makeconftest(
        "import pytest\n@pytest.fixture\ndef things():\n    return [1]\n"
        "def pytest_generate_tests(metafunc):\n"
        "    if 'letter' in metafunc.fixturenames:\n        metafunc.parametrize('letter', ['x'])\n"
    )
    cell = BENCH.replace("size, seed, arm):", "things, letter, digit, size, seed, arm):")
    marked = cell.replace("def test_it", "import pytest\n@pytest.mark.parametrize('digit', [1])\ndef test_it")
    write(pytester, "it", marked)
    pytester.runpytest_inprocess("benches").assert_outcomes(passed=8)


def test_a_bug_of_the_study_itself_keeps_its_traceback(run):
    """Only mistakes in a declaration are cut to a line."""
    result, lines = run("STUDY = Study(", "wrong = {}['nothing']\nSTUDY = Study(")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert any("KeyError: 'nothing'" in line for line in lines)
    assert any(line.startswith("benches/it/bench_it.py:12: in <module>") for line in lines)
