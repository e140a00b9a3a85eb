"""Characters as numbers: an alphabet that depends on no text, held-out parts of fixed size, windows, n-gram floors.

B sequences, T positions, W windows, V alphabet. A window of T + 1 characters is T inputs and, one to the right, T
targets.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mlexp.text import ngrams
from mlexp.text.corpus import WINDOW, read_corpus, split
from mlexp.text.windows import leak

from .learners import ALPHABET

HELD_OUT = {"test": 40_000, "validation": 20_000}  # characters
NEWLINE = ALPHABET - 1


@dataclass(frozen=True)
class Text:
    """Three parts, encoded, 1-D; `hash` is of all three, `leak` the share of held-out 60-grams that also train has."""

    name: str
    hash: str
    train: Tensor
    validation: Tensor
    test: Tensor
    leak: float


def encode(text: str) -> Tensor:
    """0 for a character that the alphabet lacks, 1..95 for the printable ones, 96 for a newline: 1-D int64."""
    codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32).long() if text else torch.zeros(0)
    printable = (codes >= 32) & (codes < 127)
    return torch.where(printable, codes - 31, torch.where(codes == 10, NEWLINE, 0)).long()


def load(path: str | Path | None = None) -> Text:
    """The corpus at `path` (None: the standard library's help texts): test, validation, and all the rest to train on.

    Raises FileNotFoundError, and ValueError where the text is too short for the held-out parts (mlexp.text.corpus).
    """
    corpus = read_corpus(path)
    texts = {name: "\n\n".join(part) for name, part in split(corpus, HELD_OUT).items()}
    parts = {name: encode(text[: HELD_OUT.get(name)]) for name, text in texts.items()}
    digest = hashlib.sha256(b"".join(_bytes(parts[name]) for name in ("train", "validation", "test")))
    held_out = torch.cat([parts["validation"], parts["test"]])  # as one text: windows over the seam count
    leaked = leak(held_out.numpy(), parts["train"].numpy(), WINDOW)
    return Text(corpus.name, digest.hexdigest()[:16], leak=leaked, **parts)


def _bytes(part: Tensor) -> bytes:
    return part.to(torch.uint8).numpy().tobytes()


def excerpt(train: Tensor, n_chars: int, seed: int) -> Tensor:
    """`n_chars` characters in a row; where they begin depends on the seed alone, so that a larger excerpt of a seed
    holds a smaller one.

    Raises ValueError where the text has fewer.
    """
    if n_chars > len(train):
        raise ValueError(f"n_chars={n_chars}: the training text has {len(train)} characters")
    offset = random.Random(seed).randrange(len(train))
    return train.roll(-offset)[:n_chars]


def batches(
    train: Tensor, size: int, length: int, seed: int, device: torch.device | str = "cpu"
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """`batches(step)`: inputs and targets, (B, T) each, of random windows; they depend on the seed and the step alone.

    Raises ValueError where the text is not longer than a window.
    """
    if len(train) <= length:
        raise ValueError(f"{len(train)} characters have no window of {length} and the character after it")
    windows = train.unfold(0, length + 1, 1)  # (W, T + 1), a view

    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = windows[torch.randint(len(windows), (size,), generator=generator)].to(device)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    return batch


def scored(text: Tensor, length: int, min_context: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Windows over a held-out text: inputs, targets (W, T), and which targets count, each of the text's exactly once.

    A target counts where `min_context` characters or more come before it in its window: those from the text's character
    number `min_context` on, whatever the length. Raises ValueError where the windows are shorter or the text is.
    """
    if not 1 <= min_context <= length < len(text):
        raise ValueError(
            f"min_context={min_context}, length={length}: needs 1 <= min_context <= length < {len(text)} characters"
        )
    last = len(text) - 1 - length
    starts = torch.tensor([*range(0, last, length - min_context + 1), last])
    windows = text.unfold(0, length + 1, 1)[starts]
    target = starts[:, None] + torch.arange(1, length + 1)  # (W, T): where in the text a target stands
    done = torch.cat([torch.tensor([min_context]), target[:-1, -1] + 1])  # (W,): the first target not yet counted
    return windows[:, :-1], windows[:, 1:], target >= done[:, None]


def floors(train: Tensor, held_out: Tensor, min_context: int = 1) -> dict[str, float]:
    """Mean losses in nats of a unigram and a bigram model (mlexp.text.ngrams) on the held-out characters that `scored`
    counts."""
    return ngrams.floors(train.numpy(), held_out.numpy(), ALPHABET, first=min_context)
