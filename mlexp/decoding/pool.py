"""Forwards of a causal LM over the engine's cache, and what a hook counts of them.

B prompts of P tokens, n tips, V vocabulary.
"""

import contextlib
import inspect
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from .attention import TreeView, seeing
from .caches import PoolLayer, new_cache


@dataclass
class Counts:
    """What a forward hook saw the model do."""

    model_forwards: int = 0
    token_forwards: int = 0
    logit_rows: int = 0

    def add(self, other: "Counts", times: int = 1):
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + times * value)


@contextlib.contextmanager
def counting(model):
    """Count forwards, tokens forwarded and rows of logits by a hook on the model, never from the samples."""
    counts = Counts()

    def hook(_, args, kwargs, output):
        ids = args[0] if args else kwargs["input_ids"]
        counts.add(Counts(1, ids.numel(), output.logits.shape[:-1].numel()))

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


class Pool:
    """Prompts and the growing trees behind them in one flat cache of `capacity` slots."""

    def __init__(self, model, capacity: int, copies: int = 1):
        self.model, self.cache = model, new_cache(PoolLayer, model.config, capacity)
        for layer in self.cache.layers:
            layer.copies = copies

    def prefill(self, prompts: Tensor) -> Tensor:  # (B, P) -> (B, V)
        self._write_to(None)
        return last_logits(self.model, prompts, self.cache)

    def forward(self, tokens: Tensor, positions: Tensor, slots: Tensor, tree: TreeView) -> Tensor:  # (n,) x 3 -> (n, V)
        """Logits behind n tokens, whose keys and values go to `slots`."""
        self._write_to(slots)
        with seeing(tree):
            out = self.model(tokens[None], past_key_values=self.cache, use_cache=True, position_ids=positions[None])
        return out.logits[0]

    def _write_to(self, slots):
        for layer in self.cache.layers:
            layer.slots = slots


def last_logits(model, ids: Tensor, cache) -> Tensor:
    """Logits behind the last token of every row, whose keys and values go to the cache: (B, P) -> (B, V)."""
    keep = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    return model(ids, past_key_values=cache, use_cache=True, **keep).logits[:, -1]


def accepts(model, argument: str) -> bool:
    """Whether the model's forward has an argument of this name."""
    return argument in _parameters(type(model))


@cache
def _parameters(kind: type):
    return inspect.signature(kind.forward).parameters
