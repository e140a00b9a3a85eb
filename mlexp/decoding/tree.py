"""The tree a run grew: one entry per sampled token, and one per decision taken.

M nodes, T trees of the forest, n samples, G tokens a sample. depth 0 is the first new token; parent -1 is the prompt.
Plain numpy, no torch: a tree can be read, saved and tested without a model.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tree:
    parent: np.ndarray  # (M,) node, -1 = the prompt
    depth: np.ndarray  # (M,) index of the token in its sample
    token: np.ndarray  # (M,)
    entropy: np.ndarray  # (M,) nats, of the tempered distribution the token was drawn from
    logprob: np.ndarray  # (M,) of the token under that distribution
    multiplicity: np.ndarray  # (M,) samples that run through the node
    tree: np.ndarray  # (M,) index in the forest
    tip: np.ndarray  # (decisions,) node that was extended, -1 = the prompt
    tip_tree: np.ndarray  # (decisions,)
    tip_depth: np.ndarray  # (decisions,) depth of the tokens decided
    high: np.ndarray  # (decisions,) H / ln V >= threshold
    split: np.ndarray  # (decisions,) the policy gave the tip more than one draw
    leaf: np.ndarray  # (n,) last node of every sample
    leaf_tree: np.ndarray  # (n,) tree of every sample

    def paths(self) -> np.ndarray:
        """Node indices of every sample from the first token to the last: (n, G)."""
        columns, node = [], self.leaf
        while len(node) and node[0] >= 0:
            columns.append(node)
            node = self.parent[node]
        return np.stack(columns[::-1], 1)

    def tokens(self) -> np.ndarray:
        return self.token[self.paths()]

    def surprisals(self) -> np.ndarray:
        """-log p of every token of every sample under the tempered model, in nats: (n, G)."""
        return -self.logprob[self.paths()]

    def live_paths(self) -> list[int]:
        """Nodes per depth: the rows of the step that forwards them (the last depth is never forwarded)."""
        return np.bincount(self.depth).tolist()

    def branch_statistics(self) -> dict:
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


def read_tree(steps: dict[str, np.ndarray], leaf_row: np.ndarray, leaf_tree: np.ndarray) -> Tree:
    """The tree behind the buffers of a run: T trees, W rows each, G depths.

    steps, each (G, T, W): parent (row of its tree one depth before), token, entropy, logprob, multiplicity (0 = the
    row is not in use) of the tokens of a depth; high and split of the tips they were decided at. leaf_row and
    leaf_tree (n,): where every sample ends.
    """
    live = steps["multiplicity"] > 0
    node = np.cumsum(live.ravel()).reshape(live.shape) - 1  # nodes stand by depth, tree, row
    above = np.concatenate([np.full_like(node[:1], -1), node[:-1]])
    parent = np.take_along_axis(above, steps["parent"], 2)
    depth, tree, _ = np.nonzero(live)
    tips = np.concatenate([np.zeros_like(live[:1]), live[:-1]])
    tips[0, :, 0] = True  # the prompt
    tip_depth, tip_tree, _ = np.nonzero(tips)
    columns = (steps[name][live] for name in ("token", "entropy", "logprob", "multiplicity"))
    return Tree(parent[live], depth, *columns, tree, above[tips], tip_tree, tip_depth, steps["high"][tips],
                steps["split"][tips], leaf=node[-1, leaf_tree, leaf_row], leaf_tree=leaf_tree)  # fmt: skip
