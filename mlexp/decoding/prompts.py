"""Factual-QA prompts of any count and of exactly a given length.

A prompt is passages, then the question: the item's own passage nearest to it, before that other items' in an order
seeded by the prompt's number, cut on the left. Prompt i does not depend on how many are made.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """One line of a prompts file."""

    id: str
    passage: str
    question: str
    answer: str


@dataclass(frozen=True)
class MadePrompt:
    """A prompt ready to decode: token ids (length,), as a tuple of ints."""

    id: str
    ids: tuple[int, ...]
    answer: str


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts of a JSON-lines file. Raises FileNotFoundError, or ValueError naming file, line, field and value."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"prompts {path}: no such file; give JSON lines with {', '.join(_FIELDS)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # U+2028 and the like may stand within a JSON string
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts {path}: not UTF-8 text (byte {error.start})") from None
    items = [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise ValueError(f"prompts {path}: no prompt in it")
    seen: dict[str, int] = {}
    for number, item in enumerate(items, 1):
        if item.id in seen:
            raise ValueError(f"prompts {path}: id {item.id!r} of prompt {number} is that of prompt {seen[item.id]}")
        seen[item.id] = number
    return items


_FIELDS = tuple(field.name for field in fields(Prompt))


def _parse(path: Path, number: int, line: str) -> Prompt:
    where = f"prompts {path}, line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict) or set(row) != set(_FIELDS):
        got = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: fields {got}; expected exactly {', '.join(_FIELDS)}")
    for name, value in row.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: {name}={value!r}; expected some text")
    if not all(c.isascii() and (c.islower() or c.isdigit() or c == "_") for c in row["id"]):
        raise ValueError(f"{where}: id={row['id']!r}; expected letters a-z, digits and _")
    return Prompt(**row)


def prompt_ids(items: list[Prompt], count: int) -> list[str]:
    """The ids of the first `count` prompts: the items' own, then p10, p11, ... made from the items in turn."""
    if count < 1:
        raise ValueError(f"{count} prompts: expected at least 1")
    own = [item.id for item in items[:count]]
    taken = set(own)
    more = [f"p{i:02d}" for i in range(len(items), count)]
    if clash := taken & set(more):
        raise ValueError(f"ids {sorted(clash)} of the prompts file are those of made prompts; rename them")
    return own + more


def make_prompts(
    items: list[Prompt], tokenizer: "PreTrainedTokenizerBase", count: int, length: int, seed: int = 0
) -> list[MadePrompt]:
    """`count` prompts of exactly `length` tokens. A length below a question's own cuts the question on its left."""
    if length < 1:
        raise ValueError(f"prompt length {length}: expected at least 1 token")
    return [_make(items, tokenizer, i, name, length, seed) for i, name in enumerate(prompt_ids(items, count))]


def _make(
    items: list[Prompt], tokenizer: "PreTrainedTokenizerBase", i: int, name: str, length: int, seed: int
) -> MadePrompt:
    item, rng = items[i % len(items)], np.random.default_rng((seed, i))
    ids = _encode(tokenizer, f"{item.passage}\n\nQuestion: {item.question}\nAnswer:")
    while len(ids) < length:  # passages of the others, again in a new order where one round is not enough
        for j in rng.permutation(len(items)).tolist():
            if len(ids) < length and (j != i % len(items) or len(items) == 1):
                ids = _encode(tokenizer, f"{items[j].passage}\n\n") + ids
    return MadePrompt(name, tuple(ids[-length:]), item.answer)


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids
