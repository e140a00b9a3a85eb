"""The model that is trained here and the stand-ins: which text reaches training and selection, the recipe, the keys."""

import dataclasses
import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file

from mlexp.decoding import nano, standin, text, weights
from mlexp.decoding.initial import build
from mlexp.decoding.kernels import reference
from mlexp.decoding.models import MODELS, Model
from mlexp.decoding.recipes import NANO, Nano, StandIn, nano_hash, standin_hash
from mlexp.decoding.text import Corpus, bpe_tokenizer, load_corpus
from mlexp.text import ngrams
from mlexp.training import Recipe

ROW = Model(2, 32, 2, vocab=128, positions=64)
RECIPE = Nano(steps=9, batch=3, window=16, lr=0.01, warmup=2, weight_decay=0.3, evaluate_every=4)
TRAIN = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 400)))  # small letters
HELD_OUT = "".join(chr(65 + i * 7 % 19) for i in range(90))  # capitals: five windows of 16, and a part of one
CORPUS = Corpus("words", "c0de", TRAIN, HELD_OUT)


class Characters:
    """A tokenizer of one token a character, in the shape of transformers'."""

    @property
    def backend_tokenizer(self):
        return self

    def encode(self, string, add_special_tokens):
        assert not add_special_tokens
        return SimpleNamespace(ids=[ord(character) for character in string])


@pytest.fixture
def training(monkeypatch):
    """What `fit` was given by the training of the small model, and what that returned and said."""
    seen = SimpleNamespace(lines=[])

    def fit(model, loss, batch, recipe, **more):
        seen.model, seen.loss, seen.batch, seen.recipe, seen.more = model, loss, batch, recipe, more
        seen.in_training = model.training
        return SimpleNamespace(held_out={0: 5.0, 4: 3.25, 8: 4.0}, best_step=4)

    monkeypatch.setattr(nano, "fit", fit)
    monkeypatch.setattr(nano, "bpe_tokenizer", lambda *given: seen.__setattr__("tokenizer", given) or Characters())
    seen.content = nano._train(ROW, RECIPE, CORPUS, lambda *line: seen.lines.append(line[2]))
    return seen


def plain_loss(model, ids):
    """transformers' own mean loss of a text."""
    with torch.no_grad():
        return model(ids[None], labels=ids[None]).loss.item()


def test_only_the_training_part_reaches_training(training):
    assert training.tokenizer[:2] == (CORPUS, 128)
    starts = []
    for step in range(RECIPE.steps):
        (ids,) = training.batch(step)
        assert ids.shape == (3, 17)
        starts += [TRAIN.find("".join(map(chr, row))) for row in ids.tolist()]
    assert min(starts) >= 0 and len(set(starts)) > 0.8 * len(starts)
    assert max(starts) > 200 > 100 > min(starts)
    assert [training.batch(2)[0].tolist() == training.batch(step)[0].tolist() for step in (2, 3)] == [True, False]


def test_selection_is_by_the_held_out_part_in_windows(training):
    ids, model = torch.tensor([ord(character) for character in HELD_OUT]), training.model
    want = np.mean([plain_loss(model, ids[16 * i : 16 * i + 17]) for i in range(5)])
    model.train()
    assert training.more["evaluate"]() == pytest.approx(want, rel=1e-5)
    assert model.training  # and goes on with training
    many = np.resize(ids.numpy(), 16 * 11 + 1)
    each = [plain_loss(model, torch.from_numpy(many[16 * i : 16 * i + 17])) for i in range(11)]
    assert nano.held_out_loss(model, many, 16, rows=4) == pytest.approx(np.mean(each), rel=1e-5)
    assert nano.held_out_loss(model, many[:6], 16) == pytest.approx(plain_loss(model, torch.from_numpy(many[:6])))


def test_held_out_losses_are_measured_in_eval_mode(monkeypatch):
    model, modes = build(ROW, 0, 0.02).train(), []
    monkeypatch.setattr(nano, "next_token_loss", lambda model, ids: modes.append(model.training) or torch.tensor(1.0))
    nano.held_out_loss(model, np.arange(40), 16)
    assert modes == [False] and model.training


def test_the_loss_is_transformers_own(training):
    (ids,) = training.batch(0)
    want = np.mean([plain_loss(training.model, row) for row in ids])
    assert training.loss(training.model, ids).item() == pytest.approx(want, rel=1e-5)


def test_the_recipe_reaches_the_training_loop_and_the_best_loss_the_file(training):
    assert training.recipe == Recipe(RECIPE.steps, RECIPE.lr, RECIPE.warmup, RECIPE.weight_decay)
    assert training.more["evaluate_every"] == RECIPE.evaluate_every
    assert set(training.more) == {"evaluate_every", "evaluate", "progress"} and training.in_training
    state = load(training.content)
    assert all(torch.equal(state[name], p) for name, p in training.model.named_parameters())
    assert "held-out loss 3.250 nats" in training.lines[-1]
    train, held_out = (np.array([ord(character) for character in part]) for part in (TRAIN, HELD_OUT))
    assert f"bigram {ngrams.loss(train, held_out, 128, 2):.3f}" in training.lines[-1]


def test_the_file_tells_the_best_held_out_loss(training, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(training.content)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["held_out_nats"]) == 3.25


def test_the_recipe_of_the_study():
    assert dataclasses.replace(NANO, sources=()) == Nano(7, 300, 8, 256, 2e-3, 40, 0.1, 100, ())
    training = {f"../training/{module}.py" for module in ("loop", "optimizer", "microbatch")}
    assert set(NANO.sources) == {*training, "nano.py", "initial.py", "text.py", "../text/tokenizer.py"}


def test_the_models_have_heads_of_64_and_no_dropout():
    for name, row in MODELS.items():
        if row.family != "gpt2":
            continue
        assert row.width == 64 * row.heads and row.positions == (512 if name == "gpt2_nano" else 1024)
        config = row.config()
        assert [config[f"{part}_pdrop"] for part in ("resid", "embd", "attn")] == [0, 0, 0]
        assert config["eos_token_id"] is config["bos_token_id"] is None


# The text and its tokenizer.


def text_file(folder, paragraphs, start=0):
    path = folder / "words.txt"
    path.write_text("\n\n".join(f"Paragraph {i} says that {i * i} is the square of {i}." for i in range(start, paragraphs)))  # fmt: skip  # noqa: E501
    return load_corpus(path)


def test_a_paragraph_s_side_is_its_own_whatever_stands_around_it(tmp_path):
    one, two = text_file(tmp_path, 700), text_file(tmp_path, 703, start=7)
    sides = [[set(part.split("\n\n")) for part in (c.train, c.held_out)] for c in (one, two)]
    assert not sides[0][0] & sides[0][1] and not sides[0][0] & sides[1][1] and not sides[1][0] & sides[0][1]
    assert len(sides[0][0]) + len(sides[0][1]) == 700 and 40 < len(sides[0][1]) < 110
    assert one.hash != two.hash


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_a_corpus_is_known_by_both_parts(tmp_path, part):
    corpus = text_file(tmp_path, 700)
    path = tmp_path / "words.txt"
    changed = getattr(corpus, part).split("\n\n")[3]
    path.write_text(path.read_text().replace(changed + "\n", "\n"))
    other = load_corpus(path)
    same = "held_out" if part == "train" else "train"
    assert getattr(other, same) == getattr(corpus, same) and getattr(other, part) != getattr(corpus, part)
    assert other.hash != corpus.hash


def test_the_tokenizer_sees_the_training_part_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    corpus = Corpus("words", "c0de", "banana " * 50, "zebra " * 500)
    tokenizer = bpe_tokenizer(corpus, 270)
    assert len(tokenizer.encode("banana")) == 1 and len(tokenizer.encode("zebra")) == 5
    assert len(tokenizer) <= 270
    other = dataclasses.replace(corpus, hash="beef", train="zebra " * 50)
    assert len(bpe_tokenizer(other, 270).encode("zebra")) == 1  # of another corpus
    assert len(bpe_tokenizer(corpus, 258).encode("banana")) > 1  # of another size


# Keys: what the weights of a record are made from.


def changes(recipe):
    """The recipe with one field another, field by field."""
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        yield dataclasses.replace(recipe, **{field.name: (*value, "rng.py") if isinstance(value, tuple) else value + 1})


def rows():
    return [ROW, *(dataclasses.replace(ROW, **{name: getattr(ROW, name) + 1}) for name in ("layers", "width", "heads", "vocab", "positions"))]  # fmt: skip  # noqa: E501


def test_a_key_covers_row_recipe_corpus_and_sources(tmp_path):
    found = {nano_hash(row, RECIPE, "c") for row in rows()} | {nano_hash(ROW, r, "c") for r in changes(RECIPE)}
    found.add(nano_hash(ROW, RECIPE, "another"))
    source = tmp_path / "source.py"
    for content in ("one", "two"):
        source.write_text(content)
        found.add(nano_hash(ROW, dataclasses.replace(RECIPE, sources=(str(source),)), "c"))
    assert len(found) == 6 + len(dataclasses.fields(RECIPE)) + 1 + 2
    found = {standin_hash(row, StandIn()) for row in rows()} | {standin_hash(ROW, r) for r in changes(StandIn())}
    assert len(found) == 6 + len(dataclasses.fields(StandIn))


def test_a_corpus_of_ones_own_makes_the_tokenizer_too(tmp_path, monkeypatch):
    from mlexp.decoding import loading

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "_cached", lambda repo, file: None)
    monkeypatch.setitem(MODELS, "tiny", dataclasses.replace(ROW, vocab=300, hub=("someone/tiny",)))
    monkeypatch.setattr(loading, "standin", lambda name, row, *more: (build(row, 0, 0.02), 2.0))
    seen = []
    monkeypatch.setattr(loading, "bpe_tokenizer", lambda corpus, *more: seen.append(corpus) or "its tokenizer")
    corpus = text_file(tmp_path, 700)
    lm = loading.load("tiny", "random", corpus=tmp_path / "words.txt")
    assert (
        [each.hash for each in seen] == [corpus.hash] and lm.tokenizer == "its tokenizer" and lm.corpus == "words.txt"
    )


def test_files_of_one_name_size_and_time_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashes = []
    for name, content in (("one", b"11"), ("two", b"22")):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "model.bin"
        file.write_bytes(content)
        os.utime(file, ns=(10**18, 10**18))
        hashes += [weights._file_hash(file), weights._file_hash(file)]
    file.write_bytes(b"33")
    os.utime(file, ns=(10**18 + 1, 10**18 + 1))
    assert hashes[0] == hashes[1] and len({*hashes, weights._file_hash(file)}) == 3


@pytest.mark.parametrize("shard", [0, 1])
def test_every_shard_is_part_of_a_checkpoint_s_identity(tmp_path, monkeypatch, shard):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    names = ["model-1.safetensors", "model-2.safetensors"]
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for key, name in index["weight_map"].items():
        save_file({key: torch.zeros(2)}, tmp_path / name)
    before = weights.checkpoint_identity(tmp_path)["weights_hash"]
    save_file({"ab"[shard]: torch.ones(2)}, tmp_path / names[shard])
    assert weights.checkpoint_identity(tmp_path)["weights_hash"] != before


# The stand-in's gain.

FEW = StandIn(prompts=2, rows=3, prompt=7, steps=4, passes=3)


def test_the_logits_of_a_gain_are_those_along_its_own_samples(monkeypatch):
    model, gain, seen = build(ROW, 20, 0.02), 5.0, []

    def draw(x, *more):
        seen.append((x, reference.draw(x, *more)))
        return seen[-1][1]

    monkeypatch.setattr(standin, "draw", draw)
    got = standin._decoded_logits(model, gain, FEW).view(4, 6, 128)
    prompt = np.random.default_rng(FEW.seed).integers(0, 128, (2, 7))
    ids = torch.cat([torch.from_numpy(prompt).repeat_interleave(3, 0), *(drawn for _, drawn in seen)], 1)
    with torch.no_grad():
        want = model(ids, use_cache=False).logits[:, 6:-1].transpose(0, 1)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    for logits, (x, _) in zip(got, seen, strict=True):
        torch.testing.assert_close(x, logits * gain / FEW.temperature)


def plain_rate(logits, gain, recipe):
    log_p = (logits.double() * gain / recipe.temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return (entropy >= recipe.threshold * math.log(logits.shape[-1])).double().mean().item()


@pytest.mark.parametrize("recipe", [StandIn(), StandIn(threshold=0.7, branch_rate=0.5, temperature=1.5)])
def test_bisection_finds_the_gain_of_the_branch_rate(recipe):
    spread = torch.linspace(0.1, 2, 1000)[:, None]
    logits = torch.randn(1000, 300, generator=torch.Generator().manual_seed(1)) * spread
    gain = standin._bisect(logits, recipe)
    assert plain_rate(logits, gain, recipe) == pytest.approx(recipe.branch_rate, abs=0.0025)
    assert standin._branch_rate(logits, gain, recipe) == pytest.approx(plain_rate(logits, gain, recipe), abs=0.0025)


def test_each_pass_samples_at_the_gain_of_the_one_before(monkeypatch):
    model, gains = build(ROW, 20, 0.02), []
    logits = torch.randn(50, 128, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(standin, "_decoded_logits", lambda model, gain, recipe: gains.append(gain) or logits * gain)
    found = standin.calibrate(model, FEW)
    assert len(gains) == 3 and gains[0] == pytest.approx(3.4 / (0.02 * math.sqrt(32)))
    for before, after in zip(gains, [*gains[1:], found["gain"]], strict=True):
        assert after == standin._bisect(logits * before, FEW)
    assert found["branch_rate"] == pytest.approx(plain_rate(logits * gains[2], gains[2], FEW))


def test_a_gain_is_kept_for_its_recipe_and_precision(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    monkeypatch.setattr(standin, "calibrate", lambda *args: made.append(args) or {"gain": 2.0 + len(made)})
    ask = lambda recipe, dtype: standin.standin("tiny", ROW, recipe, dtype, "cpu", lambda *line: None)[1]  # noqa: E731
    assert [ask(FEW, torch.float32), ask(FEW, torch.float32), ask(FEW, torch.bfloat16)] == [3.0, 3.0, 4.0]
    assert ask(dataclasses.replace(FEW, passes=9), torch.float32) == 5.0


def test_a_weight_s_numbers_begin_where_its_name_says():
    parameters = dict(build(ROW, 20, 0.02).named_parameters())
    one, two = (parameters[f"transformer.h.{i}.attn.c_attn.weight"] for i in (0, 1))
    assert not torch.equal(one, two)
    assert text.HELD_OUT == 10
