"""Does branching help larger models more?  Fixed: 200-token prompts, 20 samples, 50 new tokens, T = 0.8."""

import functools
import hashlib
import math
import statistics
from pathlib import Path

import pytest

from mlexp.decoding.costs import Shape, cost, kv_bytes_per_token
from mlexp.decoding.models import MODELS
from mlexp.decoding.prompts import make_prompts, read_prompts
from mlexp.decoding.recipes import Nano
from mlexp.decoding.settings import DECODER_NAMES, DECODERS
from mlexp.decoding.weights import checkpoint_identity, identity
from mlexp.extras import is_there, missing
from mlexp.study import beside

STUDY = beside(__file__).STUDY
CORRELATED = ("eab_paper", "eab_particles")
PROMPTS = Path(__file__).with_name("prompts.jsonl")
CUDA_ROUNDS = 5  # at least so many on a GPU: the first untimed ones capture the graphs that the timed ones replay


def more(options) -> dict[str, tuple[str, ...]]:
    """Every `--model NAME=FOLDER` is a further model."""
    for name in options.model:
        if name in MODELS:
            raise ValueError(f"--model {name}: a model of the study has this name; choose another")
    return {"model": tuple(options.model)}


def inputs(params, settings, options) -> dict[str, object]:
    """What the cell will read, known before it runs: part of its key and of its record. Loads nothing."""
    if folder := options.model.get(params["model"]):
        who = checkpoint_identity(folder)
    else:
        who = identity(params["model"], options.weights or "auto", options.corpus, Nano(steps=settings.nano_steps))
    return who | {"prompts_hash": prompts_hash(options.prompts or PROMPTS)}


@functools.cache
def prompts_hash(path: str | Path) -> str:
    read_prompts(path)  # a broken file is told of before the first cell
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def collects(params, settings, device) -> bool:
    """Together, prompts are decoded by every arm but `sequential`, which decodes one sample at a time in any case. The
    arm of a library that is not installed has no cells; where it was asked for, that is an error."""
    library = DECODERS[params["decoder"]].library
    if library and not is_there(library):
        if settings.decoders != DECODER_NAMES:
            raise ValueError(str(missing(f"the arm {params['decoder']}", library)))
        return False
    if "batch" in params:
        return params["model"] in settings.batch_models and params["decoder"] != "sequential"
    return params["model"] not in settings.whole_models or params["decoder"] in settings.whole_decoders


LOADED = {}  # cells of a model follow one another: one model in memory at a time


def language_model(cell, name: str):
    """The model of a cell, loaded (nano: trained at first use) unless it is the one in memory."""
    import torch

    from mlexp.decoding.loading import load, load_checkpoint

    nano, folder = Nano(steps=cell.settings.nano_steps), cell.options.model.get(name)
    packed = cell.settings.packed
    key = (name, folder, cell.device, cell.dtype, cell.options.weights, cell.options.corpus, nano, packed)
    if key not in LOADED:
        LOADED.clear()
        where = cell.device, getattr(torch, cell.dtype)
        weights, corpus = cell.options.weights or "auto", cell.options.corpus
        LOADED[key] = (
            load_checkpoint(folder, name, *where, progress=cell.progress, packed=packed)
            if folder
            else load(name, weights, *where, corpus, cell.progress, nano, packed=packed)
        )
    return LOADED[key]


def test_decode(cell, model, prompt, decoder):
    measure(cell, model, decoder, [int(prompt[1:])])


def test_throughput(cell, model, batch, decoder):
    first = int(batch[1:]) * cell.settings.batch_prompts
    measure(cell, model, decoder, range(first, first + cell.settings.batch_prompts))


def measure(cell, model, decoder, numbers):
    """Decode the prompts of these numbers together; costs, quality and tree of what comes out."""
    import torch

    from mlexp.decoding import kernels
    from mlexp.decoding.decoders import DECODE, unavailable

    s = cell.settings.of(model)
    lm = language_model(cell, model)
    made = make_prompts(read_prompts(cell.options.prompts or PROMPTS), lm.tokenizer, max(numbers) + 1, s.prompt_tokens)
    chosen = [made[i] for i in numbers]
    ids, state = torch.tensor([prompt.ids for prompt in chosen]), {}
    rounds = max(s.rounds, CUDA_ROUNDS) if cell.device == "cuda" else s.rounds
    if reason := unavailable(decoder, lm, ids, s):
        pytest.skip(reason)
    own = DECODERS[decoder].library is None  # FLOPs and allocations of another library are nothing that torch sees
    out = cell.time(lambda: DECODE[decoder](lm, ids, s, cell.seed, state), rounds=rounds, count=own)
    if not own:
        cell.record(flops=None, **{"peak_bytes": None} if cell.device == "cuda" else {})
    cell.record(**costs(cell, lm, decoder, ids, out))
    answers = [prompt.answer for prompt in chosen]
    cell.record(**quality(cell, lm, decoder, ids, out, answers))
    cell.record(**effective(cell, lm, decoder, ids, answers))
    config = lm.model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sampler = kernels.choose("entropy_sample", cell.device, dtype=lm.model.dtype)
    attention = kernels.choose("tree_attention", cell.device, dtype=lm.model.dtype, width=width)
    backend = "+".join(dict.fromkeys((sampler, attention))) if own else DECODERS[decoder].library
    cell.record(kernel_backend=backend)
    cell.series(live_paths=out.live_paths)
    if out.tree:
        cell.record(**out.tree.branch_statistics())
        cell.series(
            **{name: getattr(out.tree, name) for name in ("parent", "token", "entropy", "logprob", "multiplicity")}
        )
    assert out.tokens.shape[1] == s.max_new_tokens


def costs(cell, lm, decoder, ids, out) -> dict[str, object]:
    """What the arm spent, beside the formula for it and the original's own (2 * params * tokens); null where a formula
    does not describe the model (a mixture of experts multiplies by a part of its parameters)."""
    s, width = cell.settings.of(lm.name), {"float32": 4, "bfloat16": 2}[cell.dtype]
    shape = Shape.of(lm.model.config)
    formula = cost(lm.model.config, decoder, s.prompt_tokens, s, out.rows, width, len(ids))
    return {
        "n_params": lm.n_params,
        "n_prompts": len(ids),
        "n_samples": len(out.tokens),
        "n_tokens": int(out.lengths.sum()),
        "token_forwards": out.token_forwards,
        "model_forwards": out.model_forwards,
        "logit_rows": out.logit_rows,
        "flops_closed_form": 2 * lm.n_params * out.token_forwards if shape else None,
        "flops_arm_closed_form": formula.flops if formula else None,
        "bytes_per_sample": None if cell.values["peak_bytes"] is None else cell.values["peak_bytes"] / len(out.tokens),
        "kv_bytes": out.kv_slots * kv_bytes_per_token(shape, width) if formula else None,
        "logit_gain": lm.gain,
    }


def quality(cell, lm, decoder, ids, out, answers) -> dict[str, object]:
    """How good the samples are, in untimed passes that are the same for every arm; of several prompts, their mean."""
    from mlexp.decoding import quality as q

    s = cell.settings.of(lm.name)
    real, sets = lm.weights.startswith("pretrained"), []
    for i in range(len(ids)):
        tokens, lengths = out.tokens[out.prompt == i], out.lengths[out.prompt == i]
        sets.append((ids[i], tokens, lengths, q.texts(tokens, lengths), answers[i]))
    return {
        "mean_length": mean(lengths.double().mean().item() for _, _, lengths, _, _ in sets),
        "mean_surprisal_nats": mean(
            q.surprisal(lm, prompt, tokens, s, lengths).sum(1).mean() for prompt, tokens, lengths, _, _ in sets
        ),
        "unique_samples": mean(q.unique_sequences(tokens) for _, tokens, _, _, _ in sets),
        "distinct_1": mean(q.distinct_n(texts, 1) for _, _, _, texts, _ in sets),
        "distinct_2": mean(q.distinct_n(texts, 2) for _, _, _, texts, _ in sets),
        "self_bleu": mean(q.self_bleu(texts) for _, _, _, texts, _ in sets),
        "accuracy": mean(q.contains_answer(lm, texts, answer) for *_, texts, answer in sets) if real else None,
    }


WORTH = ("worst_effective_samples", "surprisal_effective_samples", "first_token_effective_samples")


def effective(cell, lm, decoder, ids, answers) -> dict[str, object]:
    """What the samples of one tree are worth, from replicates of it; N where samples are independent."""
    from mlexp.decoding import quality as q

    s = cell.settings.of(lm.name)
    if decoder not in CORRELATED:
        return dict.fromkeys(WORTH, s.samples)
    if lm.name not in (*s.replicate_models, *cell.options.model) or len(ids) > 1:
        return dict.fromkeys(WORTH)
    hits = functools.partial(q.answer_hits, lm, answer=answers[0]) if lm.weights.startswith("pretrained") else None
    progress = functools.partial(cell.progress, total=2 * s.replicates, what="replicates for worst_effective_samples")
    got = q.effective_samples(lm, ids[0], s, decoder, s.replicates, cell.seed, hits=hits, progress=progress)
    cell.series(**{f"effective_samples_{name}": [each.samples, each.error] for name, each in got.by.items()})
    by = {name: each.samples for name, each in got.by.items()}
    values = dict(zip(WORTH, (got.samples, by.get("surprisal"), by.get("token_0")), strict=True))
    error = got.by[got.worst].error if got.worst else None
    return values | {"worst_functional": got.worst, "worst_effective_samples_error": error}


def mean(values) -> float | None:
    """The mean over prompts; None where a statistic is not defined for so few samples (NaN)."""
    value = statistics.fmean(values)
    return None if math.isnan(value) else value
