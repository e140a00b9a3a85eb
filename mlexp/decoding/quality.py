"""How good samples are: surprisal, variety, whether they answer, how many independent ones they are worth.

n samples, G tokens. Every decoder's samples go through the same functions, in untimed passes.
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .engine import grow, score
from .settings import DECODER_NAMES, TREE_DECODERS, Sampling


def surprisal(lm, prompt: Tensor, tokens: Tensor, temperature: float) -> np.ndarray:
    """-log p of every token under the tempered model, in nats, float64: prompt (P,), tokens (n, G) -> (n, G)."""
    return score(lm.model, prompt, np.asarray(tokens), temperature)


def unique_sequences(tokens) -> int:
    """How many of the samples are distinct."""
    return len(np.unique(np.asarray(tokens), axis=0))


def distinct_n(tokens, n: int) -> float:
    """Distinct n-grams over all n-grams of all samples (Li et al. 2016): (0, 1], NaN for samples shorter than n."""
    grams = [gram for row in np.asarray(tokens).tolist() for gram in _grams(row, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(tokens, order: int = 4) -> float:
    """Mean BLEU of each sample against all the others (Zhu et al. 2018, Texygen): [0, 1], 1 = all alike.

    BLEU of Papineni et al. 2002 over token ids, uniform weights up to `order`, clipped counts; orders above 1 smoothed
    by adding one to matches and total (Lin and Och 2004, method 2 of Chen and Cherry 2014). Lengths are equal, so there
    is no brevity penalty. NaN for fewer than two samples.
    """
    rows = np.asarray(tokens).tolist()
    if len(rows) < 2:
        return math.nan
    logs = np.zeros(len(rows))
    for n in range(1, min(order, len(rows[0])) + 1):
        counts = [Counter(_grams(row, n)) for row in rows]
        first, second = _two_largest(counts)
        for i, own in enumerate(counts):
            hit = sum(min(c, second[g] if c == first[g] else first[g]) for g, c in own.items())
            add = n > 1
            precision = (hit + add) / (sum(own.values()) + add)
            logs[i] += math.log(precision) if precision else -math.inf
    return float(np.exp(logs / min(order, len(rows[0]))).mean())


def _two_largest(counts: list[Counter]) -> tuple[Counter, Counter]:
    """Per n-gram its largest count in one sample and the second largest: the reference maximum of all the others."""
    first, second = Counter(), Counter()
    for own in counts:
        for gram, c in own.items():
            first[gram], second[gram] = max(first[gram], c), max(second[gram], min(first[gram], c))
    return first, second


def _grams(row: list, n: int):
    return zip(*(row[i:] for i in range(n)), strict=False)


def contains_answer(lm, tokens, answer: str) -> float:
    """Share of the samples whose text contains the answer, case and spacing ignored: [0, 1]."""
    if not answer.strip():
        raise ValueError(f"answer {answer!r}: expected some text")
    wanted = " ".join(answer.casefold().split())
    texts = [lm.tokenizer.decode(row) for row in np.asarray(tokens).tolist()]
    return float(np.mean([wanted in " ".join(text.casefold().split()) for text in texts]))


@dataclass(frozen=True)
class Effective:
    """`samples`: how many independent ones a tree's are worth for their mean surprisal; None without variance."""

    samples: float | None
    iid_variance: float  # nats^2, of one path's surprisal
    tree_variance: float  # nats^2, of a tree's mean path surprisal
    mean_surprisal: float  # nats a path, over all trees
    iid_mean_surprisal: float  # nats a path: the exact expectation's estimate
    replicates: int


def effective_samples(
    lm, prompt: Tensor, sampling: Sampling, decoder: str, replicates: int = 16, seed: int = 0, iid_replicates: int = 4
) -> Effective:
    """N Var(iid) / Var(tree) of the tree's mean path surprisal, from `replicates` trees grown as one forest.

    Var(iid) is the variance of one path's surprisal over N, from iid_replicates * N exact samples (`dedup`). For
    decoders whose samples are independent the answer is N by construction and nothing is run for it. Whatever is
    measured is reported, above N too: with r replicates its relative error is about sqrt(2 / (r - 1)). None if no
    variance was seen (the model is certain of every token, or every tree is the same).
    """
    if decoder not in DECODER_NAMES:
        raise ValueError(f"unknown decoder {decoder!r}; choose from {', '.join(DECODER_NAMES)}")
    if replicates < 2 or iid_replicates * sampling.samples < 2:
        raise ValueError(f"replicates={replicates}, iid_replicates={iid_replicates}: a variance needs at least 2")
    iid = _paths(lm, prompt, sampling, "dedup", seed + 1, iid_replicates)[0]
    spread = float(iid.var(ddof=1))
    if decoder not in TREE_DECODERS or decoder == "dedup":
        return Effective(float(sampling.samples), spread, spread / sampling.samples, iid.mean(), iid.mean(), 0)
    paths, tree = _paths(lm, prompt, sampling, decoder, seed, replicates)
    means = np.bincount(tree, paths) / np.bincount(tree)
    between = float(means.var(ddof=1))
    worth = spread / between if between > 0 and spread > 0 else None
    return Effective(worth, spread, between, float(means.mean()), float(iid.mean()), replicates)


def _paths(lm, prompt, sampling, decoder, seed, trees):
    """Surprisal of every path of a forest, nats, and the tree it belongs to: (n,), (n,)."""
    tree, _ = grow(lm.model, torch.as_tensor(prompt), sampling, decoder, seed, trees)
    return tree.surprisals().sum(1), tree.leaf_tree
