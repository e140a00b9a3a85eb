"""From logits to tokens: tempered softmax, its entropy, and draws by inverse CDF.

n rows, V vocabulary, K draws a row at most. x = logits / T - max, e = exp(x), s = sum e; nothing is ever normalised in
place, so that draw, entropy and log-probability come from the same numbers.
"""

import numpy as np
import torch
from torch import Tensor

CHUNK = 64  # rows at a time: the float64 cumulative sum of 64 rows of GPT-2's vocabulary is 26 MB


class Distribution:
    """The tempered next-token distributions of n rows; float32 at least."""

    def __init__(self, logits: Tensor, temperature: float):  # (n, V)
        x = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        self.x = x.sub_(x.amax(-1, keepdim=True)).clamp_(min=-1e4)  # clamped: 0 * inf has no entropy
        self.e = self.x.exp()
        self.s = self.e.sum(-1)  # (n,)

    def entropy(self) -> Tensor:
        """H in nats, shifted form: ln s - sum(x e) / s. Exact at any offset of the logits."""
        return (self.s.log() - torch.linalg.vecdot(self.x, self.e) / self.s).clamp_(min=0)

    def log_prob(self, rows: Tensor, tokens: Tensor) -> Tensor:
        return self.x[rows, tokens] - self.s[rows].log()

    def draw(self, rows: np.ndarray, u: np.ndarray) -> np.ndarray:
        """One token per (row, uniform): the first whose cumulative weight exceeds u times the total.

        Never a token of weight zero: the sum is float64 and u < 1, so u * total < total and the step taken is positive.
        """
        order = np.argsort(rows, kind="stable")
        tokens = np.empty(len(rows), np.int64)
        for part in _chunks(rows[order]):
            tokens[order[part]] = _draw(self.e, rows[order[part]], u[order[part]])
        return tokens

    def draw_distinct(self, rows: np.ndarray, u: np.ndarray) -> np.ndarray:
        """K tokens without replacement per row, the j-th from u[:, j]; -1 where no weight is left. (n, K) -> (n, K)."""
        e, lines = self.e[torch.from_numpy(rows)], np.arange(len(rows))
        tokens = np.full(u.shape, -1, np.int64)
        for j in range(u.shape[1]):
            left = lines[(e > 0).any(-1).cpu().numpy()[lines]]
            if not len(left):
                break
            tokens[left, j] = _draw(e, left, u[left, j])
            e[torch.from_numpy(left), torch.from_numpy(tokens[left, j])] = 0
        return tokens


def _chunks(rows: np.ndarray):
    """Slices of draws, sorted by row, that touch at most CHUNK distinct rows."""
    if not len(rows):
        return
    edges = np.searchsorted(rows, np.arange(rows[0], rows[-1] + 1, CHUNK)).tolist()
    for a, b in zip(edges, [*edges[1:], len(rows)], strict=True):
        if a < b:
            yield slice(a, b)


def _draw(e: Tensor, rows: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Inverse CDF for draws sorted by row; the draws of a row stand side by side, so no row is copied per draw."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    total = e[first:last].cumsum(-1, dtype=torch.float64)  # (n, V)
    column = np.arange(len(rows)) - np.searchsorted(rows, rows)
    line = torch.from_numpy(rows - first)
    targets = torch.zeros(last - first, int(column.max()) + 1, dtype=torch.float64, device=e.device)
    targets[line, torch.from_numpy(column)] = torch.from_numpy(np.ascontiguousarray(u)).to(e.device)
    tokens = torch.searchsorted(total, targets * total[:, -1:], right=True)  # (n, K)
    return tokens[line, torch.from_numpy(column)].cpu().numpy()
