"""How good samples are: surprisal, variety, whether they answer, how many independent ones they are worth.

n samples, G tokens. Every decoder's samples go through the same functions, in untimed passes.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .effective import MIN_REPLICATES, Estimate, compare, functionals, worst
from .engine import grow
from .scoring import score
from .settings import Sampling, decoder_row

if TYPE_CHECKING:
    from .loading import LanguageModel

T = TypeVar("T")
Tokens = ArrayLike | Sequence[Sequence[int]]  # samples as (n, G), or as rows of any lengths

ROWS = 640  # of forests grown to measure effective samples: their keys and values have to fit the memory


def surprisal(
    lm: "LanguageModel", prompt: Tensor, tokens: ArrayLike, sampling: Sampling, lengths: ArrayLike | None = None
) -> NDArray[np.float64]:
    """-log p of every token under the distribution that `sampling` draws from, in nats, float64, 0 behind the end of a
    text: prompt (P,), tokens (n, G), lengths (n,) -> (n, G)."""
    rule = (sampling.top_k, sampling.top_p, None if lengths is None else np.asarray(lengths))
    return score(lm.model, prompt, np.asarray(tokens), sampling.temperature, 128, *rule)


def texts(tokens: ArrayLike, lengths: ArrayLike) -> list[list[int]]:
    """Tokens (n, G) as lists that end where their texts end, their stop token included."""
    return [row[:length] for row, length in zip(np.asarray(tokens).tolist(), np.asarray(lengths).tolist(), strict=True)]


def unique_sequences(tokens: ArrayLike) -> int:
    """How many of the samples are distinct."""
    return len(np.unique(np.asarray(tokens), axis=0))


def distinct_n(tokens: Tokens, n: int) -> float:
    """Distinct n-grams over all n-grams of all samples (Li et al. 2016): (0, 1], NaN for samples shorter than n."""
    grams = [gram for row in _lists(tokens) for gram in _grams(row, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(tokens: Tokens, order: int = 4) -> float:
    """Mean BLEU of each sample against all the others (Zhu et al. 2018, Texygen): [0, 1], 1 = all alike.

    BLEU of Papineni et al. 2002 over token ids, uniform weights up to `order`, clipped counts; orders above 1 smoothed
    by adding one to matches and total (Lin and Och 2004, method 2 of Chen and Cherry 2014). No brevity penalty; a
    sample shorter than `order` has n-grams up to its own length. NaN for fewer than two samples.
    """
    rows = _lists(tokens)
    if len(rows) < 2:
        return math.nan
    logs, orders = np.zeros(len(rows)), np.array([min(order, len(row)) for row in rows])
    for n in range(1, orders.max() + 1):
        counts = [Counter(_grams(row, n)) for row in rows]
        first, second = _two_largest(counts)
        for i, own in enumerate(counts):
            if n > orders[i]:
                continue
            hit = sum(min(c, second[g] if c == first[g] else first[g]) for g, c in own.items())
            add = n > 1
            precision = (hit + add) / (sum(own.values()) + add)
            logs[i] += math.log(precision) if precision else -math.inf
    return float(np.exp(logs / orders).mean())


def _lists(tokens: Tokens) -> list[list[int]]:
    """Samples as lists: an array (n, G), or lists of any lengths."""
    rows: list[list[int]] = tokens if isinstance(tokens, list) else np.asarray(tokens).tolist()
    return rows


def _two_largest(counts: list[Counter[T]]) -> tuple[Counter[T], Counter[T]]:
    """Per n-gram its largest count in one sample and the second largest: the reference maximum of all the others."""
    first: Counter[T] = Counter()
    second: Counter[T] = Counter()
    for own in counts:
        for gram, c in own.items():
            first[gram], second[gram] = max(first[gram], c), max(second[gram], min(first[gram], c))
    return first, second


def _grams(row: list[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(row[i:] for i in range(n)), strict=False)


def contains_answer(lm: "LanguageModel", tokens: Tokens, answer: str) -> float:
    """Share of the samples whose text contains the answer, case and spacing ignored: [0, 1]."""
    return float(np.mean(answer_hits(lm, tokens, answer)))


def answer_hits(lm: "LanguageModel", tokens: Tokens, answer: str) -> NDArray[np.bool_]:
    """Which of the samples' texts contain the answer, case and spacing ignored: (n,) bool."""
    if not answer.strip():
        raise ValueError(f"answer {answer!r}: expected some text")
    wanted = " ".join(answer.casefold().split())
    found = (str(lm.tokenizer.decode(row)) for row in _lists(tokens))
    return np.array([wanted in " ".join(text.casefold().split()) for text in found])


@dataclass(frozen=True)
class Effective:
    """How many independent samples those of one tree are worth: by functional, and for the worst of them."""

    samples: float | None  # for the worst functional; None where none could be measured
    worst: str | None  # its name; None where samples are independent, too
    by: dict[str, Estimate]
    replicates: int


def effective_samples(
    lm: "LanguageModel", prompt: ArrayLike, sampling: Sampling, decoder: str, replicates: int = 128, seed: int = 0,
    iid_replicates: int | None = None, hits: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
    progress: Callable[[int], None] = lambda trees: None,
) -> Effective:  # fmt: skip
    """Effective samples of a tree, from `replicates` trees and the samples of `iid_replicates` trees of `dedup`, which
    are independent (as many trees if None). See `effective` for what is estimated and when it is not.

    For decoders whose samples are independent the answer is N by construction, and nothing is run for it. `hits` says
    of tokens (n, G) which samples contain the answer: then that is one of the functionals. `progress` is called with
    the number of trees grown so far.
    """
    row = decoder_row(decoder)
    sampling = row.settings(sampling)
    iid_replicates = replicates if iid_replicates is None else iid_replicates
    if replicates < 2 or iid_replicates * sampling.samples < 2:
        raise ValueError(f"replicates={replicates}, iid_replicates={iid_replicates}: a variance needs at least 2")
    if row.policy is None or row.lossless:
        return Effective(float(sampling.samples), None, {}, 0)
    if replicates < MIN_REPLICATES:
        return Effective(None, None, {}, replicates)
    run = (lm, torch.as_tensor(prompt), sampling)
    own, tree = _functionals(*run, row.policy, seed, range(replicates), hits, progress)
    others = range(replicates, replicates + iid_replicates)
    iid, _ = _functionals(*run, "dedup", seed, others, hits, progress)
    by = compare(own, tree, iid)
    name, samples = worst(by) or (None, None)
    return Effective(samples, name, by, replicates)


def _functionals(
    lm: "LanguageModel", prompt: Tensor, sampling: Sampling, policy: str, seed: int, trees: range,
    hits: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None, progress: Callable[[int], None],
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:  # fmt: skip
    """The functionals of all samples of some trees, and the number of each sample's tree, from 0: {name: (n,)}, (n,).

    The trees are grown a forest at a time, whose seed is the number of its first tree from `seed` on.
    """
    parts, numbers, at_once = [], [], max(1, ROWS // max(sampling.samples, sampling.max_paths))
    for first in trees[::at_once]:
        progress(first)
        forest, _ = grow(lm.model, prompt, sampling, policy, seed + first, min(at_once, trees.stop - first))
        tokens = forest.tokens()
        parts.append(functionals(tokens, forest.surprisals(), forest.lengths(), hits(tokens) if hits else None))
        numbers.append(first - trees.start + forest.leaf_tree)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, np.concatenate(numbers)
