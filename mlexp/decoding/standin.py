"""The stand-in of a pretrained model: random weights of the real architecture, and the gain that gives real entropies.

Untouched, the logits of a random GPT-2 are nearly flat (H / ln V about 0.99) and every path branches at every step. One
factor on all logits, found by bisection, makes its samples branch as often as those of pretrained GPT-2 do.
"""

import json
import math
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from mlexp.store import Progress, announce, cache_dir, cached

from .caches import RowsCache
from .initial import build
from .kernels.reference import draw, entropy, tempered
from .models import Model
from .recipes import StandIn, known_gain, standin_hash
from .rng import path_seeds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIRST_GUESS = 3.4  # standard deviation of the logits at which random GPT-2 branches at about the default rate


def apply_gain(model: "PreTrainedModel", gain: float) -> None:
    """Multiply all logits by `gain`, through the last norm: free at run time, and seen by every decoder."""
    base: Any = model.base_model
    with torch.no_grad():
        for p in (base.ln_f if hasattr(base, "ln_f") else base.norm).parameters():
            p.mul_(gain)


def standin(
    name: str, row: Model, recipe: StandIn, dtype: torch.dtype, device: torch.device | str, progress: Progress = None
) -> "tuple[PreTrainedModel, float]":
    """The stand-in of a model and its gain: from the table, else calibrated and cached under all that it depends on."""
    model = build(row, recipe.seed, recipe.std, dtype, device)
    path = cache_dir() / "gains" / f"{standin_hash(row, recipe)}-{str(dtype).split('.')[-1]}.json"

    def make() -> bytes:
        announce(progress, f"calibrating the stand-in of {row.n_params / 1e6:.0f}M parameters")
        return json.dumps(calibrate(model, recipe, progress)).encode()

    gain = known_gain(name, row, recipe) or cached(path, make, _read_gain, progress)
    apply_gain(model, gain)
    return model, gain


def _read_gain(content: bytes) -> float:
    gain = float(json.loads(content)["gain"])
    if not 0 < gain < math.inf:
        raise ValueError(f"gain {gain}")
    return gain


class Calibration(TypedDict):
    """A gain, and the branch rate at the gain before it."""

    gain: float
    branch_rate: float


def calibrate(model: "PreTrainedModel", recipe: StandIn, progress: Progress = None) -> Calibration:
    """The gain at which `branch_rate` of the decoded positions are uncertain.

    Positions come from samples, which the gain itself shapes: sample, bisect on the logits seen, and again.
    """
    gain = FIRST_GUESS / (recipe.std * math.sqrt(model.config.hidden_size))
    for i in range(recipe.passes):
        logits = _decoded_logits(model, gain, recipe)  # (n, V), without the gain
        rate, gain = _branch_rate(logits, gain, recipe), _bisect(logits, recipe)
        if progress:
            progress(i + 1, recipe.passes, f"gain {gain:.3f}")
    return {"gain": gain, "branch_rate": rate}


def _decoded_logits(model: "PreTrainedModel", gain: float, recipe: StandIn) -> Tensor:
    """Raw logits along samples drawn at this gain behind seeded random prompts: (prompts * rows * steps, V) float32."""
    room = model.config.max_position_embeddings
    steps = min(recipe.steps, room // 2)
    length, B = min(recipe.prompt, room - steps), recipe.prompts * recipe.rows
    prompt = np.random.default_rng(recipe.seed).integers(0, model.config.vocab_size, (recipe.prompts, length))
    cache, seeds, seen = RowsCache(model.config, length + steps), path_seeds(recipe.seed, 1, B, model.device)[0], []
    ids = torch.from_numpy(prompt).to(model.device)
    with torch.no_grad():
        for t in range(steps):
            logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
            if t == 0:
                logits = logits.repeat_interleave(recipe.rows, 0)
                cache.spread(recipe.rows)
            seen.append(logits)
            ids = draw(tempered(logits * gain, recipe.temperature), seeds, t, 1, torch.arange(B, device=seeds.device))
    return torch.cat(seen)


def _branch_rate(logits: Tensor, gain: float, recipe: StandIn) -> float:
    threshold_nats = recipe.threshold * math.log(logits.shape[-1])
    parts = [
        entropy(tempered(part * gain, recipe.temperature))[0] >= threshold_nats for part in torch.split(logits, 64)
    ]
    return torch.cat(parts).float().mean().item()


def _bisect(logits: Tensor, recipe: StandIn, low: float = -4.0, high: float = 10.0, turns: int = 20) -> float:
    """The gain, by bisection of its log2: entropy falls as the gain grows, so the branch rate is monotone."""
    for _ in range(turns):
        middle = (low + high) / 2
        if _branch_rate(logits, 2**middle, recipe) > recipe.branch_rate:
            low = middle
        else:
            high = middle
    return math.pow(2, (low + high) / 2)
