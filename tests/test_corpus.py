"""Text: paragraphs that occur once, splits that share no window, and a negative control for both."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp.corpus import WINDOW, Corpus, _windows, read_corpus, split


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


@given(st.lists(st.text("ab \n", max_size=30), max_size=6), st.integers(1, 8))
def test_hashes_of_windows_are_those_windows(texts, window):
    hashes = {int(h): t[i : i + window] for t in texts for i, h in enumerate(_windows(t, window))}
    words = {t[i : i + window] for t in texts for i in range(len(t) - window + 1)}
    assert set(hashes.values()) == words and len(hashes) == len(words)


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
    words = ["".join(rng.choice(list("abcdefgh"), 200)) for _ in range(60)]
    common = "x" + "y" * WINDOW
    documents = tuple((w, f"{common} {w[:30]}") for w in words)
    parts = split(Corpus("made", documents), {"test": 2000})
    assert not shared(parts["train"], parts["test"]) and sum(map(len, parts["test"])) >= 2000
    assert not any(common in text for text in parts["test"]) and any(common in text for text in parts["train"])
