"""Key-value caches that are allocated once and written in place.

B rows, K key-value heads, S slots, D head width. torch.empty touches no memory: slots that are never written cost
nothing.
"""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _Layer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.used = capacity, 0

    def lazy_initialization(self, key_states, value_states):
        self.keys, self.values = (torch.empty(self.shape(x), dtype=x.dtype, device=x.device)
                                  for x in (key_states, value_states))  # fmt: skip
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.store((self.keys, key_states), (self.values, value_states))

    def get_mask_sizes(self, query_length):
        return self.used + query_length, 0

    def get_seq_length(self):
        return self.used

    def get_max_length(self):
        return self.capacity


class PoolLayer(_Layer):
    """Slot-major (S, K, D): B prompts of P tokens, one after the other, then the slots of the trees behind them.

    The first forward writes the prompts, (B, K, P, D), one behind the other, each as often as `copies` says. Every
    later one, of batch 1, writes its tokens to the slots that its caller has put in `slots`, which stand in no order.
    """

    slots = None  # (n,) of the next forward; None = the prompts come
    copies = 1

    def shape(self, x):
        return self.capacity, x.shape[1], x.shape[3]

    def store(self, *pairs):
        if self.slots is not None:
            for pool, x in pairs:
                pool.index_copy_(0, self.slots, x[0].transpose(0, 1))
            return tuple(pool.transpose(0, 1)[None] for pool, _ in pairs)  # (1, K, S, D), views
        for pool, x in pairs:
            B, K, P, D = x.shape
            used = B * self.copies * P
            assert used <= self.capacity, f"{used} slots of prompts in a pool of {self.capacity}"
            pool[:used].view(B, self.copies, P, K, D).copy_(x.transpose(1, 2)[:, None])
        return tuple(x for _, x in pairs)


class RowsLayer(_Layer):
    """Head-major (B, K, S, D): independent rows, as the arms without a tree need them."""

    def shape(self, x):
        return x.shape[0], x.shape[1], self.capacity, x.shape[3]

    def store(self, *pairs):
        start, self.used = self.used, self.used + pairs[0][1].shape[2]
        assert self.used <= self.capacity, f"{self.used} slots in a cache of {self.capacity}"
        for rows, x in pairs:
            rows[:, :, start : self.used] = x
        return tuple(rows[:, :, : self.used] for rows, _ in pairs)

    def keep(self, rows):
        """Go on with some of the rows alone, (B,) bool; their memory is moved to the front, the rest is not freed."""
        for name in ("keys", "values"):
            cached = getattr(self, name)
            kept = cached[rows, :, : self.used]
            cached[: len(kept), :, : self.used] = kept
            setattr(self, name, cached[: len(kept)])

    def spread(self, times: int):
        """Copy what every row holds to `times` rows side by side."""
        for name in ("keys", "values"):
            few = getattr(self, name)
            many = torch.empty(len(few) * times, *few.shape[1:], dtype=few.dtype, device=few.device)
            many[:, :, : self.used] = few[:, :, : self.used].repeat_interleave(times, 0)
            setattr(self, name, many)


def new_cache(layer: type, config, capacity: int) -> Cache:
    """A transformers cache of `layer`s with `capacity` slots each."""
    return Cache(layers=[layer(capacity) for _ in range(config.get_text_config().num_hidden_layers)])


def rewind(cache: Cache, used: int = 0):
    """Forget all slots from `used` on; the memory stays."""
    for layer in cache.layers:
        layer.used = used
