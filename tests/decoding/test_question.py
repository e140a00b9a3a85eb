"""The decoding question in-process: what reaches each arm, and every recorded metric once more from its samples alone.

The referee knows prompts, settings and the tokens that came out; it works with plain forwards of whole texts, sets of
prefixes and a hook of its own on the model.
"""

import hashlib
import itertools
import json
import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mlexp.decoding import kernels
from mlexp.decoding.decoders import DECODE
from mlexp.decoding.effective import Estimate
from mlexp.decoding.quality import Effective
from mlexp.decoding.recipes import Nano
from mlexp.decoding.settings import DECODER_NAMES, TREE_DECODERS
from mlexp.flops import count_flops

from ..stand_ins import OneCell, load
from .models import TORCH_DECODERS, tiny
from .test_ends_and_filters import filtered
from .test_quality import plain_self_bleu

bench = load("decoding_speedup", "bench_decoding_speedup")
VOCAB, LENGTH, PEAK = 26, 40, 1000
ITEMS = [
    {"id": f"p{i:02d}", "passage": f"{word} " * 9, "question": f"What is {word}, of {i}?", "answer": answer}
    for i, (word, answer) in enumerate([("snow", "e"), ("rain", "B"), ("hail", "m"), ("fog", "t"), ("wind", "k")])
]
ASKED = {"prompt_tokens": LENGTH, "samples": 5, "max_new_tokens": 3, "max_paths": 40, "threshold": 0.6}
RULES = {"all tokens": {}, "filtered, with ends": {"top_k": 9, "top_p": 0.97, "stop_tokens": (4, 7)}}


class Letters:
    """A tokenizer of one token a character."""

    def encode(self, text, add_special_tokens=False):
        return [ord(character) % VOCAB for character in text]

    def decode(self, ids):
        return "".join(chr(97 + token) for token in ids)


class Cell(OneCell):
    """A cell that asks for these prompts; `rounds` is how often it was to be timed, `said` its progress."""

    def __init__(self, prompts, **settings):
        options = SimpleNamespace(weights=None, prompts=prompts, corpus=None, model={})
        super().__init__(bench, replace(bench.STUDY.settings["smoke"], **ASKED | settings), seed=11, options=options)
        self.rounds, self.said = None, []

    def time(self, run, rounds, count=True):
        self.values["peak_bytes"], self.rounds = PEAK, rounds
        return run()

    def series(self, **arrays):
        self.arrays |= arrays  # as they were given

    def progress(self, *args, **more):
        self.said.append((args, more))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, ITEMS)))
    return path


@pytest.fixture
def lm(monkeypatch):
    """A model of the study that is loaded in no time, `weights` as if pretrained."""
    model = tiny(vocab=VOCAB, dtype=torch.float32, sharpness=8.0).model
    made = SimpleNamespace(model=model, tokenizer=Letters(), name="gpt2_small", n_params=1234, weights="pretrained", gain=None)  # fmt: skip  # noqa: E501
    monkeypatch.setattr(bench, "LOADED", {})
    monkeypatch.setattr("mlexp.decoding.loading.load", lambda *args, **more: made)
    return made


@pytest.fixture
def runs(monkeypatch):
    """What the arms were asked, what they gave, and what a hook on the model counted meanwhile."""
    seen = []

    def watched(name, decode):
        def run(lm, ids, *asked):
            decode(lm, ids, *asked)  # the engine compares a model with itself at its first use
            counts = SimpleNamespace(model_forwards=0, token_forwards=0, logit_rows=0)

            def hook(_, args, kwargs, out):
                counts.model_forwards += 1
                counts.token_forwards += (args[0] if args else kwargs["input_ids"]).numel()
                counts.logit_rows += out.logits[..., 0].numel()

            handle = lm.model.register_forward_hook(hook, with_kwargs=True)
            out, flops = count_flops(lambda: decode(lm, ids, *asked))
            handle.remove()
            seen.append(SimpleNamespace(name=name, ids=ids, asked=asked, out=out, counts=counts, flops=flops))
            return out

        return run

    for name, decode in list(DECODE.items()):
        monkeypatch.setitem(DECODE, name, watched(name, decode))
    return seen


def prompt_ids(i):
    item = ITEMS[i]
    return Letters().encode(f"{item['passage']}\n\nQuestion: {item['question']}\nAnswer:")[-LENGTH:]


def log_probs(lm, prompt, text, s):
    """Of every next token behind a prompt and each token of a text, under the sampled distribution: (len + 1, V)."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([prompt + text]), use_cache=False).logits[0, len(prompt) - 1 :].double()
    return filtered(logits / s.temperature, s.top_k, s.top_p).log_softmax(-1)


def entropy(log_p):
    return -float((log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0)).sum())


def texts_of(out, s):
    """The texts of each prompt as lists, cut behind their stop token."""
    found = defaultdict(list)
    for prompt, row in zip(out.prompt.tolist(), out.tokens.tolist(), strict=True):
        ends = [at + 1 for at, token in enumerate(row) if token in s.stop_tokens]
        found[prompt].append(row[: ends[0]] if ends else row)
    return [found[i] for i in sorted(found)]


def going_on(texts, s):
    """The distinct prefixes that a further token was drawn behind, by length."""
    prefixes = {tuple(row[:n]) for row in texts for n in range(len(row))}
    return [sorted(p for p in prefixes if len(p) == n) for n in range(s.max_new_tokens)]


def quality_of(lm, numbers, sets, s):
    """The metrics of the samples, a mean over prompts."""
    each = []
    for i, rows in zip(numbers, sets, strict=True):
        nats = [-sum(float(p[t]) for p, t in zip(log_probs(lm, prompt_ids(i), r, s), r, strict=False)) for r in rows]
        pairs = [pair for row in rows for pair in itertools.pairwise(row)]
        answer = ITEMS[i]["answer"].lower()
        each.append({
            "mean_length": sum(map(len, rows)) / len(rows),
            "mean_surprisal_nats": sum(nats) / len(nats),
            "unique_samples": len(set(map(tuple, rows))),
            "distinct_1": len({t for row in rows for t in row}) / sum(map(len, rows)),
            "distinct_2": len(set(pairs)) / len(pairs) if pairs else math.nan,
            "self_bleu": plain_self_bleu(rows) if len(rows) > 1 else math.nan,
            "accuracy": sum(answer in Letters().decode(row) for row in rows) / len(rows),
        })  # fmt: skip
    means = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
    return {name: None if math.isnan(value) else value for name, value in means.items()}


def tree_of(lm, numbers, sets, s):
    """The statistics of branching over all prompts."""
    at, high, paths = [], [], 0
    for i, rows in zip(numbers, sets, strict=True):
        for depth, prefixes in enumerate(going_on(rows, s)):
            for prefix in prefixes:
                high.append(entropy(log_probs(lm, prompt_ids(i), list(prefix), s)[-1]) >= s.threshold * math.log(VOCAB))
                children = {row[depth] for row in rows if tuple(row[:depth]) == prefix and len(row) > depth}
                at += [depth] * (len(children) > 1)
        paths += len(set(map(tuple, rows)))
    first, mean, last = (min(at), sum(at) / len(at), max(at)) if at else (None,) * 3
    return {
        "branch_count": len(at), "branch_rate": sum(high) / len(high), "branch_position_first": first,
        "branch_position_mean": mean, "branch_position_last": last, "final_paths": paths,
    }  # fmt: skip


def slots_of(decoder, sets, s):
    """Cache slots in use at the end."""
    B, new, n = len(sets), s.max_new_tokens, sum(map(len, sets))
    longest = max(len(row) for rows in sets for row in rows)
    if decoder in TREE_DECODERS:
        return B * LENGTH + sum(len(p) for rows in sets for p in going_on(rows, s)[1:])
    if decoder == "sequential":
        return LENGTH + longest - 1
    steps = (longest - 1) * n if decoder == "hf_batched" else sum(len(row) - 1 for rows in sets for row in rows)
    return n * LENGTH + (steps if s.stop_tokens else (new - 1) * n)


def check_record(cell, lm, run, numbers):
    """Every metric of a cell, from what came out."""
    s, out, decoder = cell.settings, run.out, run.name
    sets, got = texts_of(out, s), cell.values
    want = vars(run.counts) | quality_of(lm, numbers, sets, s)
    want |= {
        "n_params": 1234, "n_prompts": len(numbers), "n_samples": len(out.tokens), "logit_gain": lm.gain,
        "n_tokens": sum(len(row) for rows in sets for row in rows), "bytes_per_sample": PEAK / len(out.tokens),
        "flops_closed_form": 2 * 1234 * run.counts.token_forwards, "flops_arm_closed_form": run.flops,
        "kv_bytes": slots_of(decoder, sets, s) * 2 * 2 * 32 * 4, "kernel_backend": "reference",
    }  # fmt: skip
    if decoder in TREE_DECODERS:
        want |= tree_of(lm, numbers, sets, s)
    for name, value in want.items():
        assert got[name] == (value if value is None or isinstance(value, str) else pytest.approx(value, rel=1e-4)), name
    unasked = {"peak_bytes", *bench.WORTH, "worst_functional", "worst_effective_samples_error"}
    assert set(got) - unasked == set(want)
    prefixes = [going_on(rows, s) for rows in sets]
    paths = [sum(len(p[n]) for p in prefixes) for n in range(1, s.max_new_tokens)]
    alive = [sum(len(row) > n for rows in sets for row in rows) for n in range(1, s.max_new_tokens)]
    assert list(cell.arrays["live_paths"]) == (paths if decoder in TREE_DECODERS else alive)
    columns = {"parent", "token", "entropy", "logprob", "multiplicity"}
    assert set(cell.arrays) - {"live_paths"} == (columns if decoder in TREE_DECODERS else set())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decoder", TORCH_DECODERS)
def test_every_metric_of_a_cell_is_what_its_samples_say(decoder, rule, prompts, lm, runs, monkeypatch):
    monkeypatch.setattr(bench, "effective", lambda *args: {})
    cell = Cell(prompts, **RULES[rule])
    bench.test_decode(cell, "gpt2_small", "p03", decoder)
    (run,) = runs
    check_record(cell, lm, run, [3])
    assert (run.name, cell.rounds) == (decoder, 1)
    assert run.ids.tolist() == [prompt_ids(3)]
    assert run.asked[:2] == (cell.settings, 11) and isinstance(run.asked[2], dict)


@pytest.mark.parametrize("decoder", [name for name in TORCH_DECODERS if name != "sequential"])
def test_a_batch_is_the_prompts_behind_the_last_one_s(decoder, prompts, lm, runs, monkeypatch):
    monkeypatch.setattr(bench, "effective", lambda *args: {})
    cell = Cell(prompts, batch_prompts=2, **RULES["filtered, with ends"])
    bench.test_throughput(cell, "gpt2_small", "b01", decoder)
    (run,) = runs
    assert run.ids.tolist() == [prompt_ids(2), prompt_ids(3)]
    check_record(cell, lm, run, [2, 3])


def test_only_pretrained_weights_can_know_an_answer(prompts, lm, monkeypatch):
    monkeypatch.setattr(bench, "effective", lambda *args: {})
    lm.weights, lm.gain = "random", 4.5
    cell = Cell(prompts)
    bench.test_decode(cell, "gpt2_small", "p01", "dedup")
    assert cell.values["accuracy"] is None and cell.values["logit_gain"] == 4.5


def test_the_same_cell_gives_the_same_record_bit_for_bit(prompts, lm):
    for decoder in TORCH_DECODERS:
        cells = [Cell(prompts, replicate_models=("gpt2_small",)) for _ in range(2)]
        for cell in cells:
            bench.test_decode(cell, "gpt2_small", "p00", decoder)
        assert cells[0].values == cells[1].values
        assert decoder not in bench.CORRELATED or cells[0].values["worst_functional"] in ESTIMATES


def test_exact_arms_draw_the_same_samples(prompts, lm, runs, monkeypatch):
    monkeypatch.setattr(bench, "effective", lambda *args: {})
    for decoder in ("sequential", "shared_prefill", "dedup"):
        bench.test_decode(Cell(prompts), "gpt2_small", "p00", decoder)
    assert all(torch.equal(run.out.tokens, runs[0].out.tokens) for run in runs)


ESTIMATES = {name: Estimate(value, value / 8, np.ones(3)) for name, value in
             (("token_0", 2.5), ("token_1", 1.5), ("surprisal", 3.5))}  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """effective_samples as if it had found ESTIMATES; what it was asked."""
    seen = []

    def found(*args, **more):
        seen.append((args, more))
        return Effective(1.25, "token_1", ESTIMATES, 16)

    monkeypatch.setattr("mlexp.decoding.quality.effective_samples", found)
    return seen


@pytest.mark.parametrize("decoder", ["eab_paper", "eab_particles"])
def test_the_worth_of_correlated_samples_is_what_was_estimated(decoder, prompts, lm, asked):
    cell = Cell(prompts, replicates=17, replicate_models=("gpt2_small",))
    bench.test_decode(cell, "gpt2_small", "p01", decoder)
    ((model, prompt, settings, arm, replicates, seed), more) = asked[0]
    assert (model, settings, arm, replicates, seed) == (lm, cell.settings, decoder, 17, 11)
    assert prompt.tolist() == prompt_ids(1)
    assert more["hits"](np.array([[0, 1, 2], [2, 3, 4]])).tolist() == [True, False]  # its answer is B
    more["progress"](5)
    assert cell.said[-1] == ((5,), {"total": 34, "what": "replicates for worst_effective_samples"})
    names = (*bench.WORTH, "worst_functional", "worst_effective_samples_error")
    assert [cell.values[name] for name in names] == [1.25, 3.5, 2.5, "token_1", 1.5 / 8]
    found = {name: cell.arrays[f"effective_samples_{name}"] for name in ESTIMATES}
    assert found == {"token_0": [2.5, 2.5 / 8], "token_1": [1.5, 1.5 / 8], "surprisal": [3.5, 3.5 / 8]}


def test_independent_samples_are_worth_themselves_and_others_are_measured_where_asked(prompts, lm, asked):
    for decoder in set(TORCH_DECODERS) - {"eab_paper", "eab_particles"}:
        cell = Cell(prompts)
        bench.test_decode(cell, "gpt2_small", "p01", decoder)
        assert [cell.values[name] for name in bench.WORTH] == [5, 5, 5]
    cell = Cell(prompts, replicate_models=("gpt2_nano",))
    bench.test_decode(cell, "gpt2_small", "p01", "eab_paper")
    assert [cell.values[name] for name in bench.WORTH] == [None] * 3
    cell.options.model["mine"], lm.name = "folder", "mine"
    bench.effective(cell, lm, "eab_paper", torch.zeros(2, 3), ["a", "b"])
    assert not asked  # neither for another model nor for prompts decoded together
    bench.effective(cell, lm, "eab_paper", torch.zeros(1, 3), ["a"])
    lm.weights = "random"
    bench.effective(cell, lm, "eab_paper", torch.zeros(1, 3), ["a"])
    assert [more["hits"] is None for _, more in asked] == [False, True]


def test_on_a_gpu_a_cell_has_rounds_and_asks_for_its_own_kernels(prompts, lm, monkeypatch):
    monkeypatch.setattr(bench, "effective", lambda *args: {})
    chosen, real = [], kernels.choose

    def choose(kernel, device, *args, **more):
        if args:  # the engine's own, on this machine
            return real(kernel, device, *args, **more)
        chosen.append((kernel, device, more))
        return {"entropy_sample": "triton", "tree_attention": "reference"}[kernel]

    monkeypatch.setattr(kernels, "choose", choose)
    cell = Cell(prompts, rounds=2)
    bench.test_decode(cell, "gpt2_small", "p00", "shared_prefill")
    assert cell.rounds == 2
    cell.device = "cuda"
    bench.test_decode(cell, "gpt2_small", "p00", "shared_prefill")
    assert cell.rounds == 5
    cell.settings = replace(cell.settings, rounds=9)
    bench.test_decode(cell, "gpt2_small", "p00", "shared_prefill")
    assert cell.rounds == 9 and cell.values["kernel_backend"] == "triton+reference"
    assert chosen[-2:] == [
        ("entropy_sample", "cuda", {"dtype": torch.float32}),
        ("tree_attention", "cuda", {"dtype": torch.float32, "width": 8}),
    ]


def test_in_bfloat16_a_slot_has_half_the_bytes(prompts, lm, runs, monkeypatch):
    monkeypatch.setattr(bench, "effective", lambda *args: {})
    lm.model.to(torch.bfloat16)
    cell = Cell(prompts)
    cell.dtype = "bfloat16"
    bench.test_decode(cell, "gpt2_small", "p00", "shared_prefill")
    assert cell.values["kv_bytes"] == 5 * (LENGTH + 2) * 2 * 2 * 32 * 2


def test_a_statistic_of_too_few_samples_is_null():
    assert bench.mean([1.0, 2.0, 6.0]) == 3.0 and bench.mean([1.0, math.nan]) is None


# What is loaded, and what a cell's key is made of.

CHANGES = {
    "weights": lambda cell: setattr(cell.options, "weights", "random"),
    "corpus": lambda cell: setattr(cell.options, "corpus", "own.txt"),
    "device": lambda cell: setattr(cell, "device", "cuda"),
    "dtype": lambda cell: setattr(cell, "dtype", "bfloat16"),
    "nano": lambda cell: setattr(cell, "settings", replace(cell.settings, nano_steps=3)),
    "packed": lambda cell: setattr(cell, "settings", replace(cell.settings, packed=False)),
    "folder": lambda cell: cell.options.model.update(gpt2_nano="folder"),
}


@pytest.fixture
def loads(monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "LOADED", {})
    for name in ("load", "load_checkpoint"):
        loader = lambda *args, name=name, **more: seen.append((name, args, more)) or len(seen)  # noqa: E731
        monkeypatch.setattr(f"mlexp.decoding.loading.{name}", loader)
    return seen


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_in_memory_serves_the_cells_of_all_the_same_options_alone(change, loads):
    cell = Cell(None)
    assert bench.language_model(cell, "gpt2_nano") == bench.language_model(Cell(None), "gpt2_nano") == 1
    name, args, more = loads[0]
    assert (name, args[:5], more) == ("load", ("gpt2_nano", "auto", "cpu", torch.float32, None), {"packed": True})
    assert args[5] == cell.progress and args[6] == Nano(steps=20)
    CHANGES[change](cell)
    assert bench.language_model(cell, "gpt2_nano") == 2 and len(bench.LOADED) == 1
    name, args, more = loads[1]
    if change == "folder":
        assert (name, args, more) == (
            "load_checkpoint", ("folder", "gpt2_nano", "cpu", torch.float32),
            {"progress": cell.progress, "packed": True},
        )  # fmt: skip
    else:
        weights, corpus = cell.options.weights or "auto", cell.options.corpus
        where = cell.device, getattr(torch, cell.dtype)
        assert args[:5] == ("gpt2_nano", weights, *where, corpus)
        assert args[6].steps == cell.settings.nano_steps and more == {"packed": change != "packed"}
    assert bench.language_model(cell, "gpt2_small") == 3


def test_a_key_covers_weights_corpus_training_and_prompts(prompts, monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "identity", lambda *args: seen.append(args) or {"weights_hash": "made"})
    monkeypatch.setattr(bench, "checkpoint_identity", lambda folder: {"weights_hash": folder})
    settings = replace(bench.STUDY.settings["smoke"], nano_steps=7)
    options = SimpleNamespace(model={"mine": "folder"}, weights=None, corpus="own.txt", prompts=prompts)
    digest = hashlib.sha256(prompts.read_bytes()).hexdigest()[:16]
    got = bench.inputs({"model": "gpt2_nano"}, settings, options)
    assert got == {"weights_hash": "made", "prompts_hash": digest}
    assert seen == [("gpt2_nano", "auto", "own.txt", Nano(steps=7))]
    assert bench.inputs({"model": "mine"}, settings, options) == {"weights_hash": "folder", "prompts_hash": digest}
    options.prompts, options.weights = None, "random"
    shipped = hashlib.sha256(bench.PROMPTS.read_bytes()).hexdigest()[:16]
    assert bench.inputs({"model": "gpt2_small"}, settings, options)["prompts_hash"] == shipped != digest
    assert seen[-1][:2] == ("gpt2_small", "random")


# The grid.


def test_full_is_the_original_s_numbers():
    full = bench.STUDY.settings["full"]
    numbers = {"samples": 20, "max_new_tokens": 50, "temperature": 0.8, "threshold": 0.4, "branch_factor": 3,
               "max_paths": 20, "top_k": 0, "top_p": 1.0, "stop_tokens": (), "prompt_tokens": 200, "rounds": 3,
               "replicates": 128, "batch_prompts": 10}  # fmt: skip
    assert {name: getattr(full, name) for name in numbers} == numbers
    sizes = ("gpt2_small", "gpt2_medium", "gpt2_large", "gpt2_xl")
    assert full.models == full.replicate_models == full.batch_models == ("gpt2_nano", *sizes, "smollm2_135m")
    assert full.of("smollm2_135m") == full.of("gpt2_xl") == full
    assert full.prompts == tuple(f"p0{i}" for i in range(10)) and full.batches == ("b00", "b01", "b02")
    for settings in bench.STUDY.settings.values():
        assert settings.decoders == DECODER_NAMES and settings.models == full.models
        assert (settings.temperature, settings.threshold, settings.top_k) == (0.8, 0.4, 0)
        assert settings.replicates >= 16  # below, nothing is estimated


def test_below_full_the_real_model_has_the_original_s_lengths_and_numbers_of_its_own():
    quick, smoke = bench.STUDY.settings["quick"], bench.STUDY.settings["smoke"]
    own = quick.of("smollm2_135m")
    original = {"prompt_tokens": 200, "samples": 20, "max_new_tokens": 50, "temperature": 0.8, "threshold": 0.4}
    assert {name: getattr(own, name) for name in original} == original
    assert (own.max_paths, own.replicates, own.rounds, own.prompts) == (20, 16, 1, quick.prompts)
    assert quick.of("gpt2_small") is quick and smoke.of("smollm2_135m") is smoke
    fewer = replace(quick, whole_samples=7, whole_new_tokens=9, whole_prompt_tokens=30, whole_replicates=17)
    found = fewer.of("smollm2_135m")
    assert (found.samples, found.max_paths, found.max_new_tokens) == (7, 7, 9)
    assert (found.prompt_tokens, found.replicates) == (30, 17)


def test_what_is_collected():
    settings = bench.STUDY.settings["quick"]
    collects = lambda **params: bench.collects(params, settings, "cpu")  # noqa: E731
    whole = {d for d in TORCH_DECODERS if collects(model="smollm2_135m", prompt="p00", decoder=d)}
    assert whole == {"shared_prefill", "dedup", "eab_paper", "eab_particles"}
    others = set(settings.models) - {"smollm2_135m"}
    assert all(collects(model=m, prompt="p00", decoder=d) for m in others for d in TORCH_DECODERS)
    together = {(m, d) for m in settings.models for d in TORCH_DECODERS if collects(model=m, batch="b00", decoder=d)}
    arms = set(TORCH_DECODERS) - {"sequential"}
    assert together == {(model, arm) for model in ("gpt2_nano", "gpt2_small") for arm in arms}
    more = bench.more(SimpleNamespace(model={"mine": "folder"}))
    assert more == {"model": ("mine",)}
    with pytest.raises(ValueError, match="--model gpt2_xl: a model of the study has this name"):
        bench.more(SimpleNamespace(model={"gpt2_xl": "folder"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("gpt3",)}, "unknown model 'gpt3'; choose from gpt2_nano, gpt2_small"),
        ({"replicate_models": ("all",)}, "unknown replicate_model 'all'; choose from none, gpt2_nano"),
        ({"batch_models": ("all",)}, "unknown batch_model 'all'; choose from none, gpt2_nano"),
        ({"decoders": ("beam",)}, "unknown decoder 'beam'"),
        ({"samples": 0}, "samples=0: expected an integer of at least 1"),
        ({"prompts": ("q1",)}, "unknown prompt 'q1'; choose from p00, p01, p02, ... .any number."),
        ({"batches": ("p1",)}, "unknown batch 'p1'; choose from b00, b01, b02, ... .any number."),
        ({"rounds": 0}, "rounds is 0; at least 1"),
        ({"batch_prompts": 0}, "batch_prompts is 0; at least 1"),
        ({"replicates": 1}, "replicates is 1; at least 2"),
    ],
)
def test_bad_settings_name_what_is_allowed(change, message):
    with pytest.raises(ValueError, match=message):
        replace(bench.STUDY.settings["smoke"], **change)
