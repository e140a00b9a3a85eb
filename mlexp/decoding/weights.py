"""Where a model's weights come from, and what identifies them; cheap, and free of torch.

`auto` = the Hugging Face cache if the model is there, else made here; `random` = seeded random weights; or a folder
that is one model (config.json and safetensors) or holds one subfolder per model id or hub name.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mlexp.store import cache_dir, write

from .models import Model, model_row
from .recipes import NANO, STANDIN, Nano, StandIn, nano_hash, standin_hash
from .text import load_corpus

PATTERNS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class Source:
    """`kind` is what a record says: pretrained (read from `folder`), random or trained (made here)."""

    kind: str
    folder: Path | None = None


def find_weights(name: str, weights: str | Path = "auto") -> Source:
    """Where the weights of a model come from. Raises FileNotFoundError or ValueError for a folder without them."""
    row = model_row(name)
    if str(weights) == "random":
        return Source("random")
    if str(weights) != "auto":
        return Source("pretrained", _in_folder(name, row, Path(weights)))
    for repo in row.hub:
        if folder := _in_hub_cache(repo):
            return Source("pretrained", _checked(name, row, folder))
    return Source("random" if row.hub else "trained")


def identity(
    name: str, weights: str | Path = "auto", corpus=None, nano: Nano = NANO, standin: StandIn = STANDIN
) -> dict:
    """What load() will use: weights (kind), weights_hash, corpus, corpus_hash (None where no corpus plays a part)."""
    row, source = model_row(name), find_weights(name, weights)
    if source.kind == "pretrained":
        return {
            "weights": "pretrained",
            "weights_hash": _content_hash(source.folder),
            "corpus": None,
            "corpus_hash": None,
        }
    text = load_corpus(corpus)
    made = standin_hash(row, standin) if source.kind == "random" else nano_hash(row, nano, text.hash)
    if own_tokenizer(row):
        return {"weights": source.kind, "weights_hash": made, "corpus": None, "corpus_hash": None}
    return {"weights": source.kind, "weights_hash": made, "corpus": text.name, "corpus_hash": text.hash}


def own_tokenizer(row: Model) -> Path | None:
    """The folder of the model's own tokenizer in the Hugging Face cache, weights or not."""
    for repo in row.hub:
        for file in TOKENIZER_FILES:
            if found := _cached(repo, file):
                return found.parent
    return None


def _cached(repo: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file)
    return Path(found) if isinstance(found, str) else None


def _in_hub_cache(repo: str) -> Path | None:
    config = _cached(repo, "config.json")
    return config.parent if config and weight_files(config.parent) else None


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, safetensors before torch's own."""
    for pattern in PATTERNS:
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def _in_folder(name: str, row: Model, path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"weights={str(path)!r} for {name}: no such folder; allowed: auto, random, or a folder")
    tried = [path, path / name, *(path / hub for hub in row.hub), *(path / hub.split("/")[-1] for hub in row.hub)]
    for folder in tried:
        if (folder / "config.json").is_file() and weight_files(folder):
            return _checked(name, row, folder)
    raise FileNotFoundError(
        f"weights={str(path)!r} has no weights for {name}: looked for config.json with {' or '.join(PATTERNS)} in "
        f"{', '.join(dict.fromkeys(map(str, tried)))}; allowed: auto, random, a model's folder, or a folder of such"
    )


def _checked(name: str, row: Model, folder: Path) -> Path:
    """A folder of another architecture must not pass for the model asked for."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder}: config.json is not JSON ({type(error).__name__})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder}: config.json is no object with n_layer, n_embd and n_head")
    has = tuple(config.get(key) for key in ("n_layer", "n_embd", "n_head"))
    if has != (row.layers, row.width, row.heads):
        wanted = (row.layers, row.width, row.heads)
        raise ValueError(f"{folder}: (n_layer, n_embd, n_head) = {has}, but {name} is {wanted}")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(f"{folder}: pretrained weights of {name} without a tokenizer ({' or '.join(TOKENIZER_FILES)})")
    return folder


def _content_hash(folder: Path) -> str:
    """blake2b over the weight files, remembered by (path, size, time of change)."""
    h = hashlib.blake2b(digest_size=8)
    for file in weight_files(folder):
        h.update(f"{file.name}:{_file_hash(file)}\n".encode())
    return h.hexdigest()


def _file_hash(file: Path) -> str:
    memo, stat = cache_dir() / "hashes.json", file.stat()
    key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    try:
        known = json.loads(memo.read_text())
        assert isinstance(known, dict)
    except (OSError, ValueError, AssertionError):
        known = {}
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "blake2b").hexdigest()
        write(memo, json.dumps(known, indent=1).encode())
    return known[key]
