"""Text: paragraphs that occur once, splits that share no window, and a negative control for both."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlexp.text.corpus import WINDOW, Corpus, read_corpus, split


def shared(a: list[str], b: list[str], window: int = WINDOW) -> int:
    """Windows of b's texts that stand in a's: by Python's own strings."""
    have = {t[i : i + window] for t in a for i in range(len(t) - window + 1)}
    return sum(t[i : i + window] in have for t in b for i in range(len(t) - window + 1))


def test_the_default_text_splits_into_parts_that_share_nothing():
    corpus = read_corpus()
    parts = split(corpus, {"test": 40_000, "validation": 20_000})
    assert sum(map(len, parts["test"])) >= 40_000 and sum(map(len, parts["validation"])) >= 20_000
    assert sum(map(len, parts["train"])) > 200_000
    for a, b in (("train", "test"), ("train", "validation"), ("test", "validation")):
        assert shared(parts[a], parts[b]) <= 3  # across the joint of two paragraphs at most
    assert parts == split(Corpus("other", corpus.documents[::-1]), {"test": 40_000, "validation": 20_000})


def test_raw_text_is_caught():
    """The check itself: without the care taken, most of the held-out text is in the training text."""
    from pydoc_data import topics

    texts = [topics.topics[key] for key in sorted(topics.topics)]
    held = texts[::8]
    train = [t for t in texts if t not in held]
    windows = sum(max(0, len(t) - WINDOW + 1) for t in held)
    assert shared(train, held) > 0.1 * windows  # 14 %


def test_a_folder_is_documents_and_a_file_paragraphs(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"All of {name}.\n\nIn both of\nthem.\n\nEnd of {name}.")
    folder = read_corpus(tmp_path)
    assert folder.documents == (("All of a.", "In both of\nthem.", "End of a."), ("All of b.", "End of b."))
    assert len(read_corpus(tmp_path / "a.txt").documents) == 3
    assert folder.hash != read_corpus(tmp_path / "a.txt").hash
    (tmp_path / "c.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5481\n")
    with pytest.raises(ValueError, match=r"c\.txt: a Git LFS pointer"):
        read_corpus(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"none: no \*.txt"):
        read_corpus(tmp_path / "none")
    with pytest.raises(ValueError, match="cannot spare"):
        split(folder, {"test": 30})


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne.\r\n\r\nTwo.")
    assert read_corpus(tmp_path / "a.txt").documents == (("One.",), ("Two.",))


def test_what_two_parts_share_is_left_out_of_the_held_out_one():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh"), 200)) for _ in range(60)]
    common = "x" + "y" * WINDOW
    documents = tuple((w, f"{common} {w[:30]}") for w in texts)
    parts = split(Corpus("made", documents), {"test": 2000})
    assert not shared(parts["train"], parts["test"]) and sum(map(len, parts["test"])) >= 2000
    assert not any(common in text for text in parts["test"]) and any(common in text for text in parts["train"])


def documents_of(draw_seed, count=40, paragraphs=3, length=90):
    """Documents whose every paragraph begins with a mark that occurs nowhere else; no two share a window of 20."""
    rng = np.random.default_rng(draw_seed)
    texts = iter("".join(rng.choice(list("abcdefghij"), length)) for _ in range(count * paragraphs))
    return tuple(tuple(f"<{i}.{j}> {next(texts)}" for j in range(paragraphs)) for i in range(count))


@given(seed=st.integers(0, 2**31 - 1), test=st.integers(300, 2500), validation=st.integers(300, 2000))
@settings(max_examples=25)
def test_every_document_goes_whole_to_exactly_one_part(seed, test, validation):
    documents = documents_of(seed)
    parts = split(Corpus("made", documents), {"test": test, "validation": validation}, window=20)
    marks = {name: set(re.findall(r"<\d+\.\d+>", " ".join(texts))) for name, texts in parts.items()}
    assert list(parts) == ["test", "validation", "train"]
    assert sum(map(len, marks.values())) == len(set().union(*marks.values())) == 120
    assert sorted(text for texts in parts.values() for text in texts) == sorted(map("\n\n".join, documents))
    for name, least in (("test", test), ("validation", validation)):
        assert least <= sum(map(len, parts[name])) < 2 * least + 300  # not much more than required


@given(seed=st.integers(0, 99), window=st.integers(12, 70))
@settings(max_examples=20)
def test_no_window_of_any_length_stands_in_two_parts(seed, window):
    """Every document shares one phrase with one other: what is shared is left out, and no more than that."""
    rng = np.random.default_rng(seed)
    phrases = ["".join(rng.choice(list("klmnop"), rng.integers(10, 80))) for _ in range(20)]
    documents = tuple(
        (*document, f"{document[0][:7]}{phrases[i % 20]}{document[0][-7:]}")
        for i, document in enumerate(documents_of(seed))
    )
    parts = split(Corpus("made", documents), {"test": 1500, "validation": 1200}, window)
    paragraphs = {name: [p for text in texts for p in text.split("\n\n")] for name, texts in parts.items()}
    for a, b in itertools.combinations(parts, 2):
        assert not shared(paragraphs[a], paragraphs[b], window), (a, b)
    kept = {p for some in paragraphs.values() for p in some}
    for paragraph in (p for document in documents for p in document if p not in kept):
        own = {paragraph[i : i + window] for i in range(len(paragraph) - window + 1)}
        assert any(piece in p for piece in own for p in kept), "left out, and shares nothing"


@given(seed=st.integers(0, 99))
@settings(max_examples=10)
def test_a_document_of_twice_a_part_s_share_is_trained_on(seed):
    giant = tuple(p for document in documents_of(seed, count=10) for p in document)
    documents = (giant, *documents_of(seed + 100))
    parts = split(Corpus("made", documents), {"test": 800, "validation": 900}, window=20)
    assert "\n\n".join(giant) in parts["train"]


def test_the_split_depends_on_content_alone():
    documents = documents_of(1)
    wanted = {"test": 900, "validation": 700}
    first = split(Corpus("made", documents), wanted)
    for order in (documents[::-1], documents[17:] + documents[:17]):
        assert split(Corpus("other", order), wanted) == first


def test_half_of_the_text_may_be_held_out_and_no_more():
    corpus = Corpus("made", documents_of(2))
    total = sum(map(len, corpus.paragraphs))
    parts = split(corpus, {"test": total // 2 - 600})
    assert sum(map(len, parts["test"])) >= total // 2 - 600
    with pytest.raises(ValueError, match=rf"corpus made: {total} distinct characters cannot spare"):
        split(corpus, {"test": total // 2 + 1})


def test_the_hash_covers_every_paragraph_and_where_documents_end():
    base = (("one", "two"), ("three",))
    others = [
        (("one",), ("two", "three")),
        (("one", "two", "three"),),
        (("onet", "wo"), ("three",)),
        (("three",), ("one", "two")),
        (("one", "two"), ("threé",)),
        (("one", "two"),),
        (("one", "Two"), ("three",)),
        (("one ", "two"), ("three",)),
    ]
    hashes = [Corpus("made", documents).hash for documents in (base, *others)]
    assert len(set(hashes)) == len(hashes) and Corpus("another name", base).hash == hashes[0]
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in hashes)


def test_a_paragraph_that_came_before_is_dropped_whatever_its_white_space_and_document(tmp_path):
    (tmp_path / "a.txt").write_text("First  one\n\nSecond\n\n\n  First\none\n\n")
    (tmp_path / "b.txt").write_text("Second\n\nThird\n\nfirst one")
    (tmp_path / "c.txt").write_text("Third\n\n \n")
    (tmp_path / "d.md").write_text("Not a document")
    corpus = read_corpus(tmp_path)
    assert corpus.documents == (("First  one", "Second"), ("Third", "first one")) and corpus.name == tmp_path.name


def test_the_default_is_every_help_text_each_paragraph_once():
    from pydoc_data import topics

    want = {" ".join(p.split()) for text in topics.topics.values() for p in re.split(r"\n\s*\n", text)} - {""}
    found = [" ".join(p.split()) for p in read_corpus().paragraphs]
    assert sorted(found) == sorted(want) and read_corpus().name == "pydoc_topics"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9 and more", "not UTF-8 text (byte 3 is 0xe9)"),
        (b"text\0more", "not text (it holds NUL bytes)"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_corpus(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_corpus(tmp_path / "b.txt")
