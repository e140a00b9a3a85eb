"""A trained BPE against the tokenizers library's own trainer; one file for each training text and its terms."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mlexp.text import tokenizer
from mlexp.text.corpus import read_corpus
from mlexp.text.tokenizer import parse, trained_bpe

WORDS = ["banana bandana " * 20, "ananas banana " * 20, "sole"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def quiet(*_):
    pass


@pytest.mark.parametrize(("special", "min_frequency"), [((), 0), (("<end>",), 2)])
def test_the_tokenizer_is_the_library_s(special, min_frequency):
    documents = read_corpus().paragraphs[:300]
    found = trained_bpe(documents, 400, special=special, min_frequency=min_frequency, progress=quiet)
    want = Tokenizer(models.BPE())
    want.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=min_frequency, special_tokens=list(special),
                                  initial_alphabet=sorted(alphabet), show_progress=False)  # fmt: skip
    want.train_from_iterator(documents, trainer)
    assert found.get_vocab() == want.get_vocab() and found.get_vocab_size() == 400
    text = "\n".join(documents[:20]) + " naïve café, 漢字"
    assert found.encode(text).ids == want.encode(text).ids and found.decode(found.encode(text).ids) == text
    assert [found.token_to_id(token) for token in special] == list(range(len(special)))


def test_a_tokenizer_is_trained_once_for_each_text_size_and_terms(monkeypatch):
    trainings, train = [], tokenizer.train_bpe
    monkeypatch.setattr(tokenizer, "train_bpe", lambda *terms: trainings.append(terms) or train(*terms))
    terms = [
        (WORDS, 300, {}),
        (WORDS[:2], 300, {}),
        ([*WORDS[:2], "sale"], 300, {}),
        (WORDS[1:], 300, {}),
        (WORDS, 280, {}),
        (WORDS, 300, {"special": ("<end>",)}),
        (WORDS, 300, {"min_frequency": 30}),
    ]
    first = [trained_bpe(documents, vocab, progress=quiet, **more).to_str() for documents, vocab, more in terms]
    assert len(trainings) == len(terms)
    again = [trained_bpe(documents, vocab, progress=quiet, **more).to_str() for documents, vocab, more in terms]
    assert again == first and len(trainings) == len(terms)


def test_what_is_no_tokenizer_is_a_value_error():
    for content in (b"{}", b"\xff", b""):
        with pytest.raises(ValueError):
            parse(content)
