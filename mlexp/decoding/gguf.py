"""Weights that a package ships as GGUF: dequantised once, and kept in the cache as a folder like any other model's."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlexp.extras import need
from mlexp.store import Progress, announce, cache_dir, cached_folder

from .checkpoint import checked_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def dequantised(file: Path, file_hash: str, progress: Progress = None) -> Path:
    """The folder of a GGUF file's model: config, float32 safetensors, tokenizer. Made at the first call, which takes
    most of a minute for 135M parameters."""
    folder = cache_dir() / "gguf" / file_hash
    try:
        checked_config(folder)
        return folder
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)  # not whole
    need("mlexp.decoding", "gguf", "accelerate")
    announce(progress, f"dequantising {file.name}, once")
    return cached_folder(folder, lambda new: _convert(file, new))


def _convert(file: Path, folder: Path) -> None:
    """Read a GGUF file with transformers, and save it as a model that was never quantised."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    quantised: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, weights_only=True, trust_remote_code=False, **where
    )
    values = quantised.config.to_dict()
    values.pop("quantization_config", None)  # transformers saves no model that has one
    with torch.device("meta"):
        plain = type(quantised)(type(quantised.config)(**values))
    plain.load_state_dict(quantised.state_dict(), assign=True)
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(folder)
