"""Windows of a text, every stretch of so many characters or tokens, as 64-bit hashes: what two texts have in common."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.integer[Any]]  # one number a character or token
Hashes = NDArray[np.uint64]


def codes_of(text: str) -> Codes:
    """The code points of a string."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def hashes(codes: Codes, window: int) -> Hashes:
    """The hash of the window that starts at each place, in order; none where the text is shorter."""
    count = max(0, len(codes) - window + 1)
    values = np.zeros(count, np.uint64)
    for i in range(window if count else 0):
        values = values * np.uint64(0x9E3779B97F4A7C15) + codes[i : i + count].astype(np.uint64) + np.uint64(1)
    return values


def distinct(texts: list[Codes], window: int) -> Hashes:
    """The hashes of all windows within the texts, sorted, each once."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(hashes(codes, window) for codes in texts)]))


def among(own: Hashes, others: Hashes) -> NDArray[np.bool_]:
    """Which hashes are among the others, which are sorted."""
    if not len(others):
        return np.zeros(len(own), bool)
    found: NDArray[np.bool_] = others[np.searchsorted(others, own).clip(max=len(others) - 1)] == own
    return found


def shared(a: Codes, b: Codes, window: int) -> int:
    """How many distinct windows are in both."""
    return len(np.intersect1d(distinct([a], window), distinct([b], window)))


def leak(held_out: Codes, train: Codes, window: int) -> float:
    """Share, in [0, 1], of the held-out text's windows that are also in the training text; 0 where it has none."""
    own = hashes(held_out, window)
    return float(among(own, distinct([train], window)).mean()) if len(own) else 0.0
