"""Byte-level BPE tokenizers: trained on documents and cached by them, or parsed from a tokenizer.json."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mlexp.extras import need
from mlexp.store import Progress, announce, cache_dir, cached

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def trained_bpe(
    documents: list[str],
    vocab: int,
    *,
    special: tuple[str, ...] = (),
    min_frequency: int = 0,
    progress: Progress = None,
) -> Tokenizer:
    """A BPE of at most `vocab` tokens, the special ones first, whose pairs occur `min_frequency` times or more in the
    documents: from the cache, or trained now.
    """
    terms = hashlib.sha256(repr((special, min_frequency)).encode())
    terms.update("\0".join(documents).encode())
    path = cache_dir() / "tokenizers" / f"bpe-{vocab}-{terms.hexdigest()[:16]}.json"
    tokenizer: Tokenizer = cached(
        path, lambda: train_bpe(documents, vocab, special, min_frequency, progress), parse, progress
    )
    return tokenizer


def train_bpe(
    documents: list[str], vocab: int, special: tuple[str, ...], min_frequency: int, progress: Progress
) -> bytes:
    """The content of the trained tokenizer's tokenizer.json."""
    need("mlexp.text", "tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    characters = sum(map(len, documents))
    announce(progress, f"training a byte-level BPE of at most {vocab} tokens on {characters:,} characters")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=min_frequency,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return bpe.to_str().encode()


def parse(content: bytes) -> Tokenizer:
    """Raises ValueError for what is no tokenizer.json."""
    need("mlexp.text", "tokenizers")
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise ValueError(str(error)) from None
