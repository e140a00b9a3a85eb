"""Top-k and top-p (nucleus) filters, as transformers' TopKLogitsWarper and TopPLogitsWarper define them."""

import math

from torch import Tensor


def restrict(x: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Tempered logits (n, V) with every token that may not be drawn at -inf.

    top_k keeps the k largest and their ties (0 = all); top_p then keeps the smallest set of most likely tokens whose
    probability is at least top_p (1.0 = all). No value decides a shape, so it runs inside a CUDA graph.
    """
    if top_k:
        smallest = x.topk(min(top_k, x.shape[-1])).values[:, -1:]
        x = x.masked_fill(x < smallest, -math.inf)
    if top_p < 1:
        ascending, order = x.sort()
        below = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        below[:, -1] = False  # the most likely token always stays
        x = x.masked_fill(below.scatter(-1, order, below), -math.inf)
    return x
