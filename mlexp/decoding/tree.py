"""The tree a run grew: one entry per sampled token, and one per decision taken.

M nodes, T trees of the forest, n samples, G tokens a sample at most. depth 0 is the first new token; parent -1 is the
prompt. Plain numpy, no torch: a tree can be read, saved and tested without a model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Column = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Tree:
    parent: Column  # (M,) node, -1 = the prompt
    depth: Column  # (M,) index of the token in its sample
    token: Column  # (M,)
    entropy: Column  # (M,) nats, of the tempered and filtered distribution the token was drawn from
    logprob: Column  # (M,) of the token under that distribution
    multiplicity: Column  # (M,) samples that run through the node
    ended: Column  # (M,) the token is a stop token: the text ends with it
    tree: Column  # (M,) index in the forest
    tip: Column  # (decisions,) node that was extended, -1 = the prompt
    tip_tree: Column  # (decisions,)
    tip_depth: Column  # (decisions,) depth of the tokens decided
    high: Column  # (decisions,) H / ln V >= threshold
    split: Column  # (decisions,) the policy gave the tip more than one draw
    leaf: Column  # (n,) last node of every sample
    leaf_tree: Column  # (n,) tree of every sample
    new: int  # G
    end: int = -1  # the token that stands behind the end of a text

    def paths(self) -> Column:
        """Node indices of every sample from its first token on, -1 behind its end: (n, G)."""
        paths, node, row = np.full((len(self.leaf), self.new), -1), self.leaf, np.arange(len(self.leaf))
        while len(node):
            paths[row, self.depth[node]] = node
            node = self.parent[node]
            node, row = node[node >= 0], row[node >= 0]
        return paths

    def tokens(self) -> Column:
        """Token ids of every sample, `end` behind its end: (n, G)."""
        return self._along(self.token, self.end)

    def lengths(self) -> Column:
        """Tokens of every sample, its stop token included: (n,)."""
        lengths: Column = self.depth[self.leaf] + 1
        return lengths

    def logprobs(self) -> Column:
        """log p of every token of every sample under the distribution it was drawn from, 0 behind its end: (n, G)."""
        return self._along(self.logprob, 0.0)

    def surprisals(self) -> Column:
        """-log p of every token of every sample, in nats, 0 behind its end: (n, G)."""
        surprisals: Column = 0.0 - self.logprobs()
        return surprisals

    def _along(self, column: Column, behind: float) -> Column:
        paths = self.paths()
        return np.where(paths >= 0, column[paths], behind)

    def live_paths(self) -> list[int]:
        """Paths per depth that go on: the rows of the step that forwards them (the last depth is never forwarded)."""
        rows: list[int] = np.bincount(self.depth[~self.ended], minlength=self.new).tolist()
        return rows

    def branch_statistics(self) -> dict[str, int | float | None]:
        """Counts over the whole forest; positions are depths (0 = the first new token), None where nothing branched.

        branch_count: nodes, the prompt included, with at least two distinct children. branch_rate: share of the decided
        tips whose normalised entropy reached the threshold, whether or not the policy could act on it.
        """
        root = self.parent < 0
        key = np.where(root, -1 - self.tree, self.parent)
        _, index, children = np.unique(key, return_index=True, return_counts=True)
        at = self.depth[index[children >= 2]]
        where = (int(at.min()), float(at.mean()), int(at.max())) if len(at) else (None, None, None)
        return {
            "branch_count": len(at),
            "branch_rate": float(self.high.mean()),
            "branch_position_first": where[0],
            "branch_position_mean": where[1],
            "branch_position_last": where[2],
            "final_paths": len(np.unique(self.leaf)),
        }


def read_tree(steps: dict[str, Column], leaf_row: Column, leaf_tree: Column, new: int, end: int) -> Tree:
    """The tree behind the buffers of a run: T trees, W rows each, up to `new` depths.

    steps, each (depths, T, W): parent (row of its tree one depth before), token, entropy, logprob, multiplicity (0 =
    the row is not in use) of the tokens of a depth; ended (the row's text ends there or has ended before); high and
    split of the tips they were decided at. leaf_row and leaf_tree (n,): where every sample ends.
    """
    used, parent_row = steps["multiplicity"] > 0, steps["parent"]
    before = np.concatenate([np.zeros_like(used[:1]), steps["ended"][:-1]])
    over = np.take_along_axis(before, parent_row, 2)  # the text had ended before: no token of it
    live = used & ~over
    node = np.cumsum(live.ravel()).reshape(live.shape) - 1  # nodes stand by depth, tree, row
    for d in range(1, len(node)):  # the row of an ended text stands for its last token
        node[d] = np.where(over[d], np.take_along_axis(node[d - 1], parent_row[d], 1), node[d])
    above = np.concatenate([np.full_like(node[:1], -1), node[:-1]])
    parent = np.take_along_axis(above, parent_row, 2)
    depth, tree, _ = np.nonzero(live)
    tips = np.concatenate([np.zeros_like(live[:1]), (used & ~steps["ended"])[:-1]])
    tips[0, :, 0] = True  # the prompt
    tip_depth, tip_tree, _ = np.nonzero(tips)
    columns = {name: steps[name][live] for name in ("token", "entropy", "logprob", "multiplicity", "ended")}
    return Tree(parent=parent[live], depth=depth, **columns, tree=tree, tip=above[tips], tip_tree=tip_tree,
                tip_depth=tip_depth, high=steps["high"][tips], split=steps["split"][tips],
                leaf=node[-1, leaf_tree, leaf_row], leaf_tree=leaf_tree, new=new, end=end)  # fmt: skip
