"""Text to train on: a synthetic source whose best possible loss is known, or documents; parts that share nothing.

V vocabulary, T tokens of a window. The synthetic source stands in for natural text: it needs no download, and a few CPU
seconds of training on it distinguish attention with positions from attention without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mlexp.store import Progress, announce
from mlexp.text import ngrams
from mlexp.text.corpus import read_corpus, split
from mlexp.text.tokenizer import parse, trained_bpe
from mlexp.text.windows import among, distinct, shared

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PARTS = ("train", "tune", "validation", "test")
WINDOW = 32  # tokens: a held-out part has no window of this length in common with another part
END = "<|endoftext|>"
ENDS = (END, "</s>", "<|end_of_text|>", "<eos>")  # what other tokenizers call it
BURN_IN, STRETCH = 64, 1024  # tokens dropped at the start of a stream; tokens that count as one document of it

Encoded = tuple[np.ndarray, int]  # a document's tokens and its UTF-8 bytes


@dataclass(frozen=True)
class Part:
    """Tokens in a row, where each document starts, and the UTF-8 bytes they stand for (None: it was never text)."""

    tokens: np.ndarray
    starts: np.ndarray
    n_bytes: int | None = None

    @property
    def bytes_per_token(self) -> float | None:
        return self.n_bytes and self.n_bytes / len(self.tokens)

    def documents(self) -> np.ndarray:
        """The document of every token."""
        return np.searchsorted(self.starts, np.arange(len(self.tokens)), side="right") - 1


@dataclass(frozen=True)
class Text:
    """A text in parts; `floors` are losses in nats on its test part: of guessing, of n-grams, and the lowest possible
    where it is known."""

    name: str
    vocab: int
    parts: dict[str, Part]
    floors: dict[str, float]

    @property
    def hash(self) -> str:
        digest = hashlib.sha256()
        for name, part in self.parts.items():
            digest.update(name.encode() + part.tokens.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """x_t is tables[k][x_{t - lags[k]}] with probability weights[k], else a draw from a Zipf law.

        lags 1 3 8    ... x_{t-8} . . . . x_{t-3} . x_{t-1}  x_t
                             |__________ .20 _|__ .30 _|_ .35 _|    else (.15) Zipf

    The seed fixes the tables, whose entries are Zipf draws too. Exponent and seed are chosen for a Bayes floor of 1.76
    nats and a unigram floor of 3.31.
    """

    vocab: int = 64
    lags: tuple[int, ...] = (1, 3, 8)
    weights: tuple[float, ...] = (0.35, 0.30, 0.20)
    exponent: float = 0.8
    seed: int = 1
    law: np.ndarray = field(init=False, repr=False, compare=False)  # (V,)
    tables: np.ndarray = field(init=False, repr=False, compare=False)  # (lags, V)

    def __post_init__(self) -> None:
        law = np.arange(1, self.vocab + 1.0) ** -self.exponent
        law /= law.sum()
        object.__setattr__(self, "law", law)
        tables = np.random.default_rng(self.seed).choice(self.vocab, (len(self.lags), self.vocab), p=law)
        object.__setattr__(self, "tables", tables)

    def stream(self, length: int, seed: tuple[int, ...]) -> np.ndarray:
        """So many tokens of the stream with this seed."""
        random, n = np.random.default_rng((self.seed, *seed)), length + BURN_IN
        tokens = random.choice(self.vocab, n, p=self.law)
        choice = random.choice(len(self.lags) + 1, n, p=[*self.weights, 1 - sum(self.weights)])
        parent = np.arange(n) - np.array([*self.lags, 0])[choice]
        known = (choice == len(self.lags)) | (parent < 0)
        waiting = np.flatnonzero(~known)
        while len(waiting):  # once per depth of the trees that the parents make: about 65 times, not n
            ready = known[parent[waiting]]
            now, waiting = waiting[ready], waiting[~ready]
            tokens[now] = self.tables[choice[now], tokens[parent[now]]]
            known[now] = True
        return tokens[BURN_IN:]

    def predictive(self, tokens: np.ndarray) -> np.ndarray:
        """The true distribution of every token after the first max(lags), given those before it: (N - max(lags), V)."""
        first = max(self.lags)
        p = np.tile((1 - sum(self.weights)) * self.law, (len(tokens) - first, 1))
        rows = np.arange(len(p))
        for lag, weight, table in zip(self.lags, self.weights, self.tables, strict=True):
            p[rows, table[tokens[first - lag : len(tokens) - lag]]] += weight
        return p

    def bayes(self, tokens: np.ndarray) -> float:
        """The loss of the true distribution, in nats: expected at every position, not at the tokens drawn."""
        p = self.predictive(tokens)
        return float(-(p * np.log(p)).sum(1).mean())


def synthetic_text(lengths: Mapping[str, int], seed: int = 0, source: Source | None = None) -> Text:
    """Streams of the source, one for each part and seed; `lengths` in tokens."""
    source = source or Source()
    parts = {}
    for name, length in lengths.items():
        tokens = source.stream(length, (seed, PARTS.index(name)))
        parts[name] = Part(tokens, np.arange(0, length, STRETCH))
    bayes = {"bayes": source.bayes(parts["test"].tokens)} if "test" in parts else {}
    text = Text(f"multi_lag_v{source.vocab}", source.vocab, parts, floors(parts, source.vocab) | bayes)
    _check_apart(text.parts)
    return text


def natural_text(
    held_out: Mapping[str, int],
    vocab: int,
    path: str | Path | None = None,
    tokenizer: str | Path | None = None,
    progress: Progress = None,
) -> Text:
    """Documents (see mlexp.text.corpus) in parts, `held_out` in characters, in at most `vocab` distinct tokens, one of
    which ends each document.

    The tokens are a byte-level BPE trained on the training part and cached by its content, or those of a tokenizer.json
    (a file, or its folder). A small text has fewer kinds of tokens than a big vocabulary: the model's embedding stays
    `vocab` rows long, and those that no token names are only ever pushed away. A held-out document that has WINDOW
    tokens in common with another part is left out. Raises FileNotFoundError, or ValueError for a tokenizer that does
    not fit.
    """
    corpus = read_corpus(path)
    texts = split(corpus, held_out)
    bpe = (
        _given(Path(tokenizer))
        if tokenizer
        else trained_bpe(texts["train"], vocab, special=(END,), min_frequency=2, progress=progress)
    )
    if bpe.get_vocab_size() > vocab:
        raise ValueError(f"tokenizer {tokenizer}: {bpe.get_vocab_size()} tokens; the model has {vocab}")
    end = _end(bpe, tokenizer)
    documents = {name: [_encode(bpe, end, document) for document in texts[name]] for name in ("train", *held_out)}
    parts = {name: _part(d) for name, d in _apart(documents, progress).items()}
    _check_apart(parts)
    return Text(corpus.name, vocab, parts, floors(parts, vocab))


def floors(parts: Mapping[str, Part], vocab: int) -> dict[str, float]:
    """Losses in nats on the test part: of guessing, and of n-grams of the training part (mlexp.text.ngrams)."""
    found = {"uniform": float(np.log(vocab))}
    if "train" in parts and "test" in parts:
        found |= ngrams.floors(parts["train"].tokens, parts["test"].tokens, vocab)
    return found


class Batches:
    """`batches(step)`: (tokens, targets), each (size, T): windows that do not overlap, in another order every epoch.

    The order comes from the seed alone, so every arm sees the same tokens. Batches are whole: the few windows left at
    the end of an epoch are skipped, others in every epoch.
    """

    def __init__(self, part: Part, context: int, size: int, seed: int, device: torch.device | str = "cpu"):
        self.windows = (len(part.tokens) - 1) // context
        if self.windows < size:
            raise ValueError(
                f"{len(part.tokens)} tokens: {self.windows} windows of {context}, fewer than a batch of {size}"
            )
        self.tokens = torch.from_numpy(part.tokens.astype(np.int64)).to(device)
        self.context, self.size, self.seed, self.per_epoch = context, size, seed, self.windows // size

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, turn = divmod(step, self.per_epoch)
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        chosen = torch.randperm(self.windows, generator=random)[turn * self.size : (turn + 1) * self.size]
        at = (chosen[:, None] * self.context + torch.arange(self.context + 1)).to(self.tokens.device)
        rows = self.tokens[at]
        return rows[:, :-1], rows[:, 1:]


def shared_windows(a: np.ndarray, b: np.ndarray, window: int = WINDOW) -> int:
    """How many distinct windows of so many tokens are in both."""
    return shared(a, b, window)


def _check_apart(parts: Mapping[str, Part]) -> None:
    names = list(parts)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            n = shared_windows(parts[a].tokens, parts[b].tokens)
            assert n == 0, f"{a} and {b} have {n} windows of {WINDOW} tokens in common"


def _apart(documents: dict[str, list[Encoded]], progress: Progress) -> dict[str, list[Encoded]]:
    """Without the held-out documents that have a window in common with a part before theirs."""
    parts, seen = {}, np.empty(0, np.uint64)
    for name, part in documents.items():
        hashes = [distinct([tokens], WINDOW) for tokens, _ in part]
        keep = [name == "train" or not among(own, seen).any() for own in hashes]
        if not all(keep):
            announce(
                progress,
                f"{name}: {keep.count(False)} of {len(keep)} documents left out: they share text with another part",
            )
        if not any(keep):
            raise ValueError(f"{name}: every document has {WINDOW} tokens in common with another part")
        parts[name] = [document for document, k in zip(part, keep, strict=True) if k]
        seen = np.union1d(seen, np.concatenate([own for own, k in zip(hashes, keep, strict=True) if k]))
    return parts


def _part(documents: list[Encoded]) -> Part:
    starts = np.cumsum([0, *(len(tokens) for tokens, _ in documents[:-1])])
    return Part(np.concatenate([tokens for tokens, _ in documents]), starts, sum(n for _, n in documents))


def _encode(bpe: Tokenizer, end: int, document: str) -> Encoded:
    return np.array([*bpe.encode(document, add_special_tokens=False).ids, end]), len(document.encode())


def _given(path: Path) -> Tokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"tokenizer {file}: no such file; give a tokenizer.json or its folder")
    try:
        return parse(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"tokenizer {file}: {error}") from None


def _end(bpe: Tokenizer, path: str | Path | None) -> int:
    """The token that ends a document: the one that tokenizer_config.json beside it names, or the first usual one."""
    named: tuple[str, ...] = ENDS
    if path:
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        config = folder / "tokenizer_config.json"
        own = json.loads(config.read_text(encoding="utf-8-sig")).get("eos_token") if config.is_file() else None
        named = ((own["content"] if isinstance(own, dict) else own), *ENDS) if own else ENDS
    found = (bpe.token_to_id(token) for token in named)
    end: int | None = next((token for token in found if token is not None), None)
    if end is None:
        raise ValueError(f"tokenizer {path}: has none of {', '.join(named)} to end a document with")
    return end
