"""The declaration: what of it is part of a cell's key, what records carry of it, what its bounds refuse."""

import json
from dataclasses import dataclass, replace
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp import study
from mlexp.harness.declared import measured_part
from mlexp.harness.results import declarations
from mlexp.harness.session import declared_anew
from mlexp.journal import Entry
from mlexp.settings import AtLeast, MoreThan, OneOf, Settings, singular
from mlexp.study import Above, At, Claim, Study, arm

FILE = '''
from mlexp.study import Above, At, Claim, Study, arm
from mlexp.maze.sizes import SIZES

ARMS = ("a", "b")
MARGIN = 0.02  # of a claim
METRICS = {"rate": ("fraction", "higher", "share of hits")}
PARTS = {"all": ("a", "b")}


def reference():
    """Of what a claim uses."""
    return arm("b")


def gain():
    """Of a claim."""
    return arm("a") - reference()


def steps(n):
    """Of the cell, and of the answer too."""
    return n * len(ARMS)


@dataclass
class Settings:
    steps: int = 3


CLAIMS = {"C": Claim("It helps", Above(At(gain()), MARGIN))}


def answer(findings, arms):
    return f"{findings} {steps(3)}"


STUDY = Study(asks="Does it?", arm="arch", arms=ARMS, baseline="a", outcome="loss_nats", parts=PARTS,
              settings={"quick": Settings()}, metrics=METRICS, claims=CLAIMS, answer=answer)


def test_it(cell, arch):
    cell.time(lambda: steps(4))
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("It helps", "It helps a lot"),
        ("Does it?", "Does it, then?"),
        ("MARGIN = 0.02  # of a claim", "MARGIN = 0.05  # of the claim"),
        ('return arm("a") - reference()', 'return reference() - arm("a")'),
        ('return arm("b")', 'return arm("c")'),
        ("Of a claim.", "Of two claims."),
        ('{"all": ("a", "b")}', '{"none": ("b", "a")}'),
        ('return f"{findings} {steps(3)}"', "return str(findings)"),
        ("claims=CLAIMS, answer=answer", "claims=CLAIMS | {}, answer=lambda findings, arms: answer(findings, arms)"),
        ('outcome="loss_nats"', 'outcome="accuracy"'),
        ('outcome="loss_nats"', 'outcome="loss_nats", costs=("flops",)'),
        ('"share of hits"', '"share of all hits"'),
        ('"higher"', '"lower"'),
        ('("fraction", "higher", "share of hits")', 'Metric("fraction", better="lower", what="a share")'),
        ("Of the cell, and of the answer too.", "Of both."),
        ("    steps: int = 3\n", "    # how many\n    steps: int = 3  # few\n\n"),
        ("cell.time(lambda: steps(4))", "cell.time(\n        lambda: steps(4),\n    )"),
    ],
)
def test_editing_what_no_cell_reads_changes_no_key(old, new):
    assert FILE.count(old) == 1
    before, after = (measured_part(text.encode()).decode() for text in (FILE, FILE.replace(old, new)))
    assert "test_it(cell," in after and "steps" in after
    assert after == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('ARMS = ("a", "b")', 'ARMS = ("a", "c")'),
        ("return n * len(ARMS)", "return n * len(ARMS) + 1"),
        ("steps: int = 3", "steps: int = 4"),
        ("steps(4)", "steps(5)"),
        ("import SIZES", "import SIZES, Size"),
        ('"rate":', '"rates":'),
        ('"fraction"', '"ratio"'),  # a fraction is refused above 1
    ],
)
def test_editing_what_a_cell_runs_changes_its_key(old, new):
    assert FILE.count(old) == 1
    assert measured_part(FILE.encode()) != measured_part(FILE.replace(old, new).encode())


@pytest.mark.parametrize(
    ("use", "old", "new"),
    [
        ("STUDY.outcome", 'outcome="loss_nats"', 'outcome="accuracy"'),
        ("STUDY.metrics", '"higher"', '"lower"'),
        ("METRICS", '"share of hits"', '"share"'),
        ("steps.__doc__", "Of the cell, and of the answer too.", "Of both."),
    ],
)
def test_what_the_file_itself_reads_of_these_is_part_of_the_key(use, old, new):
    text = FILE.replace("lambda: steps(4)", f"lambda: {use}")
    assert measured_part(text.encode()) != measured_part(text.replace(old, new).encode())


def test_a_replayed_cell_is_under_what_its_study_declares_now():
    """But for claims: those of its own time, or one written down afterwards would pass for one from before."""
    old = entry("1", {"C": "old"}, outcome="loss_nats")
    metrics, claims = {"rate": ("fraction", "higher", "share")}, {"C": Claim("", Above(At(arm("a"))))}
    now = Study("", "arch", ("a", "b"), baseline="a", outcome="accuracy", metrics=metrics, claims=claims)
    old = replace(old, metrics={"rate": ["fraction", "none", "?"], "gone": ["count", "none", ""]})
    again = declared_anew(old, now)
    assert again.study == now.declaration | {"claims": {"C": "old"}}
    assert again.metrics == {"rate": ["fraction", "higher", "share"], "gone": ["count", "none", ""]}
    assert again.record["replayed"] and not old.record.get("replayed")


def test_a_file_without_a_study_and_one_that_does_not_parse_are_hashed_whole():
    for text in (b"CLAIMS = 1\n", b"Study(claims=(\n"):
        assert measured_part(text) == text


def entry(cell, claims, **fields):
    declared = {"arm": "arch", "arms": ["a", "b"], "claims": claims}
    return Entry(cell, f"k{cell}", "q", {}, {"status": "passed"}, study=declared | fields)


def test_a_file_carries_the_claims_that_stood_when_every_one_of_its_cells_was_measured():
    """A replayed cell was measured under the claims of its own time."""
    entries = [entry("1", {"C": "old", "D": "d"}), entry("2", {"C": "new", "D": "d", "E": "e"}, arms=["a", "b", "c"])]
    assert declarations(entries) == {"q": {"arm": "arch", "arms": ["a", "b", "c"], "claims": {"D": "d"}}}
    older = Entry("3", "k3", "q", {}, {"status": "passed"})  # of a journal that knew of no claims
    assert declarations([*entries, older])["q"]["claims"] == {}
    assert declarations([older, *entries])["q"]["claims"] == {}
    assert declarations([older, *entries])["q"]["arms"] == ["a", "b", "c"]


def test_what_records_carry_is_a_study_again():
    whole = Study(asks="Which?", arm="arch", arms=("a", "b"), baseline="a", over=("size",), outcome="accuracy",
                  claims={"C": Claim("", Above(At(arm("a"))))})  # fmt: skip
    again = Study.declared(json.loads(json.dumps(whole.declaration)))
    assert again.declaration == whole.declaration | {"claims": {}}
    assert whole.declaration["claims"] == {"C": whole.claims["C"].fingerprint}
    with pytest.raises(ValueError, match=r"arms is \['a', 3\]"):
        Study.declared(whole.declaration | {"arms": ["a", 3]})


def test_a_baseline_is_one_of_the_arms():
    with pytest.raises(ValueError, match="baseline 'c' is no arm; choose from a, b"):
        Study(asks="", arm="x", arms=("a", "b"), baseline="c", outcome="wall_s")


@dataclass(frozen=True)
class Bounded(Settings):
    sizes: Annotated[tuple[str, ...], OneOf(("tiny", "small"))] = ("tiny",)
    shape: Annotated[str, OneOf(("wide",))] = "wide"
    steps: Annotated[int, AtLeast(1)] = 1
    factors: Annotated[tuple[int, ...], AtLeast(1)] = (1,)
    lr: Annotated[float | None, MoreThan(0)] = None
    free: int = -5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizes": ("tiny", "huge")}, "unknown size 'huge'; choose from tiny, small"),
        ({"shape": "tall"}, "unknown shape 'tall'; choose from wide"),
        ({"steps": 0}, "steps is 0; at least 1"),
        ({"factors": (2, 0)}, "factors is 0; at least 1"),
        ({"lr": 0.0}, "lr is 0.0; above 0"),
    ],
)
def test_a_setting_out_of_its_bounds_is_refused_by_value_and_bound(fields, message):
    with pytest.raises(ValueError, match=message):
        Bounded(**fields)


@given(st.integers(1, 9), st.floats(0.1, 9))
def test_a_setting_within_its_bounds_is_taken(steps, lr):
    assert Bounded(steps=steps, lr=lr, sizes=("small", "tiny")).lr == lr


@pytest.mark.parametrize(
    ("name", "one"),
    [("sizes", "size"), ("batches", "batch"), ("matches", "match"), ("losses", "loss"), ("loss", "loss")],
)
def test_one_of_what_a_setting_lists(name, one):
    assert singular(name) == one


def test_a_file_of_a_study_is_loaded_once_and_a_broken_one_not_at_all(tmp_path):
    file = tmp_path / "study.py"
    file.write_text("STUDY = object()\n")
    assert study.load(file) is study.load(file)
    with pytest.raises(TypeError, match=r"STUDY is a object; give a mlexp\.study\.Study"):
        study.of(study.load(file))
    (tmp_path / "broken").mkdir()
    broken = tmp_path / "broken" / "study.py"
    broken.write_text("raise RuntimeError('no')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            study.load(broken)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"claims": {"C": Claim("", Above(At(arm("aa") - arm("b"))))}}, "claim C: 'aa' is no arm; did you mean 'a'?"),
        ({"claims": {"C": Claim("", Above(At(arm("a").of("wal_s"))))}}, "claim C: 'wal_s' is no metric; declare it"),
        ({"outcome": "wal_s"}, "outcome 'wal_s' is no metric; declare it .*wall_s"),
    ],
)
def test_a_declaration_that_names_what_is_not_there_is_refused_before_anything_is_measured(fields, message):
    plain = {"asks": "", "arm": "x", "arms": ("a", "b"), "baseline": "a", "outcome": "wall_s"}
    with pytest.raises(ValueError, match=message):
        Study(**plain | fields)
