"""Forwards of a causal LM over the engine's cache, and what a hook counts of them.

B prompts of P tokens, n tips, V vocabulary.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .attention import TreeView, seeing
from .caches import PoolCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


@dataclass
class Counts:
    """What a forward hook saw the model do."""

    model_forwards: int = 0
    token_forwards: int = 0
    logit_rows: int = 0

    def add(self, other: "Counts", times: int = 1) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + times * value)


@contextlib.contextmanager
def counting(model: "PreTrainedModel") -> Iterator[Counts]:
    """Count forwards, tokens forwarded and rows of logits by a hook on the model, never from the samples."""
    counts = Counts()

    def hook(_: object, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        counts.add(Counts(1, ids.numel(), output.logits.shape[:-1].numel()))

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


class Pool:
    """Prompts and the growing trees behind them in one flat cache of `capacity` slots."""

    def __init__(self, model: "PreTrainedModel", capacity: int, copies: int = 1) -> None:
        self.model, self.cache = model, PoolCache(model.config, capacity, copies)

    def prefill(self, prompts: Tensor) -> Tensor:  # (B, P) -> (B, V)
        self.cache.write_to(None)
        return last_logits(self.model, prompts, self.cache)

    def forward(self, tokens: Tensor, positions: Tensor, slots: Tensor, tree: TreeView) -> Tensor:  # (n,) x 3 -> (n, V)
        """Logits behind n tokens, whose keys and values go to `slots`."""
        self.cache.write_to(slots)
        with seeing(tree):
            out = self.model(tokens[None], past_key_values=self.cache, use_cache=True, position_ids=positions[None])
        logits: Tensor = out.logits
        return logits[0]


def last_logits(model: "PreTrainedModel", ids: Tensor, cache: "Cache") -> Tensor:
    """Logits behind the last token of every row, whose keys and values go to the cache: (B, P) -> (B, V)."""
    keep = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    logits: Tensor = model(ids, past_key_values=cache, use_cache=True, **keep).logits
    return logits[:, -1]


def accepts(model: "PreTrainedModel", argument: str) -> bool:
    """Whether the model's forward has an argument of this name."""
    return argument in _parameters(type(model).forward)


@cache
def _parameters(forward: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(forward).parameters
