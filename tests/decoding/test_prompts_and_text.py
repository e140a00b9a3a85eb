"""Prompts of any count and exact length; a corpus that is split cleanly; a tokenizer that is kept and mended."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp.decoding.prompts import make_prompts, prompt_ids, read_prompts
from mlexp.decoding.text import bpe_tokenizer, load_corpus

SHIPPED = Path(__file__).parents[2] / "benches/decoding_speedup/prompts.jsonl"
LETTERS = SimpleNamespace(encode=lambda text, add_special_tokens: [ord(c) for c in text])
ROW = {"id": "p00", "passage": "Rain falls.", "question": "What falls?", "answer": "Rain"}


def items():
    return read_prompts(SHIPPED)


def test_the_shipped_prompts_hold_their_answers():
    assert len(items()) >= 10
    assert all(item.answer in item.passage and item.answer not in item.question for item in items())
    assert [item.id for item in items()] == prompt_ids(items(), len(items()))


@given(count=st.integers(1, 25), length=st.integers(1, 3000), seed=st.integers(0, 9))
def test_any_count_and_exactly_the_length(count, length, seed):
    made = make_prompts(items(), LETTERS, count, length, seed)
    assert [len(p.ids) for p in made] == [length] * count
    assert len({p.id for p in made}) == count and all(p.id.isalnum() for p in made)
    assert made == make_prompts(items(), LETTERS, 25, length, seed)[:count]  # prompt i does not depend on the count
    if length > 2000:
        assert len({p.ids for p in made}) == count


def test_the_question_ends_the_prompt_and_its_passage_is_nearest():
    (made,) = make_prompts(items(), LETTERS, 1, 900)
    text = "".join(map(chr, made.ids))
    assert text.endswith(f"{items()[0].passage}\n\nQuestion: {items()[0].question}\nAnswer:")
    (short,) = make_prompts(items(), LETTERS, 1, 9)
    assert "".join(map(chr, short.ids)) == "?\nAnswer:"


def passages_of(text):
    """The passages of a prompt of the shipped items in order, its own last, without the one that is cut on the left."""
    *before, question = text.split("\n\n")
    return [next(item for item in items() if item.passage == passage) for passage in before[1:]], question


@given(number=st.integers(0, 24), seed=st.integers(0, 9))
def test_before_its_own_passage_stand_the_others_in_an_order_of_the_prompt_s_own(number, seed):
    made = make_prompts(items(), LETTERS, 25, 3000, seed)
    own, count = items()[number % len(items())], len(items())
    used, question = passages_of("".join(map(chr, made[number].ids)))
    assert used.pop() == own and question == f"Question: {own.question}\nAnswer:"
    assert made[number].answer == own.answer
    assert own not in used  # so that no prompt holds its answer twice
    rounds = [used[max(0, i - count + 1) : i] for i in range(len(used), 0, 1 - count)]
    assert all(len({item.id for item in one}) == len(one) for one in rounds)
    others = [passages_of("".join(map(chr, prompt.ids)))[0][:-1] for prompt in made]
    assert len({tuple(item.id for item in other if item.id not in ("p00", "p01")) for other in others[:2]}) == 2


def test_one_item_is_enough(tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps(ROW) + "\n\n")
    made = make_prompts(read_prompts(tmp_path / "one.jsonl"), LETTERS, 3, 400)
    assert [p.id for p in made] == ["p00", "p01", "p02"]


@pytest.mark.parametrize(("line", "message"), [
    ("{", "line 2: not JSON"), ("[1]", "line 2: fields list"),
    (json.dumps({"id": "a"}), r"line 2: fields \['id'\]; expected exactly id, passage"),
    (json.dumps(ROW | {"id": "p01", "answer": " "}), "line 2: answer=' '; expected some text"),
    (json.dumps(ROW | {"id": "p01", "passage": 3}), "line 2: passage=3"),
    (json.dumps(ROW | {"id": "P-1"}), "line 2: id='P-1'"),
    (json.dumps(ROW), "id 'p00' of prompt 2 is that of prompt 1"),
])  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "bad.jsonl").write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "bad.jsonl")


def test_line_separators_within_strings_and_byte_order_marks(tmp_path):
    """JSON strings may hold U+2028, U+0085 and the like as they are; only a newline ends a line."""
    row = {"id": "q0", "passage": "one\u2028two\u0085three\x1cfour", "question": "which?", "answer": "two"}
    text = json.dumps(row, ensure_ascii=False).replace("\\u001c", "\x7f") + "\r\n"
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (prompt,) = read_prompts(tmp_path / "p.jsonl")
    assert prompt.passage.startswith("one\u2028two\u0085three")


def test_missing_and_empty_files_and_bad_requests(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no prompt in it"):
        read_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="0 prompts"):
        make_prompts(items(), LETTERS, 0, 5)
    with pytest.raises(ValueError, match="length 0"):
        make_prompts(items(), LETTERS, 1, 0)


def test_the_default_corpus_is_clean():
    corpus = load_corpus()
    train, held = (set(text.split("\n\n")) for text in (corpus.train, corpus.held_out))
    assert not train & held and 0.05 < len(held) / (len(train) + len(held)) < 0.2
    assert len(corpus.train) > 200_000 and corpus.hash == load_corpus().hash


def text_file(tmp_path, paragraphs=400):
    path = tmp_path / "words.txt"
    path.write_text(
        "\n\n".join(f"Paragraph {i} says that the number {i * i} is the square of {i}." for i in range(paragraphs))
        + "\n"
    )
    return path


def test_a_corpus_of_ones_own(tmp_path):
    corpus = load_corpus(text_file(tmp_path))
    assert corpus.name == "words.txt" and corpus.hash != load_corpus().hash
    path = text_file(tmp_path)
    path.write_text("\n\n".join([path.read_text()] * 3))
    assert load_corpus(path).train == corpus.train  # repeats count once


@pytest.mark.parametrize(("content", "message"), [(b"\xff\xfe\x00", "not UTF-8 text .byte 0 is 0xff"), (b"a\0b", "NUL"),
                                                  (b"too short", "9 characters|0 characters")])  # fmt: skip
def test_what_is_no_corpus_is_refused(tmp_path, content, message):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_corpus(tmp_path / "none")


def test_the_tokenizer_round_trips_is_kept_and_is_mended(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    corpus = load_corpus(text_file(tmp_path))
    first = bpe_tokenizer(corpus, 300)
    text = "Paragraph 12 says: naïve café, 漢字\n"
    assert first.decode(first.encode(text)) == text and len(first) <= 300
    (file,) = (tmp_path / "cache/mlexp/tokenizers").iterdir()
    assert "training" in capsys.readouterr().out
    assert bpe_tokenizer(corpus, 300).encode(text) == first.encode(text) and not capsys.readouterr().out
    file.write_bytes(file.read_bytes()[:100])
    assert bpe_tokenizer(corpus, 300).encode(text) == first.encode(text)
    assert "is damaged" in capsys.readouterr().out
