"""Evaluating a trained arm: losses by position, document and context length; bytes of a step and of a cached token.

B batch, T tokens of context.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from mlexp.training import saved_bytes

from .layers import Cache
from .learn import loss_in
from .loss import linear_cross_entropy
from .model import Decoder
from .text import Part


@dataclass(frozen=True)
class Evaluation:
    """Means over all scored targets, in nats; by position in the context, and by document (mean loss, tokens)."""

    loss_nats: float
    accuracy: float
    n_tokens: int
    bits_per_byte: float | None
    by_position: np.ndarray  # (T,)
    document_losses: np.ndarray
    document_tokens: np.ndarray

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss_nats)


def evaluate(
    model: Decoder, part: Part, context: int, size: int, windows: int | None = None, dtype: torch.dtype = torch.float32
) -> Evaluation:
    """Score a part in windows that do not overlap, the first `windows` or all, `size` at a time."""
    available = (len(part.tokens) - 1) // context
    n = min(windows or available, available)
    if not n:
        raise ValueError(f"{len(part.tokens)} tokens: not one window of {context}")
    losses, right = _score(model, part, np.arange(n) * context, context, size, dtype)  # (n, T) twice
    documents = part.documents()[1 : n * context + 1]
    counts = np.bincount(documents)
    sums = np.bincount(documents, losses.ravel())
    loss = float(losses.mean())
    bits = None if part.bytes_per_token is None else loss / math.log(2) / part.bytes_per_token
    present = counts > 0
    return Evaluation(
        loss, float(right.mean()), losses.size, bits, losses.mean(0), sums[present] / counts[present], counts[present]
    )  # fmt: skip


def extrapolate(
    model: Decoder, part: Part, context: int, size: int, windows: int,
    factors: tuple[int, ...] = (1, 2, 4), dtype: torch.dtype = torch.float32,
) -> dict[int, float | None]:  # fmt: skip
    """factor -> loss in nats on the same targets, `windows` times T of them, given factor * T tokens of context.

    None where positions were learned for fewer tokens.
    """
    longest = max(factors) * context
    available = (len(part.tokens) - 1 - longest) // context + 1
    if available < 1:
        raise ValueError(f"{len(part.tokens)} tokens: not one window of {longest}")
    last = longest - context + np.arange(min(windows, available)) * context  # where the scored T begin
    found: dict[int, float | None] = {}
    for factor in factors:
        if model.arm.position == "learned" and factor * context > model.shape.context:
            found[factor] = None
            continue
        starts = last - (factor - 1) * context
        losses, _ = _score(model, part, starts, factor * context, max(1, size // factor), dtype)
        found[factor] = float(losses[:, -context:].mean())
    return found


@torch.no_grad()
def _score(
    model: Decoder, part: Part, starts: np.ndarray, length: int, size: int, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of every target of windows of this length, and whether the guess was right: (windows, length) twice."""
    model.eval()
    weight = model.embed.weight
    losses, right = [], []
    for chunk in np.array_split(starts, -(-len(starts) // size)):
        rows = torch.from_numpy(part.tokens[chunk[:, None] + np.arange(length + 1)].astype(np.int64)).to(weight.device)
        with torch.autocast(weight.device.type, dtype, enabled=dtype != torch.float32):
            hidden, _ = model.hidden(rows[:, :-1])
            _, each, hit = linear_cross_entropy(hidden.flatten(0, 1), weight, rows[:, 1:].flatten())
        losses.append(each.view(-1, length).double().cpu().numpy())
        right.append(hit.view(-1, length).cpu().numpy())
    return np.concatenate(losses), np.concatenate(right)


def saved_activation_bytes(model: Decoder, batch: int, context: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes saved for the backward of one training step on `batch` windows: a constant and a multiple of the batch, so
    that two small batches predict a large one."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.shape.vocab, (batch, context), generator=generator).to(model.embed.weight.device)
    model.train()
    return saved_bytes(lambda: loss_in(dtype)(model, tokens, tokens))


@torch.no_grad()
def kv_bytes_per_token(model: Decoder, dtype: torch.dtype = torch.bfloat16, prompt: int = 4) -> float:
    """Bytes of the cache per cached token, after a prompt and one step of decoding with products in `dtype`."""
    model.eval()
    weight, cache = model.embed.weight, Cache(prompt + 1)
    with torch.autocast(weight.device.type, dtype, enabled=dtype != weight.dtype):
        model(torch.zeros(1, prompt, dtype=torch.long, device=weight.device), cache)
        model(torch.zeros(1, 1, dtype=torch.long, device=weight.device), cache)
    return cache.n_bytes / cache.length
