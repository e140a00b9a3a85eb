"""What a folder of a causal LM must hold, and whether it is whole, as far as can be seen without loading it."""

import itertools
import json
from pathlib import Path
from typing import Any

# What transformers reads the weights from: the first of these that a folder has. An index names the files.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What it reads a tokenizer from: all the files of one of these.
TOKENIZERS = (
    *(("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("spiece.model",), ("vocab.txt",)),
    ("tekken.json",),
)
BESIDE = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def checked_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder that has weights and a tokenizer. Raises ValueError that names the file at fault."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; expected config.json, weights and a tokenizer")
    config = _json(folder / "config.json")
    if other := config.get("transformers_weights"):
        raise ValueError(f"{folder}: config.json has transformers_weights={other!r}; expected {' or '.join(WEIGHTS)}")
    files = weight_files(folder)
    if not files:
        raise ValueError(f"{folder}: no weights; expected {' or '.join(WEIGHTS)}")
    if not has_tokenizer(folder):
        raise ValueError(
            f"{folder}: no tokenizer; expected {' or '.join(' with '.join(names) for names in TOKENIZERS)}"
        )
    for file in (*files, *(folder / name for name in (*BESIDE, *itertools.chain(*TOKENIZERS)))):
        if file.is_file():
            check_whole(file)
    return config


def weights_file(folder: Path) -> Path | None:
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights of a folder from. Raises ValueError where an index names others."""
    file = weights_file(folder)
    if file is None or not file.name.endswith(".index.json"):
        return [file] if file else []
    shards = _json(file).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{file}: no weight_map from weights to file names")
    names = sorted(set(shards.values()))
    if lacking := [name for name in names if Path(name).name != name or not (folder / name).is_file()]:
        raise ValueError(f"{file}: names {lacking[0]!r}, which is not there ({len(lacking)} of {len(names)} files)")
    return [folder / name for name in names]


def has_tokenizer(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in TOKENIZERS)


def _json(file: Path) -> dict[str, Any]:
    check_whole(file)
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a JSON object")
    return content


def check_whole(file: Path) -> None:
    """Raise ValueError for a Git LFS pointer, an empty file, and safetensors whose header does not fit the file."""
    with file.open("rb") as stream:
        start = stream.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ValueError(f"{file}: a Git LFS pointer, not the file that it stands for; fetch that with `git lfs pull`")
    if not start:
        raise ValueError(f"{file}: empty")
    size = file.stat().st_size
    if file.suffix == ".safetensors" and (whole := _safetensors_size(file, size)) != size:
        raise ValueError(f"{file}: cut off or damaged: {size} bytes, but its header describes {whole}")


def _safetensors_size(file: Path, size: int) -> int:
    """Bytes that a file of safetensors has by its header: a length in 8 bytes, JSON with the tensors' offsets, data."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            raise ValueError(f"{file}: not safetensors, or cut off: {size} bytes, but {length} of header announced")
        header = stream.read(length)
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        end: int = max((entry["data_offsets"][1] for entry in tensors), default=0)
        return 8 + length + end
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
        raise ValueError(f"{file}: not safetensors: its header does not describe tensors") from None
