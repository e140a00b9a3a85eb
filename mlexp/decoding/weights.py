"""Where a model's weights come from, and what identifies them; cheap, and free of torch.

`auto` = the Hugging Face cache if the model is there, else the package that ships it, else made here; `random` = seeded
random weights; or a folder that is one model (config.json, safetensors and tokenizer) or holds one subfolder per model
id or hub name.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from mlexp.store import cache_dir, write

from .checkpoint import TOKENIZERS, WEIGHTS, checked_config, has_tokenizer, weight_files, weights_file
from .models import Llama, Model, model_row
from .recipes import NANO, STANDIN, Nano, StandIn, nano_hash, standin_hash
from .text import load_corpus

GPT2_DEFAULTS = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024, "n_inner": None}

ARCHITECTURE = (  # what of a config.json makes a model the one that it is called
    *("model_type", "vocab_size", "n_layer", "n_embd", "n_head", "n_positions", "n_ctx", "n_inner"),
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
)


@dataclass(frozen=True)
class Source:
    """`kind` is as in a record: pretrained (read from `folder`), pretrained_q4_1 (the 4-bit weights of `gguf`), random
    or trained (made here)."""

    kind: str
    folder: Path | None = None
    gguf: Path | None = None


class Identity(TypedDict):
    """What weights are to a record: their kind and hash, and the corpus that played a part in them, if one did."""

    weights: str
    weights_hash: str
    corpus: str | None
    corpus_hash: str | None


def find_weights(name: str, weights: str | Path = "auto") -> Source:
    """Where the weights of a model come from. Raises FileNotFoundError or ValueError for a folder without them."""
    row = model_row(name)
    if str(weights) == "random":
        return Source("random")
    if str(weights) != "auto":
        return Source("pretrained", _in_folder(name, row, Path(weights)))
    for repo in row.hub:
        if folder := _in_hub_cache(repo):
            return Source("pretrained", checked(name, row, folder))
    if gguf := shipped(row):
        return Source(f"pretrained_{gguf.name.split('.')[-2].lower()}", gguf=gguf)
    return Source("random" if row.hub else "trained")


def shipped(row: Model) -> Path | None:
    """The GGUF file of the model in an installed package, which is not imported."""
    if not isinstance(row, Llama) or not row.package:
        return None
    spec = importlib.util.find_spec(row.package)
    file = Path(spec.origin).parent / row.gguf if spec and spec.origin else None
    return file if file and file.is_file() else None


def identity(
    name: str, weights: str | Path = "auto", corpus: str | Path | None = None, nano: Nano = NANO,
    standin: StandIn = STANDIN,
) -> Identity:  # fmt: skip
    """The identity of what load() will use."""
    row, source = model_row(name), find_weights(name, weights)
    if source.folder is not None:
        return checkpoint_identity(source.folder)
    if source.gguf is not None:
        return {"weights": source.kind, "weights_hash": _hash_of([source.gguf]), "corpus": None, "corpus_hash": None}
    text = load_corpus(corpus)
    made = standin_hash(row, standin) if source.kind == "random" else nano_hash(row, nano, text.hash)
    if own_tokenizer(row):
        return {"weights": source.kind, "weights_hash": made, "corpus": None, "corpus_hash": None}
    return {"weights": source.kind, "weights_hash": made, "corpus": text.name, "corpus_hash": text.hash}


def checkpoint_identity(folder: str | Path) -> Identity:
    """The identity of a folder of any causal LM: pretrained, with a hash over all weight files; no corpus.

    Raises FileNotFoundError, or ValueError for a folder without config.json, weights and a tokenizer, each of them
    whole as far as can be seen without loading it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected config.json, weights and a tokenizer in it")
    checked_config(folder)
    found = _hash_of(weight_files(folder))
    return {"weights": "pretrained", "weights_hash": found, "corpus": None, "corpus_hash": None}


def _hash_of(files: Iterable[Path]) -> str:
    hashes = hashlib.blake2b(digest_size=8)
    for file in files:
        hashes.update(f"{file.name}:{_file_hash(file)}\n".encode())
    return hashes.hexdigest()


def own_tokenizer(row: Model) -> Path | None:
    """The folder of the model's own tokenizer in the Hugging Face cache, weights or not."""
    for repo in row.hub:
        for first, *_ in TOKENIZERS:
            if (found := _cached(repo, first)) and has_tokenizer(found.parent):
                return found.parent
    return None


def _cached(repo: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file)
    return Path(found) if isinstance(found, str) else None


def _in_hub_cache(repo: str) -> Path | None:
    config = _cached(repo, "config.json")
    return config.parent if config and weights_file(config.parent) else None


def _in_folder(name: str, row: Model, path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"weights={str(path)!r} for {name}: no such folder; allowed: auto, random, or a folder")
    tried = [path, path / name, *(path / hub for hub in row.hub), *(path / hub.split("/")[-1] for hub in row.hub)]
    for folder in tried:
        if (folder / "config.json").is_file() and weights_file(folder):
            return checked(name, row, folder)
    raise FileNotFoundError(
        f"weights={str(path)!r} has no weights for {name}: looked for config.json with {' or '.join(WEIGHTS)} in "
        f"{', '.join(dict.fromkeys(map(str, tried)))}; allowed: auto, random, a model's folder, or a folder of such"
    )


def checked(name: str, row: Model, folder: Path) -> Path:
    """`folder`, whose config.json has the model's architecture. Raises ValueError where it has another."""
    has, wanted = checked_config(folder), {"model_type": row.family, **row.config()}
    if row.family == "gpt2":
        wanted |= {"n_ctx": row.positions, "n_inner": 4 * row.width}
        has = GPT2_DEFAULTS | {"n_ctx": row.positions} | has
        has["n_inner"] = has["n_inner"] or 4 * row.width
    if wrong := [key for key in wanted if key in ARCHITECTURE and has.get(key) != wanted[key]]:
        raise ValueError(
            f"{folder}: config.json has {', '.join(f'{key}={has.get(key)!r}' for key in wrong)}, "
            f"but {name} has {', '.join(f'{key}={wanted[key]!r}' for key in wrong)}"
        )
    return folder


def _file_hash(file: Path) -> str:
    memo, stat = cache_dir() / "hashes.json", file.stat()
    key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    try:
        hashes: dict[str, str] = json.loads(memo.read_text())
        assert isinstance(hashes, dict)
    except (OSError, ValueError, AssertionError):
        hashes = {}
    if key not in hashes:
        with file.open("rb") as stream:
            hashes[key] = hashlib.file_digest(stream, "blake2b").hexdigest()
        write(memo, json.dumps(hashes, indent=1).encode())
    return hashes[key]
