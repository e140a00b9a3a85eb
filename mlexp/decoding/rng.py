"""Counter-based random numbers: a draw is a pure function of (path seed, position, draw), whoever asks and when.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014) folded over the words. Sample i of an arm therefore
sees the same uniforms in every arm, in any batch order, alone or among others: the arms share their random numbers.
"""

import numpy as np

GOLDEN, FIRST, SECOND = (np.uint64(w) for w in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _finalise(z):
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))


def _word(w):
    if isinstance(w, int):
        w = np.uint64(w & 0xFFFFFFFFFFFFFFFF)
    return np.atleast_1d(np.asarray(w).astype(np.uint64))


def mix(*words) -> np.ndarray:
    """Hash integers (or broadcastable arrays of them, one per word) to uint64; the order of the words matters."""
    h = np.zeros(1, np.uint64)
    for w in words:
        h = _finalise((h + GOLDEN) ^ _finalise(_word(w) + GOLDEN))
    return h


def path_seeds(seed: int, trees: int, samples: int) -> np.ndarray:
    """The 64-bit seed of every sample of a run, tree by tree: (trees * samples,)."""
    return mix(seed, np.repeat(np.arange(trees), samples), np.tile(np.arange(samples), trees))


def uniform(seeds, position, draw=0) -> np.ndarray:
    """Float64 in [0, 1) for (path seed, position[, draw]); the arguments broadcast."""
    return (mix(seeds, position, draw) >> np.uint64(11)) * 2.0**-53
