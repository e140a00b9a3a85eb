"""What Hypothesis draws for the kernels: logits of every awkward kind, states of a forest, pools of keys and values."""

import contextlib
import math

import numpy as np
import torch
from hypothesis import strategies as st

VOCABULARIES = st.sampled_from([1, 2, 31, 32, 33, 127, 128, 129, 700, 1000])
KINDS = ("plain", "sharp", "low", "high", "holes", "empty", "equal")
SEEDS = st.integers(0, 2**31 - 1)


@contextlib.contextmanager
def poisoned():
    """Fill every torch.empty with NaN or the largest integer, so that an output that nobody wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def logits(rng: np.random.Generator, rows: int, vocab: int, kind: str, dtype=torch.float32) -> torch.Tensor:
    """(rows, vocab): `holes` has impossible tokens, `empty` a row of nothing else, `equal` ties everywhere."""
    x = torch.from_numpy(rng.normal(size=(rows, vocab)) * {"sharp": 20.0, "equal": 0.0}.get(kind, 3.0))
    x += {"low": -100.0, "high": 1000.0}.get(kind, 0.0)
    if kind in ("holes", "empty"):
        x[torch.from_numpy(rng.random((rows, vocab)) < 0.7)] = -math.inf
    if kind == "empty":
        x[rng.integers(rows)] = -math.inf
    return x.to(dtype)


def forest(rng: np.random.Generator, trees: int, particles: int, rows: int, depths: int, tokens: int = 3) -> dict:
    """A state that `fork` may meet: particles spread over the first rows of each tree, none of which is empty."""
    tip = np.zeros((trees, particles), np.int64)
    for t in range(trees):
        live = rng.integers(1, min(rows, particles) + 1)
        tip[t] = rng.permutation(np.r_[np.arange(live), rng.integers(0, live, particles - live)])
    entropy = np.take_along_axis(rng.random((trees, rows)), tip, 1)
    multiplicity = np.stack([np.bincount(t, minlength=rows) for t in tip])
    state = {
        "entropy": entropy.astype(np.float32),
        "tip": tip,
        "multiplicity": multiplicity,
        "token": rng.integers(0, tokens, (trees, particles)),
        "ancestors": rng.integers(0, 99, (trees * rows, depths)).astype(np.int32),
    }
    return {name: torch.from_numpy(value) for name, value in state.items()}


EXTRAS = ("first", "softcap", "sinks")


def pools(rng: np.random.Generator, tips: int, heads: tuple[int, int], width: int, prompt: int, prompts: int,
          columns: int, dtype=torch.float32, value_width: int | None = None, extras=()) -> dict:  # fmt: skip
    """Arguments of `tree_attention`, with those of EXTRAS that are asked for; slots that no tip sees hold NaN, except
    in a prompt, and ancestors that a tip does not see are no slot at all."""
    (H, K), slots = heads, prompts * prompt + 40
    shapes = (tips, H, width), (slots, K, width), (slots, K, value_width or width)
    q, k, v = (torch.from_numpy(rng.normal(size=shape)) for shape in shapes)
    own = torch.from_numpy(rng.integers(prompts * prompt, slots, (tips, columns))).int()
    lengths = torch.from_numpy(rng.integers(0, columns + 1, tips))
    column, more = torch.arange(columns), {}
    beyond = column >= lengths[:, None]
    if "first" in extras:  # windows of one width, or each tip its own
        windows = rng.integers(1, prompt + columns + 1, rng.choice([1, tips]))
        more["first"] = (prompt + lengths - torch.from_numpy(windows)).clamp(min=0)
        beyond |= prompt + column < more["first"][:, None]
    if "softcap" in extras:
        more["softcap"] = float(rng.choice([0.7, 3.0, 50.0]))
    if "sinks" in extras:
        more["sinks"] = torch.from_numpy(rng.normal(size=H) * 3).to(dtype)
    unseen = torch.ones(slots, dtype=torch.bool)
    unseen[: prompts * prompt] = False
    unseen[own[~beyond].long()] = False
    k[unseen] = v[unseen] = math.nan
    return {
        "q": q.to(dtype), "k_pool": k.to(dtype), "v_pool": v.to(dtype), "prompt_len": prompt,
        "ancestors": own.masked_fill(beyond, 2**31 - 1), "lengths": lengths, "group": tips // prompts, **more,
    }  # fmt: skip
