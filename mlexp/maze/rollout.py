"""From logits to a walk: all mazes at once, one forward a maze; and the floors and the ceiling that arms are
compared with.

B mazes on n x n cells, N = n * n. A walk may never pass a wall nor a cell twice; it fails where it has nowhere to go.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from .moves import distances, neighbours, optimal_moves

SLACK = Fraction(21, 20)  # a path is optimal if it is at most so many times as long as the shortest


@dataclass(frozen=True)
class Walks:
    """solved (B,) bool, moves (B,) taken until the goal or the end, path (B, longest + 1) cells, -1 behind the end."""

    solved: Tensor
    moves: Tensor
    path: Tensor


def walk(logits: Tensor, open: Tensor, start: Tensor, goal: Tensor, strict: bool = False) -> Walks:
    """Follow the best move of every cell from start to goal: logits (B, N, 4).

    Only open moves to unvisited cells are compared; with `strict` all four are, and one into a wall or to a visited
    cell is the end.
    """
    B, N, _ = open.shape
    to, line = neighbours(math.isqrt(N), str(open.device)), torch.arange(B, device=open.device)
    cell, moves = start.clone(), torch.zeros_like(start)
    visited = torch.zeros(B, N, dtype=torch.bool, device=open.device).scatter_(1, start[:, None], True)
    walking, path = cell != goal, [start]
    for k in range(N - 1):
        if k % 8 == 0 and not bool(walking.any()):
            break
        allowed = open[line, cell] & ~visited.gather(1, to[cell])  # (B, 4)
        scores = logits[line, cell].float()
        best = (scores if strict else scores.masked_fill(~allowed, -math.inf)).argmax(1)
        walking = walking & allowed[line, best]
        cell = torch.where(walking, to[cell, best], cell)
        visited[line, cell] = True
        moves = moves + walking
        path.append(torch.where(walking, cell, -1))
        walking = walking & (cell != goal)
    return Walks(cell == goal, moves, torch.stack(path, 1))


def optimal(walks: Walks, length: Tensor) -> Tensor:
    """Which walks reached the goal over at most 1.05 times as many cells as the shortest path has, length (B,):
    (B,)."""
    return walks.solved & ((walks.moves + 1) * SLACK.denominator <= length * SLACK.numerator)  # float32 rounds a tie


def oracle(open: Tensor, start: Tensor, goal: Tensor) -> Tensor:
    """Logits that know every shortest path: (B, N, 4)."""
    return optimal_moves(open, distances(open, goal)).float()


def manhattan(open: Tensor, start: Tensor, goal: Tensor, random: torch.Generator) -> Tensor:
    """Logits of going where the goal is nearer as the crow flies, ties at random: it never looks at the maze."""
    n = math.isqrt(open.shape[1])
    to = neighbours(n, str(open.device))
    away = (to // n - (goal // n)[:, None, None]).abs() + (to % n - (goal % n)[:, None, None]).abs()
    return 1e-3 * torch.rand(open.shape, generator=random).to(open.device) - away


def at_random(open: Tensor, start: Tensor, goal: Tensor, random: torch.Generator) -> Tensor:
    """Logits of a walk that goes anywhere it may."""
    return torch.rand(open.shape, generator=random).to(open.device)


FLOORS = {"random": at_random, "manhattan": manhattan}
