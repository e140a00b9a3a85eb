"""Files that are wrong in any field, and files that mean harm: one clear line or a right answer, never a traceback."""

import copy
import csv
import itertools
import json
import math
import os
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from mlexp import cli, journal
from mlexp.analysis.files import LoadError
from mlexp.analysis.results import load

EVIL = "<script>alert('x')</script>|`*[a](javascript:x)\n# head\x00\ud800"
HUGE = json.loads("9" * 400)

REPORT = '''"""How much faster is the tree?"""
from mlexp.analysis.results import paired

def report(records, out):
    pairs = paired(records, "wall_s", arm="decoder", of="plain", to="tree", over=["model", "prompt"])
    out.table(pairs[["model", "prompt", "ratio"]], "pairs.csv", "Ratios.")
    out.verdict("H1", "It is", "undecided", f"x{pairs['ratio'].median():.3f}", None, "")
'''
RECORD = dict(
    {"status": "passed", "reason": None, "scale": "quick", "settings": "{}", "overrides": "", "seed": 7},
    device="cpu",
    dtype="float32",
    machine="A CPU, 2 threads",
    weights="random",
    corpus=None,
    commit="abc",
    dirty=False,
    torch="2.13.0",
    transformers="5.0",
    python="3.11.7",
    question="speed",
    replayed=False,
    when="2026-11-22T10:00:00+00:00",
    flops=10,
    accuracy=0.5,
)


def document():
    """A benchmark JSON of 8 cells and one that did not finish, as the harness writes it."""
    benches = []
    for i, axes in enumerate(itertools.product(("small", "large"), ("p00", "p01"), ("plain", "tree"))):
        params = dict(zip(("model", "prompt", "decoder"), axes, strict=True))
        cell = f"benches/speed/bench_speed.py::test_run[{'-'.join(axes)}]"
        data = [1.0 + i, 1.25 + i, 1.75 + i]
        extra = {**RECORD, "cell": cell, "key": f"k{i}"}
        stats = {"data": data, "median": data[1], "iqr": 0.4, "rounds": 3}
        name = {"group": "speed", "name": cell[-9:], "fullname": cell}
        benches.append({**name, "params": params, "extra_info": extra, "stats": stats})
    gone = {name: copy.deepcopy(value) for name, value in benches[0].items() if name != "stats"}
    gone["params"]["prompt"], gone["fullname"] = "p03", gone["fullname"].replace("p00", "p03")
    gone["extra_info"] |= {"status": "oom", "reason": "out of memory", "cell": gone["fullname"], "key": "gone"}
    head = {"machine_info": {"cpu": {"brand_raw": "A CPU"}}, "commit_info": {"id": "abc", "dirty": False}}
    tail = {"datetime": "2026-11-22T10:00:00+00:00", "version": "5.3.1"}
    metrics = {"speed": {"things": ["count", "lower", "how many"]}}
    return {
        **head,
        "benchmarks": benches,
        "unfinished": [gone],
        "series": {"k0": {"curve": [1.0, None]}},
        "metrics": metrics,
        **tail,
    }


def places(value, at=()):
    """The path of everything in a JSON value."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*at, key))


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


WORDS = [
    "passed",
    "oom",
    "speed",
    "tree",
    "plain",
    "small",
    "p00",
    "k1",
    "wall_s",
    "status",
    "NaN",
    "",
    "../../x",
    "2027",
]
NUMBERS = [0, -1, 1, 2**63, HUGE, -HUGE, 0.0, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf, True, False]
hostile = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(NUMBERS),
    st.sampled_from([None, EVIL, [], {}, [[]], {"": None}, [EVIL], {EVIL: EVIL}, "x" * 100_000, [1.5, "2"], deep(60)]),
    st.integers() | st.floats() | st.text(max_size=20),
)
CUTS = ("nothing", "cut", "flip", "bom", "twice", "empty", "deep")


@st.composite
def broken(draw):
    """(the bytes of a file, made from a good one)."""
    data = document()
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([place for place in places(data) if place]))
        inside = data
        for key in path:
            inside = inside[key]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "drop", "double"]))
        if kind == "drop":
            del inside[last]
        elif kind == "double" and isinstance(inside, list):
            inside.append(copy.deepcopy(inside[last]))
        elif isinstance(inside, dict) and draw(st.integers(0, 3)) == 0:
            name = draw(st.sampled_from([*WORDS, EVIL, "rounds", "model", "cell", "accuracy"]))
            inside[name] = copy.deepcopy(draw(hostile))
        else:
            inside[last] = copy.deepcopy(draw(hostile))
    text = json.dumps(data).encode()
    kind, at = draw(st.sampled_from([*CUTS, *["nothing"] * 8])), draw(st.integers(0, len(text) - 1))
    if kind == "flip":
        flipped = bytearray(text)
        flipped[at] ^= 1 << draw(st.integers(0, 7))
        return bytes(flipped)
    made = {"cut": text[:at], "bom": b"\xef\xbb\xbf" + text, "twice": text + text, "empty": b""}
    return made.get(kind, b"[" * 100_000 if kind == "deep" else text)


class Tags(HTMLParser):
    """The tags of a page and its attributes that run code."""

    def __init__(self):
        super().__init__()
        self.bad, self.scripts = [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"  # the page has one of its own
        harm = (
            self.scripts > 1
            or tag in ("iframe", "object", "embed")
            or any(
                name.startswith("on") or (value or "").strip().lower().startswith("javascript:")
                for name, value in attrs
            )
        )
        self.bad += [tag] * harm


def medians(content):
    """What the walls in a broken file may come to, by (model, prompt, decoder): the oracle, in six lines."""
    try:
        benches = json.loads(content.decode("utf-8-sig"))["benchmarks"]
        assert isinstance(benches, list)
    except (ValueError, RecursionError, KeyError, TypeError, AssertionError):
        return {}
    found = {}
    for bench in benches:
        try:
            where = tuple(str(bench["params"][axis]) for axis in ("model", "prompt", "decoder"))
            stats = bench["stats"]
            wall = statistics.median(map(float, stats["data"])) if stats.get("data") else float(stats["median"])
        except (TypeError, KeyError, ValueError, OverflowError, AttributeError):
            continue  # what it came to is no number; a loader that has one made it up
        found.setdefault(where, []).append(wall)
    return found


def near(value, candidates):
    return any(value == c or math.isclose(value, c, rel_tol=1e-9) for c in candidates if not math.isnan(c))


def check_command(command, words, capsys, place):
    """One call of the command: its status; raises AssertionError for anything but a clean end."""
    status = cli.main([command, *map(str, words)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert status in (0, 1, 2, 3, 4)
    if status == 4:
        assert err.count("\n") == 1 and err.strip(), err
    return status, out


def check_numbers(place, content):
    """Every ratio of the report is that of two medians of the file, of the model and prompt that it says."""
    found, table = medians(content), place / "results" / "speed" / "pairs.csv"
    for row in csv.DictReader(table.open(newline="")) if table.exists() else ():
        one, two = (found.get((row["model"], row["prompt"], arm), []) for arm in ("plain", "tree"))
        allowed = [a / b for a in one for b in two if b]
        assert row["ratio"] and near(float(row["ratio"]), allowed), (row, one, two)


def check_page(place):
    page = Tags()
    page.feed((place / "results" / "index.html").read_text())
    assert not page.bad


def check(place, capsys, content):
    """All that a broken file is put to."""
    for old in place.rglob("*.*"):
        if old.is_file() and old.name not in ("report.py", "good.json"):
            old.unlink()
    (place / "bad.json").write_bytes(content)
    check_load(place / "bad.json", medians(content))
    status, _ = check_command("report", ["bad.json"], capsys, place)
    if status in (0, 3):
        check_page(place)
        check_numbers(place, content)
    if "compare" in offered():
        pairs = (("good.json", "bad.json"), ("bad.json", "good.json"), ("bad.json", "bad.json"))
        pair = pairs[sum(content) % 3]  # each in its turn: a comparison takes its time
        status, out = check_command("compare", pair, capsys, place)
        assert pair != ("bad.json", "bad.json") or status != 1, f"worse than itself: {out}"


def check_load(path, found):
    try:
        df = load(path, status=None)
    except LoadError as error:
        assert str(error) and "\n" not in str(error)
        return
    walls = [wall for walls in found.values() for wall in walls]
    for row in df.to_dict("records"):
        if all(isinstance(row.get(axis), str) for axis in ("model", "prompt", "decoder")):
            wall = row.get("wall_s")
            assert wall is None or wall != wall or near(wall, walls), (row, walls)


def offered():
    """The commands that there are."""
    (commands,) = (action for action in cli.parser()._actions if getattr(action, "choices", None))
    return set(commands.choices)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benches" / "speed").mkdir(parents=True)
    (tmp_path / "benches" / "speed" / "report.py").write_text(REPORT)
    (tmp_path / "good.json").write_text(json.dumps(document()))
    return tmp_path


def fuzz(place, capsys, count, number=0):
    @seed(number)
    @given(content=broken())
    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    def each(content):
        note(content[:3000])
        check(place, capsys, content)

    each()


def test_a_file_broken_anywhere_is_one_line_or_a_right_answer(place, capsys):
    fuzz(place, capsys, 40)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 5))
def test_two_thousand_broken_files(place, capsys, number):
    fuzz(place, capsys, 500, number)


def test_the_checks_see_what_they_look_for(place, capsys):
    """The good file passes; a wrong ratio, a number from nowhere and a script on the page do not."""
    content = json.dumps(document()).encode()
    check(place, capsys, content)
    table = place / "results" / "speed" / "pairs.csv"
    assert table.read_text().count("\n") == 5
    table.write_text(table.read_text().replace("small,p00,", "small,p00,1"))
    with pytest.raises(AssertionError):
        check_numbers(place, content)
    with pytest.raises(AssertionError):
        check_load(place / "good.json", {("small", "p00", "tree"): [0.5]})
    (place / "results" / "index.html").write_text("<p onclick='x'>")
    with pytest.raises(AssertionError):
        check_page(place)


def test_a_journal_of_many_flipped_bits_and_cuts_is_never_believed(place, capsys):
    """Bits flipped at random in a journal: every record that is still read is one that was written."""
    book = journal.Journal(place / "j.jsonl")
    for bench in document()["benchmarks"]:
        extra = bench["extra_info"]
        book.append(journal.Entry(extra["cell"], extra["key"], "speed", bench["params"], extra, bench["stats"]["data"]))
    whole, written = book.path.read_bytes(), journal.read(book.path).entries

    @given(
        flips=st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 7)), max_size=9),
        cut=st.integers(0, len(whole)),
    )
    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    def each(flips, cut):
        damaged = bytearray(whole)
        for at, bit in flips:
            damaged[at] ^= 1 << bit
        book.path.write_bytes(damaged[: len(whole) - cut] if cut % 2 else damaged)
        contents = journal.read(book.path)
        assert all(entry in written for entry in contents.entries)
        status, _ = check_command("report", [book.path], capsys, place)
        assert status in (0, 2, 3, 4)
        book.append(written[0])
        assert journal.read(book.path).entries[-1] == written[0]

    each()


PROMPT = {
    "id": "p00",
    "passage": "Berlin lies on the Spree.",
    "question": "On what does Berlin lie?",
    "answer": "Spree",
}
prompt_values = st.sampled_from(
    [None, "", " ", 0, 1.5, True, [], {}, EVIL, "A b", "x" * 9999, "é", "p00", math.nan]
) | st.text(max_size=9)


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from([*PROMPT, "more", ""]), prompt_values, max_size=5).map(lambda row: PROMPT | row)
        | prompt_values
        | st.just(PROMPT),
        max_size=3,
    ),
    drop=st.sampled_from([None, *PROMPT]),
    cut=st.integers(0, 30),
)
def test_a_prompts_file_broken_in_every_field_is_one_line(tmp_path_factory, rows, drop, cut):
    from mlexp.decoding.prompts import read_prompts

    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    rows = [
        {name: value for name, value in row.items() if name != drop} if isinstance(row, dict) else row for row in rows
    ]
    text = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(text[: len(text) - cut] if cut > 20 else text)
    try:
        prompts = read_prompts(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        good = [row for row in rows if isinstance(row, dict)]
        assert [vars(prompt) for prompt in prompts] == good


CONFIG = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 12, "n_embd": 768, "n_head": 12,
    "vocab_size": 50257, "n_positions": 1024,
}  # fmt: skip
SAFETENSORS = b"\x02" + bytes(7) + b"{}"  # no tensors, but whole


@given(
    field=st.sampled_from([*CONFIG, None]),
    value=st.sampled_from([None, 0, -1, 1.5, "12", [], {}, True, EVIL]),
    text=st.sampled_from([None, "", "[]", "null", "{", "\x00", '"x"', "[" * 100_000]),
)
@settings(max_examples=60)
def test_a_weights_folder_broken_in_every_field_is_one_line(tmp_path_factory, field, value, text):
    from mlexp.decoding.weights import find_weights

    folder = tmp_path_factory.mktemp("weights")
    (folder / "config.json").write_text(
        json.dumps(CONFIG | ({field: value} if field else {})) if text is None else text
    )
    (folder / "model.safetensors").write_bytes(SAFETENSORS)
    (folder / "tokenizer.json").write_text("{}")
    if text is None and field in ("architectures", None):
        assert find_weights("gpt2_small", folder).folder == folder
        return
    with pytest.raises(ValueError, match=re.escape(str(folder))) as told:
        find_weights("gpt2_small", folder)
    assert "\n" not in str(told.value)


@given(
    header=st.one_of(
        st.binary(max_size=80),
        st.recursive(
            st.none() | st.booleans() | st.integers(-9, 99) | st.text("data_offsets", max_size=12),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "data_offsets"]), inner),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    length=st.none() | st.integers(0, 2**64 - 1),
    data=st.integers(0, 64),
)
def test_safetensors_of_any_bytes_are_whole_or_one_line(tmp_path_factory, header, length, data):
    """What passes for whole here is for safetensors itself to judge, at loading; here nothing else may be raised."""
    from mlexp.decoding.checkpoint import check_whole

    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    file.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + bytes(data))
    try:
        check_whole(file)
    except ValueError as error:
        assert str(file) in str(error) and "\n" not in str(error)


def test_records_outlive_a_clock_that_jumps(place):
    """In one journal what stands later is newer, whatever the clock said; wall times never come from that clock."""
    book, bench = journal.Journal(place / "j.jsonl"), document()["benchmarks"][0]
    for when, seconds in (("2031-01-01T00:00:00+00:00", 9.0), ("1970-01-01T00:00:00+00:00", 1.0)):
        extra = bench["extra_info"] | {"when": when}
        book.append(journal.Entry(extra["cell"], extra["key"], "speed", bench["params"], extra, [seconds]))
    assert load(book.path)["wall_s"].tolist() == [1.0]
    os.utime(book.path, (0, 0))
    assert load(Path(book.path))["wall_s"].tolist() == [1.0]
