"""Texts: a source whose best loss is as stated, parts that share nothing, the same tokens for every arm."""

import json

import numpy as np
import pytest
import torch

from mlexp.attention import text as module
from mlexp.attention.text import (
    PARTS,
    Batches,
    Part,
    Source,
    Text,
    _check_apart,
    floors,
    natural_text,
    shared_windows,
    synthetic_text,
)
from mlexp.text import ngrams
from mlexp.text import tokenizer as tokenizers
from mlexp.text.corpus import read_corpus, split

LENGTHS = dict.fromkeys(PARTS, 20_000)
HELD_OUT = dict.fromkeys(PARTS[1:], 12_000)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_true_distribution_is_what_counting_finds():
    source = Source(vocab=3, lags=(1, 2), weights=(0.5, 0.3), exponent=1.0)
    tokens = source.stream(300_000, (0,))
    p = source.predictive(tokens)
    np.testing.assert_allclose(p.sum(1), 1)
    pairs = tokens[:-2] * 3 + tokens[1:-1]
    for pair in range(9):
        at = pairs == pair
        counted = np.bincount(tokens[2:][at], minlength=3) / at.sum()
        by_hand = 0.2 * source.law
        for weight, table, before in ((0.5, source.tables[0], pair % 3), (0.3, source.tables[1], pair // 3)):
            by_hand[table[before]] += weight
        np.testing.assert_allclose(p[at], np.broadcast_to(by_hand, (at.sum(), 3)))
        assert abs(counted - by_hand).max() < 5 * (at.sum() * 4) ** -0.5


def test_the_bayes_floor_is_what_the_true_predictor_loses_and_others_lose_more():
    source = Source()
    text = synthetic_text(LENGTHS | {"train": 200_000}, seed=5)
    tokens = text.parts["test"].tokens
    p = source.predictive(tokens)
    met = -np.log(p[np.arange(len(p)), tokens[8:]])
    assert abs(met.mean() - text.floors["bayes"]) < 4 * met.std() / len(met) ** 0.5
    assert text.floors["bayes"] == pytest.approx(1.76, abs=0.02)
    order = ("bayes", "bigram", "unigram", "uniform")
    assert sorted(text.floors.values()) == [text.floors[name] for name in order]
    assert met.mean() < -np.log(0.99 * p + 0.01 / 64)[np.arange(len(p)), tokens[8:]].mean()
    share = np.bincount(text.parts["train"].tokens, minlength=64) / 200_000
    assert text.floors["unigram"] == pytest.approx(-(share * np.log(share)).sum(), abs=0.02)


def test_the_source_is_the_one_that_is_drawn():
    source = Source()
    assert (source.vocab, source.lags, source.weights, source.exponent) == (64, (1, 3, 8), (0.35, 0.30, 0.20), 0.8)
    zipf = np.arange(1, 65) ** -0.8
    np.testing.assert_allclose(source.law, zipf / zipf.sum())
    tokens = source.stream(200_000, (1,))
    for lag, weight, table in zip(source.lags, source.weights, source.tables, strict=True):
        follows = (tokens[lag:] == table[tokens[:-lag]]).mean()  # by this lag, or by chance
        assert weight < follows < weight + 0.15
    p = source.predictive(tokens[:500])
    assert source.bayes(tokens[:500]) == pytest.approx(-(p * np.log(p)).sum() / 492)


def test_a_stream_begins_after_its_burn_in(monkeypatch):
    late = Source().stream(100, (3,))
    monkeypatch.setattr(module, "BURN_IN", 0)
    assert (late == Source().stream(164, (3,))[64:]).all()


def test_the_bayes_floor_is_the_test_part_s():
    source, text = Source(), synthetic_text({"test": 300, "train": 900}, seed=3)
    assert text.floors["bayes"] == source.bayes(text.parts["test"].tokens) != source.bayes(text.parts["train"].tokens)


def test_parts_that_share_text_are_refused_wherever_they_come_from(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(Source, "stream", lambda self, length, seed: np.arange(length) % self.vocab)
        with pytest.raises(AssertionError, match="train and test have 64 windows of 32 tokens in common"):
            synthetic_text({"train": 200, "test": 200})
    corpus = a_corpus(tmp_path / "corpus", "to be or not to be that is the question")
    monkeypatch.setattr(module, "_apart", lambda documents, progress: documents)  # quoting documents are left in
    with pytest.raises(AssertionError, match="windows of 32 tokens in common"):
        natural_text(dict.fromkeys(PARTS[1:], 5_000), 300, corpus, a_tokenizer(tmp_path / "own"))


def test_documents_are_where_they_start_and_a_hash_is_of_every_token():
    part = Part(np.arange(9), np.array([0, 3, 4]), 27)
    assert part.documents().tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2] and part.bytes_per_token == 3
    tokens = np.arange(500)

    def text(**parts):
        return Text("", 9, {name: Part(tokens, np.zeros(1)) for name, tokens in parts.items()}, {}).hash

    hashes = {text(train=tokens, test=tokens[:9]), text(train=tokens[:9], test=tokens), text(test=tokens, tune=tokens)}
    hashes |= {text(train=tokens, tune=tokens[:9]), text(tune=tokens, test=tokens[:9])}  # a part's name counts
    for at in (0, 250, 499):
        hashes |= {text(train=np.where(tokens == at, 7000, tokens), test=tokens[:9])}
    assert len(hashes) == 8


def test_floors_are_n_grams_of_the_training_part_on_the_test_part():
    text = synthetic_text({"train": 3000, "tune": 500, "test": 700}, seed=1)
    train, test = text.parts["train"].tokens, text.parts["test"].tokens
    want = {"uniform": np.log(64), **ngrams.floors(train, test, 64)}
    assert floors(text.parts, 64) == want == {name: text.floors[name] for name in want}
    assert list(want) == ["uniform", "unigram", "bigram"] and set(text.floors) == {*want, "bayes"}
    assert floors({"train": text.parts["train"]}, 64) == {"uniform": np.log(64)}


def test_a_stream_is_its_seed_s_and_parts_differ():
    a, b = synthetic_text(LENGTHS, seed=1), synthetic_text(LENGTHS, seed=1)
    assert a.hash == b.hash != synthetic_text(LENGTHS, seed=2).hash
    state = np.random.get_state()[1].copy()
    synthetic_text(LENGTHS)
    assert (np.random.get_state()[1] == state).all()


def test_shared_windows_are_counted_and_refused():
    a, b = (np.random.default_rng(seed).integers(0, 64, 1000) for seed in (0, 1))
    assert shared_windows(a, b) == 0 and shared_windows(a, a) == 1000 - 31
    b[500:540] = a[100:140]
    assert shared_windows(a, b) == 9 and shared_windows(a[:20], a) == 0
    with pytest.raises(AssertionError, match="train and test have 9 windows of 32 tokens in common"):
        _check_apart({"train": Part(a, np.zeros(1)), "test": Part(b, np.zeros(1))})


def test_natural_text_is_split_by_documents_and_carries_its_bytes():
    messages = []
    text = natural_text(HELD_OUT, 1024, progress=lambda *x: messages.append(x[2]))
    again = natural_text(HELD_OUT, 1024, progress=lambda *x: pytest.fail(f"made again: {x[2]}"))
    assert text.hash == again.hash and text.name == "pydoc_topics" and any("BPE" in line for line in messages)
    for a, name in enumerate(PARTS):
        part = text.parts[name]
        assert part.tokens.max() < 1024 and 2 < part.bytes_per_token < 4
        assert (part.tokens == 0).sum() == len(part.starts)  # one end a document
        assert (part.tokens[part.starts[1:] - 1] == 0).all() and part.tokens[-1] == 0
        assert np.bincount(part.documents()).sum() == len(part.tokens)
        assert all(shared_windows(part.tokens, text.parts[other].tokens) == 0 for other in PARTS[a + 1 :])
    assert 3 < text.floors["bigram"] < text.floors["unigram"] < text.floors["uniform"]


def documents_of(text, part, decode):
    """The texts of a part's documents, without the tokens that end them."""
    part = text.parts[part]
    return [decode(tokens[:-1]) for tokens in np.split(part.tokens, part.starts[1:])]


def test_the_tokens_of_a_part_are_its_own_documents_and_nothing_held_out_reached_the_tokenizer(tmp_path, monkeypatch):
    corpus = a_corpus(tmp_path / "corpus", " äöü — une œuvre entière ")
    held_out, learnt, train = dict.fromkeys(PARTS[1:], 3_000), [], tokenizers.train_bpe

    def noted(documents, *rest):
        learnt.append(documents)
        return train(documents, *rest)

    monkeypatch.setattr(tokenizers, "train_bpe", noted)
    text = natural_text(held_out, 300, corpus, progress=lambda *_: None)
    texts = split(read_corpus(corpus), held_out)
    assert learnt == [texts["train"]] and text.name == "corpus"
    (file,) = (tmp_path / "cache/mlexp/tokenizers").glob("bpe-300-*.json")
    bpe = tokenizers.parse(file.read_bytes())
    for name in PARTS:
        found = documents_of(text, name, lambda tokens: bpe.decode(tokens.tolist()))
        assert set(found) <= set(texts[name]) and (name != "train" or found == texts["train"])
        assert text.parts[name].n_bytes == sum(len(document.encode()) for document in found)
        assert len(found) == len(text.parts[name].starts)
    assert text.parts["train"].n_bytes > sum(map(len, texts["train"]))  # some letters take two bytes


def a_tokenizer(folder, end="<fin>"):
    """A token a byte, as a folder with the two files that a downloaded one has."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens([end])
    folder.mkdir(exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<fin>"}}))
    return folder


def a_corpus(folder, phrase):
    """Documents of random words, a quarter of which quote the phrase."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(24):
        letters = " ".join("".join(random.choice(list("abcdefghij"), 5)) for _ in range(200))
        (folder / f"{i:02}.txt").write_text(letters + ("" if i % 4 else phrase) + letters[::-1])
    return folder


def test_a_tokenizer_of_one_s_own_and_quoting_documents_left_out(tmp_path):
    corpus, folder = (
        a_corpus(tmp_path / "corpus", "to be or not to be that is the question"),
        a_tokenizer(tmp_path / "own"),
    )
    held_out, messages = dict.fromkeys(PARTS[1:], 5_000), []
    text = natural_text(held_out, 300, corpus, folder, progress=lambda *x: messages.append(x[2]))
    by_file = natural_text(held_out, 300, corpus, folder / "tokenizer.json", progress=lambda *x: None)
    assert text.hash == by_file.hash
    assert any("documents left out: they share text with another part" in line for line in messages)
    assert all((part.tokens == 256).sum() == len(part.starts) for part in text.parts.values())
    assert text.parts["test"].bytes_per_token == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="257 tokens; the model has 256"):
        natural_text(held_out, 256, corpus, folder)
    with pytest.raises(FileNotFoundError, match=r"no such file; give a tokenizer.json or its folder"):
        natural_text(held_out, 300, corpus, tmp_path)
    with pytest.raises(ValueError, match=r"has none of <fin>, .* to end a document with"):
        natural_text(held_out, 300, corpus, a_tokenizer(folder, end="<stop>"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer .*tokenizer.json: "):
        natural_text(held_out, 300, corpus, folder)


def test_every_arm_sees_the_same_windows_and_none_twice_in_an_epoch():
    part = Part(np.arange(1000), np.zeros(1))
    batches, again = (Batches(part, 16, 4, seed=7) for _ in range(2))
    assert batches.windows == 62 and batches.per_epoch == 15
    for step in (0, 14, 15, 40):
        assert all(torch.equal(a, b) for a, b in zip(batches(step), again(step), strict=True))
    x, y = (torch.cat(z) for z in zip(*(batches(step) for step in range(15)), strict=True))
    assert torch.equal(x + 1, y) and len(x.unique()) == x.numel()
    assert not torch.equal(batches(0)[0], batches(15)[0])
    assert not torch.equal(batches(0)[0], Batches(part, 16, 4, seed=8)(0)[0])
    with pytest.raises(ValueError, match="1000 tokens: 62 windows of 16, fewer than a batch of 63"):
        Batches(part, 16, 63, seed=0)
