"""What both architectures are trained on: a field of moves that all point to the goal, batches, and their augmentation.

B mazes of a batch, M of an epoch, N cells, R iterations. The random numbers of an epoch come from the seed and its
number alone, so every arm of a block sees the same mazes in the same order under the same symmetries.
"""

import torch
from torch import Tensor

from .data import Mazes
from .moves import FAR, distances, features, new_endpoints, optimal_moves, transform

LOSSES = ("dense", "path")


def pointer_loss(logits: Tensor, best: Tensor, counts: Tensor) -> Tensor:
    """Mean over iterations of -log of the probability of all optimal moves together, over the cells that count.

    logits (R, B, N, 4), best (B, N, 4) bool, counts (B, N) bool: every cell but the goal, or the solution's alone. Each
    maze has the same weight, so that micro-batches of any size add up to the batch.
    """
    chosen = logits.masked_fill(~best, -torch.inf).logsumexp(-1) - logits.logsumexp(-1)  # (R, B, N)
    chosen = chosen.masked_fill(~counts, 0)  # the goal has no optimal move: -inf
    return -(chosen.sum(-1) / counts.sum(-1)).mean()


class Batches:
    """`batches(step)`: (features, best moves, cells that count) of a batch on a device, one after the other epoch by
    epoch.

    With `augment` each maze comes under a random symmetry and with new endpoints at least min_length cells apart.
    """

    def __init__(
        self,
        mazes: Mazes,
        size: int,
        seed: int,
        device: torch.device | str = "cpu",
        augment: bool = True,
        min_length: int = 2,
        loss: str = "dense",
    ):
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}; choose from {', '.join(LOSSES)}")
        self.open, self.start, self.goal = (
            torch.from_numpy(x).to(device) for x in (mazes.open, mazes.start, mazes.goal)
        )
        self.size, self.seed, self.augment, self.min_length, self.loss = size, seed, augment, min_length, loss
        self.per_epoch = -(-len(mazes) // size)
        self._epoch = -1
        self._items: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        epoch, turn = divmod(step, self.per_epoch)
        if self._items is None or epoch != self._epoch:
            self._epoch, self._items = epoch, self._prepare(epoch)
        x, best, counts = (item[turn * self.size : (turn + 1) * self.size] for item in self._items)
        return x, best, counts

    def _prepare(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """A whole epoch at once: distances take hundreds of small operations, however many mazes they are for."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.start), generator=random).to(self.start.device)
        open, start, goal = self.open[order], self.start[order], self.goal[order]
        d = None
        if self.augment:
            which = torch.randint(8, (len(order),), generator=random).to(open.device)
            open, start, goal = transform(open, start, goal, which)
            start, goal, d = new_endpoints(open, start, goal, self.min_length, random)
        d = distances(open, goal) if d is None else d
        counts = (d > 0) & (d < FAR)
        if self.loss == "path":
            counts &= d + distances(open, start) == d.gather(1, start[:, None])
        return features(open, start, goal), optimal_moves(open, d), counts
