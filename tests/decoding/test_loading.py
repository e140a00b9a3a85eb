"""Weights from a folder, from random, from training; what a record says of them; caches that are mended."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from mlexp.decoding.initial import build
from mlexp.decoding.loading import load, load_checkpoint
from mlexp.decoding.models import MODELS, Model
from mlexp.decoding.recipes import GAINS, Nano, StandIn, known_gain, standin_hash
from mlexp.decoding.standin import _branch_rate, _decoded_logits, apply_gain, calibrate
from mlexp.decoding.text import bpe_tokenizer, load_corpus
from mlexp.decoding.weights import checkpoint_identity, find_weights, identity

from .models import tiny_config, tiny_of

TINY = Model(2, 32, 2, vocab=400, positions=64, hub=("someone/tiny", "tiny-hub"))
QUICK = Nano(steps=6, batch=2, window=32, warmup=2, evaluate_every=3)


@pytest.fixture(autouse=True)
def tiny_world(tmp_path, monkeypatch):
    """Two tiny rows in the table, an empty cache of ours and none of Hugging Face's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mlexp.decoding.weights._cached", lambda repo, file: None)
    monkeypatch.setitem(MODELS, "tiny", TINY)
    monkeypatch.setitem(MODELS, "tiny_nano", dataclasses.replace(TINY, hub=()))


def said(lm):
    return {key: getattr(lm, key) for key in ("weights", "weights_hash", "corpus", "corpus_hash")}


def saved(folder, row=TINY, safe=True, tokenizer=True):
    model = build(row, 1, 0.02)
    model.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if tokenizer:
        bpe_tokenizer(load_corpus(), 300).save_pretrained(folder)
    return model


def test_random_weights_are_seeded_calibrated_and_announced(capsys):
    state = torch.random.get_rng_state()
    lm = load("tiny", "random")
    out = capsys.readouterr().out
    assert "random stand-in" in out and "calibrating" in out
    assert torch.equal(state, torch.random.get_rng_state())
    again = load("tiny", "random")
    assert "calibrating" not in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), again.model.parameters(), strict=True))
    assert lm.weights == "random" and lm.gain == again.gain > 0 and lm.n_params == TINY.n_params
    assert said(lm) == identity("tiny", "random")
    assert identity("tiny") == identity("tiny", "random")  # auto, with nothing in the cache
    assert not lm.model.training and lm.model.dtype == torch.float32
    assert load("tiny", "random", dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_the_gain_scales_all_logits_and_gives_the_branch_rate_asked_for():
    model, recipe = build(TINY, 20, 0.02), StandIn(prompts=8, rows=12, passes=4)
    found = calibrate(model, recipe)
    rate = _branch_rate(_decoded_logits(model, found["gain"], recipe), found["gain"], recipe)
    assert rate == pytest.approx(recipe.branch_rate, abs=0.06)
    ids = torch.arange(9)[None]
    before = model(ids).logits
    apply_gain(model, 3.0)
    torch.testing.assert_close(model(ids).logits, before * 3, rtol=1e-4, atol=1e-5)


def test_the_initialisation_is_gpt2s():
    model = build(Model(3, 96, 3, vocab=5000, positions=64), 20, 0.02)
    weights = dict(model.named_parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    for name, p in weights.items():
        std = (
            0.0
            if name.endswith("bias") or ".ln_" in name
            else 0.02 / 6**0.5
            if name.endswith("c_proj.weight")
            else 0.02
        )
        assert p.std(unbiased=False).item() == pytest.approx(std, rel=0.06, abs=1e-9)
        assert p.mean().item() == pytest.approx(1.0 if name.endswith("weight") and ".ln_" in name else 0.0, abs=1.5e-3)
    assert len(torch.unique(weights["transformer.wte.weight"], dim=0)) == 5000
    other = build(Model(3, 96, 3, vocab=5000, positions=64), 21, 0.02)
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_shipped_gains_belong_to_the_recipe_that_ships():
    assert set(GAINS) <= set(MODELS)
    for name, (key, gain) in GAINS.items():
        assert key == standin_hash(MODELS[name], StandIn()), f"calibrate {name} again: recipe or row has changed"
        assert known_gain(name, MODELS[name], StandIn()) == gain
        assert known_gain(name, MODELS[name], StandIn(seed=21)) is None


@pytest.mark.slow
def test_the_shipped_gain_of_the_smallest_is_what_calibration_gives():
    model = build(MODELS["gpt2_small"], StandIn().seed, StandIn().std)
    assert calibrate(model, StandIn())["gain"] == pytest.approx(GAINS["gpt2_small"][1], rel=0.02)


@pytest.mark.parametrize("inside", ["", "tiny", "someone/tiny", "tiny-hub"])
@pytest.mark.parametrize("safe", [True, False])
def test_weights_from_a_folder_or_its_subfolder(tmp_path, inside, safe):
    (tmp_path / "w" / inside).mkdir(parents=True)
    model = saved(tmp_path / "w" / inside, safe=safe)
    lm = load("tiny", str(tmp_path / "w"))
    assert torch.equal(lm.model.lm_head.weight, model.lm_head.weight)
    assert lm.weights == "pretrained" and lm.gain is None and lm.tokenizer.encode("for x in y")
    assert said(lm) == identity("tiny", tmp_path / "w")
    assert lm.corpus is None


def test_a_changed_weight_changes_the_identity(tmp_path):
    saved(tmp_path)
    before = identity("tiny", tmp_path)["weights_hash"]
    assert identity("tiny", tmp_path)["weights_hash"] == before
    state = load_file(tmp_path / "model.safetensors")
    state["transformer.wpe.weight"][3, 5] += 1
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert identity("tiny", tmp_path)["weights_hash"] != before


def test_a_folder_without_the_weights_is_refused_naming_what_was_sought(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; allowed: auto, random"):
        load("tiny", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"looked for config\.json with model\.safetensors or .*someone/tiny"):
        find_weights("tiny", tmp_path)
    with pytest.raises(ValueError, match="unknown model 'gpt5'; choose from gpt2_nano"):
        load("gpt5")


def rewritten(folder, change):
    """The weights of a folder, changed in place."""
    state = load_file(folder / "model.safetensors")
    save_file(change(state), folder / "model.safetensors", {"format": "pt"})


def prefixed(state):
    return {"module." + key: value for key, value in state.items()}


def config_of(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def refused(folder, *words, error=ValueError, load=lambda folder: load("tiny", folder)):
    """The message with which a folder is refused: one line, with these words, and no cause shown below it."""
    with pytest.raises(error) as raised:
        load(folder)
    text = str(raised.value)
    assert "\n" not in text and (raised.value.__context__ is None or raised.value.__suppress_context__)
    assert str(folder) in text and all(word in text for word in words), text


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("n_layer", 1, 2),
        ("n_embd", 64, 32),
        ("n_head", 4, 2),
        ("vocab_size", 401, 400),
        ("n_positions", 65, 64),
        ("n_ctx", 65, 64),
        ("n_inner", 100, 128),
        ("model_type", "gpt_neo", "gpt2"),
        ("n_layer", None, 2),
        ("n_layer", "2", 2),
    ],
)
def test_a_config_of_another_model_is_refused_naming_both(tmp_path, field, value, expected):
    saved(tmp_path)
    config_of(tmp_path, **{field: value})
    refused(tmp_path, f"config.json has {field}={value!r}, but tiny has {field}={expected!r}")
    refused(tmp_path, f"{field}={value!r}", load=lambda folder: identity("tiny", folder))


def test_a_config_may_leave_out_what_gpt2_has_by_default(tmp_path):
    saved(tmp_path)
    config_of(tmp_path, n_ctx=64, n_inner=128)
    assert load("tiny", tmp_path).weights == "pretrained"
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "gpt2"}))
    refused(
        tmp_path, "vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12", "but tiny has vocab_size=400"
    )
    assert find_weights("gpt2_small", tmp_path).kind == "pretrained"


def test_weights_that_are_not_the_model_s_are_refused(tmp_path):
    saved(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    lacking = "transformer.h.1.mlp.c_fc.bias"
    for change, *words in (
        (prefixed, "29 missing (lm_head.weight, ", "unexpected (module.transformer.h.0.", "GPT2LMHeadModel"),
        (lambda state: {key: x for key, x in state.items() if key != lacking}, f"1 missing ({lacking})"),
        (lambda state: state | {"score.weight": torch.zeros(2)}, "1 unexpected (score.weight)"),
        (lambda state: state | {"transformer.wpe.weight": torch.zeros(9, 32)}, "1 of another size", "(9, 32) for (64,"),
    ):
        (tmp_path / "model.safetensors").write_bytes(whole)
        rewritten(tmp_path, change)
        refused(tmp_path, *words)
    (tmp_path / "model.safetensors").write_bytes(whole)
    config_of(tmp_path, tie_word_embeddings=False)  # then the head is a weight that the file lacks
    refused(tmp_path, "1 missing (lm_head.weight)")


def test_what_transformers_ties_or_no_longer_has_may_differ(tmp_path):
    model = saved(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    buffers = {"attn.bias": torch.ones(1, 1, 64, 64).tril(), "attn.masked_bias": torch.tensor(-1e4)}
    old = {f"h.{i}.{name}": value.clone() for i in range(2) for name, value in buffers.items()}

    def as_in_2019(state):  # no prefix, masks beside the weights
        return {key.removeprefix("transformer."): value for key, value in state.items()} | old

    rewritten(tmp_path, as_in_2019)
    lm = load("tiny", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), model.parameters(), strict=True))
    assert lm.weights == "pretrained" and lm.n_params == TINY.n_params


def test_a_tokenizer_has_to_fit_the_embedding_which_may_be_larger(tmp_path):
    row = dataclasses.replace(TINY, vocab=299)
    saved(tmp_path, row)
    refused(tmp_path, "the tokenizer has ids up to 299, but the embedding has 299 rows", load=load_checkpoint)
    saved(tmp_path / "padded")  # 400 rows for 300 entries
    assert len(load("tiny", tmp_path / "padded").tokenizer) == 300


def test_the_cached_tokenizer_of_a_stand_in_is_checked_too(tmp_path, monkeypatch):
    bpe_tokenizer(load_corpus(), 500).save_pretrained(tmp_path)
    monkeypatch.setattr("mlexp.decoding.weights._cached", lambda repo, file: found(tmp_path / file))
    refused(tmp_path, "ids up to 499, but the embedding has 400 rows", load=lambda folder: load("tiny", "random"))
    bpe_tokenizer(load_corpus(), 300).save_pretrained(tmp_path)
    assert len(load("tiny", "random").tokenizer) == 300
    (tmp_path / "tokenizer.json").rename(tmp_path / "vocab.json")  # without merges it would be an empty one
    assert load("tiny", "random").corpus == "pydoc_topics"


def found(file):
    return file if file.is_file() else None


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n"


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_git_lfs_pointer_is_named_as_such(tmp_path, file):
    saved(tmp_path)
    (tmp_path / file).write_text(POINTER)
    refused(tmp_path, f"{file}: a Git LFS pointer", "git lfs pull")
    refused(tmp_path, f"{file}: a Git LFS pointer", load=checkpoint_identity)


def test_a_pointer_in_place_of_what_is_not_read_is_fine(tmp_path):
    saved(tmp_path)
    for file in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"):
        (tmp_path / file).write_text(POINTER)
    assert load("tiny", tmp_path).weights == "pretrained"


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_safetensors_that_are_cut_off_are_refused_before_they_are_read(tmp_path, cut):
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    refused(
        tmp_path, f"{file}: ", *(["cut off"] if cut else ["empty"]), load=lambda folder: find_weights("tiny", folder)
    )


@pytest.mark.parametrize("content", [b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"\x08" + bytes(7) + b'{"a": 1}'])
def test_garbage_is_not_safetensors(tmp_path, content):
    saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path, "model.safetensors: not safetensors")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("damage", ["none", "cut off", "garbage", "pointer", "a list"])
def test_torch_s_own_weights_are_whole_or_refused(tmp_path, legacy, damage):
    model = saved(tmp_path, safe=False)
    file = tmp_path / "pytorch_model.bin"
    state = [1, 2] if damage == "a list" else model.state_dict()
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    content = {
        "cut off": file.read_bytes()[: file.stat().st_size // 2],
        "garbage": b"\xff" * 99,
        "pointer": POINTER.encode(),
    }
    file.write_bytes(content.get(damage, file.read_bytes()))
    if damage == "none":
        assert torch.equal(load("tiny", tmp_path).model.lm_head.weight, model.lm_head.weight)
    else:
        refused(
            tmp_path, "pytorch_model.bin: ", "Git LFS" if damage == "pointer" else "not a file of weights, or cut off"
        )


def test_a_sharded_checkpoint_has_all_its_shards_or_is_refused(tmp_path):
    model = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("model-*"))
    assert len(shards) > 2
    lm = load("tiny", tmp_path)
    assert torch.equal(lm.model.lm_head.weight, model.lm_head.weight) and said(lm) == identity("tiny", tmp_path)
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-1])
    refused(tmp_path, f"{shards[1].name}: cut off or damaged")
    shards[1].unlink()
    refused(tmp_path, "model.safetensors.index.json: names", shards[1].name, f"(1 of {len(shards)} files)")
    shards[1].write_bytes(content)
    assert load("tiny", tmp_path).weights_hash == lm.weights_hash
    index = tmp_path / "model.safetensors.index.json"
    for text, word in (
        ("[]", "not a JSON object"),
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": "../b"}}', "'../b'"),
    ):
        index.write_text(text)
        refused(tmp_path, f"index.json: {word}" if "b" not in word else word)


def test_the_weights_that_are_hashed_are_those_that_are_read(tmp_path):
    saved(tmp_path)
    before = identity("tiny", tmp_path)["weights_hash"]
    for other in ("model.fp16.safetensors", "adapter.safetensors", "pytorch_model.bin"):
        (tmp_path / other).write_bytes(b"not read")
    assert identity("tiny", tmp_path)["weights_hash"] == before and load("tiny", tmp_path).weights_hash == before
    config_of(tmp_path, transformers_weights="adapter.safetensors")
    refused(tmp_path, "transformers_weights='adapter.safetensors'; expected model.safetensors or ")


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        ("config.json", "no config.json; expected config.json, weights and a tokenizer"),
        ("model.safetensors", "no weights; expected model.safetensors or model.safetensors.index.json"),
        ("tokenizer.json", "no tokenizer; expected tokenizer.json or vocab.json with merges.txt or "),
    ],
)
def test_a_checkpoint_is_config_weights_and_tokenizer(tmp_path, lacking, words):
    saved(tmp_path)
    assert checkpoint_identity(tmp_path)["weights"] == "pretrained"
    (tmp_path / lacking).unlink()
    for read in (checkpoint_identity, load_checkpoint):
        refused(tmp_path, words, load=read)
    refused(tmp_path / "none", "no such folder", error=FileNotFoundError, load=checkpoint_identity)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.json", '{"model_type": "gpt2", "n_layer": "many"}', "transformers cannot load this model"),
        ("config.json", '{"model_type": "gpt9"}', "transformers cannot load this model"),
        ("config.json", '{"model_type": "bert"}', "missing"),  # it has a causal form, but other weights
        ("config.json", '{"auto_map": {"AutoModelForCausalLM": "evil.Model"}}', "transformers cannot load this model"),
        ("tokenizer.json", "garbage", "transformers cannot load this tokenizer"),
        ("tokenizer.json", "{}", "transformers cannot load this tokenizer"),
        ("tokenizer_config.json", "garbage", "transformers cannot load this tokenizer"),
    ],
)
def test_what_transformers_cannot_load_is_one_line(tmp_path, file, text, words):
    saved(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    (tmp_path / file).write_text(text)
    refused(tmp_path, words, load=load_checkpoint)


def test_memory_that_runs_out_is_told_as_such(tmp_path, monkeypatch):
    saved(tmp_path)

    def none_left(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("mlexp.decoding.loading._from_pretrained", none_left)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load("tiny", tmp_path)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "qwen3"])
def test_any_causal_lm_is_loaded_from_a_folder(tmp_path, kind):
    model = tiny_of(tiny_config(kind, vocab_size=320, **{"num_local_experts": 4} if kind == "mixtral" else {})).model
    folder = tmp_path / "My-Model"
    model.save_pretrained(folder)
    bpe_tokenizer(load_corpus(), 300).save_pretrained(folder)
    lm, ids = load_checkpoint(folder), torch.arange(9)[None]
    torch.testing.assert_close(lm.model(ids).logits, model(ids).logits)
    assert (lm.name, load_checkpoint(folder, "mine").name) == ("My-Model", "mine")
    assert lm.n_params == sum(p.numel() for p in model.parameters()) and not lm.model.training
    assert said(lm) == checkpoint_identity(folder) and lm.weights == "pretrained" and lm.gain is None
    assert lm.model.config._attn_implementation == "sdpa" and lm.tokenizer.encode("for x in y")
    assert load_checkpoint(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    rewritten(folder, prefixed)
    refused(folder, " missing (", " unexpected (module.", load=load_checkpoint)


def test_an_architecture_without_sdpa_is_loaded_with_eager_attention(tmp_path):
    from transformers import BloomConfig

    model = tiny_of(BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4), "eager").model
    model.save_pretrained(tmp_path)
    bpe_tokenizer(load_corpus(), 300).save_pretrained(tmp_path)
    lines, ids = [], torch.arange(9)[None]
    lm = load_checkpoint(tmp_path, progress=lambda *line: lines.append(line[2]))
    torch.testing.assert_close(lm.model(ids).logits, model(ids).logits)
    assert lm.model.config._attn_implementation == "eager" and "no sdpa attention" in lines[-1]


def test_a_model_is_trained_at_first_use_kept_and_mended(tmp_path, capsys):
    lines = []
    state = torch.random.get_rng_state()
    lm = load("tiny_nano", nano=QUICK, progress=lambda *line: lines.append(line))
    assert torch.equal(state, torch.random.get_rng_state())
    assert lm.weights == "trained" and lm.corpus == "pydoc_topics" and lm.gain is None
    assert said(lm) == identity("tiny_nano", nano=QUICK)
    assert said(lm) != identity("tiny_nano", nano=dataclasses.replace(QUICK, steps=7))
    text = " | ".join(line[2] for line in lines)
    assert "training" in text and "held-out loss" in text and (6, 6) in [line[:2] for line in lines]
    again = load("tiny_nano", nano=QUICK)
    assert "training" not in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), again.model.parameters(), strict=True))
    (file,) = (tmp_path / "cache/mlexp/nano").iterdir()
    state = load_file(file)
    others = {
        "garbage": b"garbage",
        "one missing": save({name: x for name, x in state.items() if "wpe" not in name}),
        "one more": save(state | {"score.weight": torch.zeros(2)}),
        "another prefix": save(prefixed(state)),
        "another size": save(state | {"transformer.wpe.weight": torch.zeros(9, 32)}),
        "another precision": save(state | {"transformer.wpe.weight": state["transformer.wpe.weight"].half()}),
    }
    for content in others.values():
        file.write_bytes(content)
        mended = load("tiny_nano", nano=QUICK)
        assert "is damaged" in capsys.readouterr().out
        assert torch.equal(mended.model.lm_head.weight, lm.model.lm_head.weight)  # training repeats bit for bit


def test_a_corpus_of_ones_own_is_part_of_the_identity(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("\n\n".join(f"Line {i} of a text about the number {i * 7}." for i in range(900)))
    own = identity("tiny_nano", corpus=path, nano=QUICK)
    assert own["corpus"] == "own.txt" and own["weights_hash"] != identity("tiny_nano", nano=QUICK)["weights_hash"]
    assert said(load("tiny_nano", corpus=path, nano=QUICK)) == own


def test_the_light_side_imports_nothing_heavy(tmp_path):
    saved(tmp_path)
    code = (
        "import sys, mlexp.decoding as d; d.identity('gpt2_nano', 'random'); d.checkpoint_identity(sys.argv[1]);"
        "d.cost; d.MODELS; d.Sampling(); d.prompt_ids;"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_in_all_is_there():
    import mlexp.decoding as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    assert callable(package.load) and callable(package.identity)
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018
