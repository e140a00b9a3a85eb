"""The text that gpt2_nano is trained on, one paragraph in ten held out, and a tokenizer trained on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlexp.store import Progress
from mlexp.text.corpus import read_corpus
from mlexp.text.tokenizer import trained_bpe

from .recipes import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MIN_CHARS = 20_000  # below this neither a tokenizer nor a held-out part means anything
HELD_OUT = 10  # one paragraph in ten


@dataclass(frozen=True)
class Corpus:
    name: str
    hash: str
    train: str
    held_out: str


def load_corpus(path: str | Path | None = None) -> Corpus:
    """The default corpus, or a text file or folder (see mlexp.text.corpus). Paragraphs are split into train and
    held-out by their own hash.

    Raises FileNotFoundError, or ValueError for a file that is not text or shorter than 20,000 characters once its
    repeated paragraphs are dropped.
    """
    text = read_corpus(path)
    paragraphs = text.paragraphs
    is_held_out = [int(hashlib.blake2b(p.encode(), digest_size=4).hexdigest(), 16) % HELD_OUT == 0 for p in paragraphs]
    train, held_out = (
        "\n\n".join(p for p, h in zip(paragraphs, is_held_out, strict=True) if h is side) for side in (False, True)
    )
    if len(train) < MIN_CHARS:
        raise ValueError(
            f"corpus {path}: {len(train)} characters of distinct training paragraphs; at least {MIN_CHARS} needed"
        )
    if not held_out:
        raise ValueError(f"corpus {path}: {len(paragraphs)} distinct paragraphs leave none to hold out")
    return Corpus(text.name, digest(train, held_out), train, held_out)


def bpe_tokenizer(corpus: Corpus, vocab: int, progress: Progress = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab` tokens trained on the corpus's training part, as a transformers tokenizer."""
    from transformers import PreTrainedTokenizerFast

    bpe = trained_bpe([corpus.train], vocab, progress=progress)
    return PreTrainedTokenizerFast(tokenizer_object=bpe)  # type: ignore[no-untyped-call]  # in transformers
