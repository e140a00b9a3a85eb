"""Key-value caches that are allocated once and written in place.

B rows, K key-value heads, S slots, D head width. torch.empty touches no memory: slots that are never written cost
nothing.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers' own __init_subclass__
    """One layer's keys and values; a subclass says how they are laid out and where new ones are stored."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' own
        self.capacity, self.used = capacity, 0

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of the memory for keys or values that come as x (B, K, tokens, D)."""
        raise NotImplementedError

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, K, tokens, D); return those that attention is to see."""
        raise NotImplementedError

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (torch.empty(self.shape(x), dtype=x.dtype, device=x.device)
                                  for x in (key_states, value_states))  # fmt: skip
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.store(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.capacity


class PoolLayer(_Layer):  # type: ignore[no-untyped-call]  # transformers' own __init_subclass__
    """Slot-major (S, K, D): B prompts of P tokens, one after the other, then the slots of the trees behind them.

    The first forward writes the prompts, (B, K, P, D), one behind the other, each as often as `copies` says. Every
    later one, of batch 1, writes its tokens to the slots that its caller has put in `slots`, which stand in no order.
    """

    slots: Tensor | None = None  # (n,) of the next forward; None = the prompts come
    copies = 1

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return self.capacity, x.shape[1], x.shape[3]

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.slots is not None:
            for pool, x in ((self.keys, keys), (self.values, values)):
                pool.index_copy_(0, self.slots, x[0].transpose(0, 1))
            return self.keys.transpose(0, 1)[None], self.values.transpose(0, 1)[None]  # (1, K, S, D), views
        for pool, x in ((self.keys, keys), (self.values, values)):
            B, K, P, D = x.shape
            used = B * self.copies * P
            assert used <= self.capacity, f"{used} slots of prompts in a pool of {self.capacity}"
            pool[:used].view(B, self.copies, P, K, D).copy_(x.transpose(1, 2)[:, None])
        return keys, values


class RowsLayer(_Layer):  # type: ignore[no-untyped-call]  # transformers' own __init_subclass__
    """Head-major (B, K, S, D): independent rows, as the arms without a tree need them."""

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return x.shape[0], x.shape[1], self.capacity, x.shape[3]

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        start, self.used = self.used, self.used + keys.shape[2]
        assert self.used <= self.capacity, f"{self.used} slots in a cache of {self.capacity}"
        self.keys[:, :, start : self.used] = keys
        self.values[:, :, start : self.used] = values
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def select(self, rows: Tensor) -> None:
        """Go on with some of the rows alone, (B,) bool; their memory is moved to the front, the rest is not freed."""
        for name in ("keys", "values"):
            cached = getattr(self, name)
            selected = cached[rows, :, : self.used]
            cached[: len(selected), :, : self.used] = selected
            setattr(self, name, cached[: len(selected)])

    def spread(self, times: int) -> None:
        """Copy what every row holds to `times` rows side by side."""
        for name in ("keys", "values"):
            few = getattr(self, name)
            many = torch.empty(len(few) * times, *few.shape[1:], dtype=few.dtype, device=few.device)
            many[:, :, : self.used] = few[:, :, : self.used].repeat_interleave(times, 0)
            setattr(self, name, many)


class PoolCache(Cache):
    """A pool of `capacity` slots in every layer of a model; each prompt is stored `copies` times."""

    def __init__(self, config: "PreTrainedConfig", capacity: int, copies: int = 1) -> None:
        self._pools = [PoolLayer(capacity) for _ in range(_n_layers(config))]
        for layer in self._pools:
            layer.copies = copies
        super().__init__(layers=list(self._pools))

    def write_to(self, slots: Tensor | None) -> None:
        """Where the tokens of the next forward go, (n,); None = they are the prompts."""
        for layer in self._pools:
            layer.slots = slots


class RowsCache(Cache):
    """Independent rows of `capacity` slots in every layer of a model."""

    def __init__(self, config: "PreTrainedConfig", capacity: int) -> None:
        self._rows = [RowsLayer(capacity) for _ in range(_n_layers(config))]
        super().__init__(layers=list(self._rows))

    def rewind(self) -> None:
        """Forget all slots; the memory stays."""
        for layer in self._rows:
            layer.used = 0

    def select(self, rows: Tensor) -> None:
        """See RowsLayer.select."""
        for layer in self._rows:
            layer.select(rows)

    def spread(self, times: int) -> None:
        """See RowsLayer.spread."""
        for layer in self._rows:
            layer.spread(times)


def _n_layers(config: "PreTrainedConfig") -> int:
    n_layers: int = config.get_text_config().num_hidden_layers
    return n_layers
