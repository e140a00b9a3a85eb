"""Natural text without a network: documents of paragraphs that occur once, and splits that share nothing.

The default is the standard library's `pydoc_data.topics` (79 documents, about 370 kB of English once paragraphs are
de-duplicated: raw, 58 % of held-out 60-grams are also in the training part).
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .windows import Hashes, among, codes_of, distinct, hashes

WINDOW = 60  # characters: held-out text and training text have no window of this length in common

Document = tuple[str, ...]  # paragraphs


@dataclass(frozen=True)
class Corpus:
    """Where a text is from, and its documents; the hash is of all their paragraphs in order."""

    name: str
    documents: tuple[Document, ...]

    @property
    def hash(self) -> str:
        digest = hashlib.sha256()
        for document in self.documents:
            for paragraph in document:
                digest.update(len(paragraph).to_bytes(8, "little") + paragraph.encode())
            digest.update(b"\0" * 8)
        return digest.hexdigest()[:16]

    @property
    def paragraphs(self) -> list[str]:
        return [paragraph for document in self.documents for paragraph in document]


def read_corpus(path: str | Path | None = None) -> Corpus:
    """The default corpus; a UTF-8 text file, whose paragraphs are its documents; or a folder, a document each `*.txt`.

    A paragraph that differs from an earlier one only in white space is dropped. Raises FileNotFoundError, and
    ValueError for what is not text.
    """
    if path is None:
        from pydoc_data import topics

        name, texts = "pydoc_topics", [topics.topics[key] for key in sorted(topics.topics)]
    else:
        path = Path(path)
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"corpus {path}: no *.txt file in this folder")
        name, texts = path.name, [_read(file) for file in files]
    seen: set[str] = set()
    documents = [_new_paragraphs(text, seen) for text in texts]
    if path is not None and len(documents) == 1:
        documents = [(paragraph,) for paragraph in documents[0]]
    return Corpus(name, tuple(document for document in documents if document))


def _new_paragraphs(text: str, seen: set[str]) -> Document:
    new = []
    for paragraph in re.split(r"\n\s*\n", text):
        normal = " ".join(paragraph.split())
        if normal and normal not in seen:
            seen.add(normal)
            new.append(paragraph.strip("\n"))
    return tuple(new)


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"corpus {path}: no such file; give a UTF-8 text file, or a folder of *.txt")
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"corpus {path}: not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x})"
        ) from None
    if text.startswith("version https://git-lfs.github.com/spec/"):
        raise ValueError(f"corpus {path}: a Git LFS pointer, not the text; fetch that with `git lfs pull`")
    if "\0" in text:
        raise ValueError(f"corpus {path}: not text (it holds NUL bytes)")
    return text


def split(corpus: Corpus, held_out: Mapping[str, int], window: int = WINDOW) -> dict[str, list[str]]:
    """Whole documents into parts, each a list of texts: every named part gets at least so many characters, `train` the
    rest.

    Which document goes where depends on the documents' content alone, not on their order. A paragraph of a held-out
    part that has `window` characters in a row in common with another part is left out. Raises ValueError where more
    than half of the text would be held out.
    """
    documents = sorted(corpus.documents, key=lambda d: hashlib.sha256(_text(d).encode()).digest())
    total, wanted = sum(map(len, corpus.paragraphs)), dict(held_out)
    while sum(wanted.values()) * 2 <= total:
        parts = _deal(documents, wanted)
        others = _all_windows(parts["train"], window)
        for name in held_out:
            parts[name] = _apart(parts[name], others, window)
            others = np.union1d(others, _all_windows(parts[name], window))
        texts = {name: [_text(d) for d in part] for name, part in parts.items()}
        short = [name for name, chars in held_out.items() if sum(map(len, texts[name])) < chars]
        if not short:
            return texts
        wanted |= {name: wanted[name] + max(1, held_out[name] // 10) for name in short}
    raise ValueError(f"corpus {corpus.name}: {total} distinct characters cannot spare {dict(held_out)}")


def _deal(documents: list[Document], wanted: Mapping[str, int]) -> dict[str, list[Document]]:
    """Each document to the first part that still lacks characters and would not get twice its share, or to train."""
    parts: dict[str, list[Document]] = {name: [] for name in (*wanted, "train")}
    have = dict.fromkeys(wanted, 0)
    for document in documents:
        size = len(_text(document))
        fits = (name for name, chars in wanted.items() if have[name] < chars and have[name] + size < 2 * chars)
        name = next(fits, "train")
        parts[name].append(document)
        have[name] = have.get(name, 0) + size
    return parts


def _apart(part: list[Document], others: Hashes, window: int) -> list[Document]:
    """The documents without the paragraphs that share a window with the others (sorted); none that is left empty."""

    def shares(paragraph: str) -> bool:
        return bool(among(hashes(codes_of(paragraph), window), others).any())

    rest = (tuple(p for p in document if not shares(p)) for document in part)
    return [document for document in rest if document]


def _text(document: Document) -> str:
    return "\n\n".join(document)


def _all_windows(documents: list[Document], window: int) -> Hashes:
    return distinct([codes_of(_text(d)) for d in documents], window)
