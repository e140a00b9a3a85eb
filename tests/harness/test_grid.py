"""Settings, `--set` and the grid they span."""

import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp.harness import grid

names = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True)
values = st.lists(names | st.integers(0, 99), min_size=1, max_size=4, unique=True)
axes = st.dictionaries(names, values, min_size=1, max_size=3)


@dataclass(frozen=True)
class Settings:
    count: int = 3
    share: float = 0.5
    on: bool = False
    name: str = "a"
    limit: int | None = None
    seeds: tuple[int, ...] = (1,)
    arms: tuple[str, ...] = ("a", "b")


@given(axes)
def test_every_block_holds_every_arm_once_and_rotates_them(axes):
    cells = grid.cells(axes)
    *outer, arms = axes.values()
    total = len(arms)
    for value in outer:
        total *= len(value)
    assert len(cells) == len(dict(cells)) == total
    for number in range(0, total, len(arms)):
        block = [values for values, _ in cells[number : number + len(arms)]]
        assert len({values[:-1] for values in block}) == 1
        start = (number // len(arms)) % len(arms)
        assert [values[-1] for values in block] == [*arms[start:], *arms[:start]]


@given(axes, st.integers(0, 2**32 - 1))
def test_what_a_question_does_not_collect_leaves_every_block_in_rotation(axes, seed):
    everything = grid.cells(axes)
    gone = {values for number, (values, _) in enumerate(everything) if seed >> number % 32 & 1}
    kept = grid.cells(axes, lambda params: tuple(params.values()) not in gone)
    assert {values for values, _ in kept} == {values for values, _ in everything} - gone
    blocks = {}
    for values, _ in kept:
        blocks.setdefault(values[:-1], []).append(values[-1])
    *_, arms = axes.values()
    assert [values[:-1] for values, _ in kept] == [block for block, mine in blocks.items() for _ in mine]
    for number, mine in enumerate(blocks.values()):
        wanted = [arm for arm in arms if arm in mine]
        start = number % len(wanted)
        assert mine == wanted[start:] + wanted[:start]


@given(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.lists(st.integers(0, 99), min_size=1),
)
def test_what_is_printed_is_parsed(count, share, on, seeds):
    typed = {"count": count, "share": share, "on": on, "seeds": ",".join(map(str, seeds))}
    made = grid.override(Settings(), [grid.parse_override(f"{name}={value}") for name, value in typed.items()])
    assert made == dataclasses.replace(Settings(), count=count, share=share, on=on, seeds=tuple(seeds))


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("seeds=42..46", "seeds", (42, 43, 44, 45, 46)),
        ("arms=p08..p11,x", "arms", ("p08", "p09", "p10", "p11", "x")),
        ("limit=none", "limit", None),
        ("limit=7", "limit", 7),
        ("name=a=b", "name", "a=b"),
    ],
)
def test_ranges_optionals_and_equals_signs(text, field, value):
    assert getattr(grid.override(Settings(), [grid.parse_override(text)]), field) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuont=3", "unknown setting 'cuont'; choose from count, share"),
        ("count=3.5", "expected int, not '3.5'"),
        ("on=yes", "expected true or false"),
        ("share=inf", "expected a finite number"),
        ("seeds=", "expected a comma-separated list"),
    ],
)
def test_a_bad_value_names_itself_and_what_is_allowed(text, message):
    with pytest.raises(ValueError, match=message) as error:
        grid.override(Settings(), [grid.parse_override(text)])
    assert str(error.value).startswith(f"--set {text}")


def test_axes_are_not_part_of_the_fixed_settings():
    axes = {"seed": "seeds", "arm": "arms"}
    assert grid.changed(Settings(count=4, seeds=(9,)), Settings(), axes) == "count=4"
    assert set(grid.fixed(Settings(), axes)) == {"count", "share", "on", "name", "limit"}


@pytest.mark.parametrize("value", ["GPT-2", "a b", "", "a=b"])
def test_values_that_would_break_k_are_refused(value):
    with pytest.raises(ValueError, match="cannot stand in a test id"):
        grid.cells({"arm": [value]})


def test_checkpoints_are_names_and_folders(tmp_path):
    (tmp_path / "a").mkdir()
    assert grid.checkpoints([f"mine={tmp_path}", "other=a"], tmp_path) == {
        "mine": str(tmp_path),
        "other": str(tmp_path / "a"),
    }
    for text, message in {
        "a": "expected NAME=FOLDER",
        "A b=a": "expected NAME=FOLDER",
        "x=none": "no such folder",
    }.items():
        with pytest.raises(ValueError, match=message):
            grid.checkpoints([text], tmp_path)
    with pytest.raises(ValueError, match="given twice"):
        grid.checkpoints(["x=a", "x=a"], tmp_path)


def test_a_value_twice_is_no_second_replicate_and_a_range_runs_upwards():
    with pytest.raises(ValueError, match="axis 'seed' has 1 twice; each value once"):
        grid.cells({"seed": (1, 2, 1), "arm": ("a", "b")})
    with pytest.raises(ValueError, match=r"the range '3\.\.1' runs backwards; write 1\.\.3"):
        grid.expand("3..1")
    assert grid.expand("3..3") == ["3"]
