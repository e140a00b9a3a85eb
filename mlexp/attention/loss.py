"""Cross-entropy of a linear output layer without its logits, which are computed and dropped chunk by chunk.

N tokens, D width, V vocabulary, n tokens of a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**25  # logits alive at once: 128 MiB of float32


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(mean loss in nats, loss of every token, whether the likeliest token was right) of logits hidden @ weight.T.

    hidden (N, D), weight (V, D), targets (N,); the mean alone has a gradient. Gradients are computed in the forward,
    one chunk of tokens at a time, and saved for the backward as (N, D) and (V, D); plain cross-entropy saves (N, V).
    Products are in autocast's dtype, all sums in float32.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    chunk = chunk or max(1, CHUNK // len(weight))
    result: tuple[Tensor, Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # in torch
        hidden, weight, targets, chunk, wanted, dtype
    )
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, wanted: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.promote_types(dtype, torch.float32)
        losses = hidden.new_empty(len(hidden), dtype=exact)
        right = torch.empty_like(targets, dtype=torch.bool)
        if wanted:
            hidden_grad, weight_grad = torch.empty_like(hidden), torch.zeros_like(weight, dtype=exact)
        with torch.autocast(hidden.device.type, enabled=False):
            w = weight.to(dtype)
            for first in range(0, len(hidden), chunk):
                rows = slice(first, first + chunk)
                h, t = hidden[rows].to(dtype), targets[rows, None]
                logits = (h @ w.T).to(exact)  # (n, V)
                right[rows] = logits.argmax(-1) == t[:, 0]
                log_p = logits.log_softmax(-1)
                losses[rows] = log_p.gather(1, t)[:, 0].neg_()
                if wanted:
                    slope = log_p.exp_().scatter_add_(1, t, log_p.new_full((1, 1), -1.0).expand_as(t)).div_(len(hidden))
                    slope = slope.to(dtype)
                    hidden_grad[rows] = slope @ w
                    _add_product(weight_grad, slope.T, h)
        if wanted:
            ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        ctx.mark_non_differentiable(losses, right)
        return losses.mean(), losses, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * grad.to(hidden_grad.dtype), weight_grad * grad, None, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in total's dtype and without a product of its own size where the dtypes agree."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
