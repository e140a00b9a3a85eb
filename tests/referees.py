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


def pooled(samples):
    """(standard deviation, degrees of freedom) of independent samples of one variance."""
    df = sum(len(x) - 1 for x in samples)
    return np.sqrt(sum((len(x) - 1) * np.var(x, ddof=1) for x in samples) / df), df


def contrast(samples, weights, confidence=0.95, bar=None):
    """(value, low, high) of a weighted sum of means of independent samples of one variance: t with pooled degrees of
    freedom, or `bar` standard errors."""
    sd, df = pooled(samples.values())
    value = sum(weight * np.mean(samples[name]) for name, weight in weights.items())
    error = sd * np.sqrt(sum(weight**2 / len(samples[name]) for name, weight in weights.items()))
    half = (stats.t.ppf(0.5 + confidence / 2, df) if bar is None else bar) * error
    return value, value - half, value + half


def verdict(low, high, above=-np.inf, below=np.inf):
    """Of an interval against the bounds of a statement."""
    if above < low and high < below:
        return "supported"
    return "refuted" if high <= above or low >= below else "undecided"
