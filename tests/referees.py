"""Statistics by scipy and by their definitions: what the tests of reports compare a table with."""

import numpy as np
from scipy import stats


def t_interval(x, confidence=0.95):
    return stats.t.interval(confidence, len(x) - 1, np.mean(x), stats.sem(x))


def adjusted(p):
    """Holm's, by its definition."""
    order, worst, out = np.argsort(p), 0.0, np.empty(len(p))
    for rank, i in enumerate(order):
        worst = max(worst, (len(p) - rank) * p[i])
        out[i] = min(1.0, worst)
    return out
