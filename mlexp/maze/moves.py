"""Labels and geometry of mazes in torch: distances by relaxation, optimal moves, the eight symmetries, new endpoints.

B mazes on n x n cells, N = n * n; open (B, N, 4) bool: moves up, down, left, right that no wall stops; start, goal
(B,).
"""

import functools
import math

import torch
from torch import Tensor

STEP = ((-1, 0), (1, 0), (0, -1), (0, 1))  # row, column of up, down, left, right
FAR = 1 << 20  # the distance of a cell from which the goal cannot be reached
CHECK_EVERY = 16  # relaxations between checks of whether the last one changed anything: a check waits for the device


@functools.cache
def neighbours(n: int, device: str = "cpu") -> Tensor:
    """The cell that each move leads to, (N, 4); at the rim the cell itself, where no open move leads out anyway."""
    cell = torch.arange(n * n, device=device)
    row, column = cell // n, cell % n
    to = [((row + dr).clamp(0, n - 1)) * n + (column + dc).clamp(0, n - 1) for dr, dc in STEP]
    return torch.stack(to, 1)


def features(open: Tensor, start: Tensor, goal: Tensor) -> Tensor:
    """What a model reads of every cell: its four open moves, whether it is the start, whether the goal: (B, N, 6)."""
    cell = torch.arange(open.shape[1], device=open.device)
    ends = [(cell == end[:, None])[..., None] for end in (start, goal)]
    return torch.cat([open, *ends], -1).float()


def distances(open: Tensor, goal: Tensor) -> Tensor:
    """Moves from every cell to the goal, (B, N) int64, FAR where there is no way. Bellman-Ford, all mazes at once.

    In 32 bits, whose minimum torch vectorises on a CPU, and with the mazes last, where a move copies whole rows.
    """
    B, N, _ = open.shape
    to = neighbours(math.isqrt(N), str(open.device)).flatten()
    wall = torch.where(open, 1, FAR).int().permute(1, 2, 0).contiguous()  # (N, 4, B)
    d = torch.full((N, B), FAR, dtype=torch.int32, device=open.device)
    d.scatter_(0, goal[None], 0)
    for k in range(1, N):
        reached = d.index_select(0, to).view(N, 4, B).add_(wall)
        before, d = d, torch.minimum(d, reached.amin(1))  # never above FAR, where d began
        if k % CHECK_EVERY == 0 and torch.equal(before, d):
            break
    return d.T.contiguous().long()


def optimal_moves(open: Tensor, d: Tensor) -> Tensor:
    """The open moves that shorten the distance d (B, N): (B, N, 4) bool; none at the goal, several where paths tie."""
    to = neighbours(math.isqrt(open.shape[1]), str(open.device))
    return open & (d[:, to] < d[..., None])


@functools.cache
def symmetries(n: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """The dihedral group of the square: (8, N) where each cell goes, (8, 4) what each move becomes."""
    row, column = torch.arange(n * n) // n, torch.arange(n * n) % n
    cells, moves = [], []
    for flip in (False, True):
        for turns in range(4):
            r, c, steps = row, column, list(STEP)
            if flip:
                c, steps = n - 1 - c, [(dr, -dc) for dr, dc in steps]
            for _ in range(turns):  # a quarter turn takes (row, column) to (column, n - 1 - row)
                r, c, steps = c, n - 1 - r, [(dc, -dr) for dr, dc in steps]
            cells.append(r * n + c)
            moves.append(torch.tensor([STEP.index(step) for step in steps]))
    return torch.stack(cells).to(device), torch.stack(moves).to(device)


def transform(open: Tensor, start: Tensor, goal: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every maze under its own symmetry, which (B,) in 0 to 7; 0 leaves it as it is."""
    cells, moves = (table[which] for table in symmetries(math.isqrt(open.shape[1]), str(open.device)))
    turned = torch.empty_like(open).scatter_(2, moves[:, None].expand_as(open), open)
    turned = torch.empty_like(open).scatter_(1, cells[..., None].expand_as(open), turned)
    start, goal = (cells.gather(1, end[:, None])[:, 0] for end in (start, goal))
    return turned, start, goal


def new_endpoints(
    open: Tensor, start: Tensor, goal: Tensor, min_length: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Another start and goal for every maze, at least min_length cells apart: a goal drawn from all cells, a start from
    those that are far enough; where there is none, the old pair stays. -> (start, goal, distances to the goal)."""
    B, N, _ = open.shape
    drawn = torch.randint(N, (B,), generator=random).to(open.device)
    order = torch.rand(B, N, generator=random).to(open.device)
    d = distances(open, drawn)
    apart = (d >= min_length - 1) & (d < FAR)
    same = ~apart.any(1)
    far = order.masked_fill(~apart, -1).argmax(1)
    goal, start = torch.where(same, goal, drawn), torch.where(same, start, far)
    return start, goal, torch.where(same[:, None], distances(open, goal), d) if bool(same.any()) else d
