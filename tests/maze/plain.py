"""Mazes by the plainest means: searches and walks cell by cell, and the solvers' formulas written out again."""

import math
from collections import deque
from types import SimpleNamespace

import torch
from torch.nn.functional import gelu

STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right


def neighbour(cell, move, n):
    (row, column), (down, right) = divmod(int(cell), n), STEPS[move]
    return (row + down) * n + column + right


def search(open, goal):
    """Moves from every cell to the goal, None where there is no way: breadth first over the open moves (N, 4)."""
    n = math.isqrt(len(open))
    far, queue = {int(goal): 0}, deque([int(goal)])
    while queue:
        cell = queue.popleft()
        for move in range(4):
            if open[cell][move] and (to := neighbour(cell, move, n)) not in far:
                far[to] = far[cell] + 1
                queue.append(to)
    return [far.get(cell) for cell in range(len(open))]


def best_moves(open, goal):
    """The open moves of every cell that lead nearer to the goal, as a set a cell."""
    n, d = math.isqrt(len(open)), search(open, goal)
    return [
        {m for m in range(4) if open[cell][m] and d[cell] is not None and d[neighbour(cell, m, n)] == d[cell] - 1}
        for cell in range(len(open))
    ]


def follow(logits, open, start, goal, strict=False):
    """(whether the goal was reached, the cells walked) of the best open move to an unvisited cell, over and over."""
    n, path = math.isqrt(len(open)), [int(start)]
    while path[-1] != goal:
        cell = path[-1]
        free = [m for m in range(4) if open[cell][m] and neighbour(cell, m, n) not in path]
        best = max(range(4) if strict else free, key=lambda m: float(logits[cell][m]), default=None)
        if best not in free:
            return False, path
        path.append(neighbour(cell, best, n))
    return True, path


def outcomes(logits, mazes):
    """What `score` finds of logits (M, N, 4), maze by maze, and the share of cells whose best move is optimal."""
    found = SimpleNamespace(solved=[], optimal=[], excess=[], strict=[], path=[])
    right = []
    for row, open, start, goal in zip(logits.tolist(), mazes.open, mazes.start, mazes.goal, strict=True):
        solved, path = follow(row, open, start, goal)
        shortest = search(open, goal)[start] + 1
        found.solved.append(solved)
        found.optimal.append(solved and len(path) * 20 <= 21 * shortest)
        found.excess.append(len(path) / shortest - 1 if solved else math.nan)
        found.strict.append(follow(row, open, start, goal, strict=True)[0])
        found.path.append(path)
        best = best_moves(open, goal)
        right += [row[c].index(max(row[c])) in best[c] for c in range(len(open)) if c != goal]
    found.cells = sum(right) / len(right)
    return found


def share(values):
    return sum(map(bool, values)) / len(values)


# --- the solvers, from the formulas at the head of mlexp/maze/models.py; everything in the dtype of x


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def affine(x, layer):
    return torch.einsum("...i,oi->...o", x, layer.weight) + (0 if layer.bias is None else layer.bias)


def gru(x, h, cell):
    """Cho et al. 2014, with the reset gate applied after the product, as in cuDNN."""
    a = torch.einsum("...i,oi->...o", x, cell.weight_ih) + cell.bias_ih
    b = torch.einsum("...i,oi->...o", h, cell.weight_hh) + cell.bias_hh
    (ra, za, na), (rb, zb, nb) = a.chunk(3, -1), b.chunk(3, -1)
    reset, keep = torch.sigmoid(ra + rb), torch.sigmoid(za + zb)
    return (1 - keep) * torch.tanh(na + reset * nb) + keep * h


def turn(x, n):
    """2-D rotary positions of x (B, N, width): pair i of the row, then of the column, by angle pi 100^(-i / pairs)."""
    half, pairs, out = x.shape[-1] // 2, x.shape[-1] // 4, x.clone()
    for cell in range(n * n):
        for i in range(half):
            position = cell // n if i < pairs else cell % n
            angle = position * math.pi * 100 ** (-(i % pairs) / pairs)
            a, b = x[:, cell, i], x[:, cell, i + half]
            out[:, cell, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, cell, i + half] = a * math.sin(angle) + b * math.cos(angle)
    return out


def block_output(h, block, heads, gate):
    n, width = math.isqrt(h.shape[1]), h.shape[2] // heads
    q, k, v = affine(layer_norm(h, block.norm_1), block.qkv).chunk(3, -1)
    parts = []
    for i in range(heads):
        columns = slice(i * width, (i + 1) * width)
        scores = turn(q[..., columns], n) @ turn(k[..., columns], n).transpose(1, 2) / math.sqrt(width)
        parts.append(scores.softmax(-1) @ v[..., columns] * (1 if gate is None else gate[..., i : i + 1]))
    h = h + affine(torch.cat(parts, -1), block.out)
    return h + affine(gelu(affine(layer_norm(h, block.norm_2), block.up)), block.down)


def forward(model, x, heads, R, T=None, gates="none", slow=True, uniform=False):
    """(logits after every iteration, gates of every step) by the formulas; weights alone are taken from the model."""
    h0 = h = affine(x, model.embed)
    logits, routing, t = [], [], 0
    width = x.new_zeros(*x.shape[:2], model.blocks[0].out.weight.shape[0] // 4)
    z_slow, z_fast = width, width
    for r in range(R):
        h = h + h0 if r > 0 else h
        for layer, block in enumerate(model.blocks):
            gate = None
            if gates == "static":
                gate = heads * model.gates.scores[layer].softmax(-1).expand(*x.shape[:2], heads)
                routing.append(gate)
            if gates == "hrm" and not uniform:
                c = model.gates
                u = affine(layer_norm(h, c.norm), c.read)
                if slow and t % T == 0:
                    z_slow = layer_norm(gru(u, z_slow, c.slow_cell), c.slow_norm)
                z_fast = layer_norm(gru(torch.cat([u, z_slow], -1), z_fast, c.fast_cell), c.fast_norm)
                gate = heads * affine(z_fast + affine(z_slow, c.mix), c.routers[layer]).softmax(-1)
                routing.append(gate)
            h = block_output(h, block, heads, gate)
            t += 1
        logits.append(affine(layer_norm(h, model.norm), model.head))
    return torch.stack(logits), routing
