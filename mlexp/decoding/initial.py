"""A model of MODELS with seeded random weights, in seconds whatever its size.

Every weight is N(0, std^2) as in GPT-2's own initialisation (output projections divided by sqrt(2 layers), biases 0,
norms 1), read from one pool of a prime number of normals at an offset hashed from the parameter's name. Drawing 1.5
billion weights one by one takes half a minute; no two rows of a matrix are equal, since the pool is prime.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .models import Model
from .recipes import digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POOL = 2**22 - 3  # prime
OUTPUTS = ("c_proj.weight", "o_proj.weight", "down_proj.weight")  # of what is added to the residual stream


def build(
    row: Model, seed: int, std: float, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> "PreTrainedModel":
    """A model with seeded random weights in eval mode; the global random state is not touched."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(row.family, **row.config())
    with torch.device("meta"):
        make: Any = AutoModelForCausalLM.from_config
        model: PreTrainedModel = make(config, attn_implementation="sdpa")
    torch.nn.Module.to(model, dtype).to_empty(device=device)
    model.tie_weights()
    pool = torch.from_numpy(np.random.default_rng(seed).standard_normal(POOL, np.float32)).to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter, pool, std, row.layers)
    model.train(False)
    return model


def _fill(name: str, p: Tensor, pool: Tensor, std: float, layers: int) -> None:
    if name.endswith(".bias"):
        p.zero_()
    elif ".ln_" in name or "norm" in name:
        p.fill_(1)
    else:
        scale = std / math.sqrt(2 * layers) if name.endswith(OUTPUTS) else std
        flat, at, start = p.view(-1), 0, int(digest(name), 16) % len(pool)
        while at < len(flat):
            n = min(len(flat) - at, len(pool) - start)
            flat[at : at + n].copy_(pool[start : start + n]).mul_(scale)
            at, start = at + n, 0
