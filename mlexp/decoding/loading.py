"""Models ready to decode: weights, tokenizer, and their identity: a stand-in is never taken for the original."""

import contextlib
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mlexp.extras import need
from mlexp.memory import out_of_memory
from mlexp.store import Progress, announce

from .checkpoint import weight_files
from .gguf import dequantised
from .models import model_row
from .nano import trained
from .packed import pack
from .recipes import NANO, STANDIN, Nano, StandIn
from .standin import standin
from .text import bpe_tokenizer, load_corpus
from .weights import Identity, checked, checkpoint_identity, find_weights, identity, own_tokenizer

need("mlexp.decoding")

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BPE_VOCAB = 2048  # of the tokenizer trained here, for every model: gpt2_nano's own vocabulary
OLD_BUFFERS = re.compile(r"(^|\.)masked_bias$")  # the constant -10000, in files of old versions of transformers


@dataclass
class LanguageModel:
    """A causal LM in eval mode and its tokenizer. `weights`: pretrained (or pretrained_q4_1: from 4-bit ones), random
    (it alone has a `gain`) or trained."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    n_params: int
    weights: str
    weights_hash: str
    gain: float | None = None
    corpus: str | None = None
    corpus_hash: str | None = None


def load(
    name: str,
    weights: str | Path = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    corpus: str | Path | None = None,
    progress: Progress = None,
    nano: Nano = NANO,
    recipe: StandIn = STANDIN,
    packed: bool = True,
) -> LanguageModel:
    """Load a model of MODELS. `weights`: auto, random, or a folder; `corpus`: None or a UTF-8 text file (see text.py);
    `packed`: with the layers of packed.py in place of transformers' own.

    Raises ValueError for an unknown name, FileNotFoundError or ValueError for a folder without the model's weights.
    """
    row, source = model_row(name), find_weights(name, weights)
    if source.folder is not None:
        return load_checkpoint(source.folder, name, device, dtype, progress, packed)
    who = identity(name, weights, corpus, nano, recipe)
    if source.gguf is not None:
        folder = checked(name, row, dequantised(source.gguf, who["weights_hash"], progress))
        return _of_folder(folder, name, who, device, dtype, progress, packed)
    text, gain = load_corpus(corpus), None
    if source.kind == "trained":
        model: Any = trained(row, nano, text, dtype, device, progress)
    else:
        announce(progress, f"{name}: no pretrained weights used; random stand-in of the same architecture")
        model, gain = standin(name, row, recipe, dtype, device, progress)
    own = own_tokenizer(row)
    tokenizer = _tokenizer(own, row.vocab) if own else bpe_tokenizer(text, min(row.vocab, BPE_VOCAB), progress)
    return _ready(model, tokenizer, name, who, packed, gain)


def load_checkpoint(
    folder: str | Path,
    name: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress = None,
    packed: bool = True,
) -> LanguageModel:
    """Load a folder of any causal LM that transformers can load; `name` is the folder's if None, `packed` as in load().

    Raises FileNotFoundError, or ValueError for a folder whose weights, config or tokenizer are not whole, do not fit
    one another, or need code of their own.
    """
    folder = Path(folder)
    who = checkpoint_identity(folder)
    return _of_folder(folder, name or folder.resolve().name, who, device, dtype, progress, packed)


def _of_folder(
    folder: Path, name: str, who: Identity, device: torch.device | str, dtype: torch.dtype, progress: Progress,
    packed: bool,
) -> LanguageModel:  # fmt: skip
    """The model and the tokenizer of a folder."""
    model = _pretrained(folder, dtype, progress)
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    tokenizer = _tokenizer(folder, embedding.shape[0])
    torch.nn.Module.to(model, device)
    return _ready(model, tokenizer, name, who, packed)


def _ready(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str, who: Identity, packed: bool,
    gain: float | None = None,
) -> LanguageModel:  # fmt: skip
    n_params = sum(p.numel() for p in model.parameters())
    model.train(False).requires_grad_(False)
    if packed:
        pack(model)
    return LanguageModel(model, tokenizer, name, n_params, gain=gain, **who)


def _pretrained(folder: Path, dtype: torch.dtype, progress: Progress) -> "PreTrainedModel":
    """The model of a folder, every weight of it read from there."""
    files = weight_files(folder)
    for file in files:
        if file.suffix == ".bin":
            with _one_line(f"{file}: not a file of weights, or cut off"):
                dict(torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)))
    safe = files[0].suffix == ".safetensors"
    with _one_line(f"{folder}: transformers cannot load this model"), _quiet():
        try:
            model, info = _from_pretrained(folder, dtype, safe, "sdpa")
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            announce(progress, f"{folder}: this architecture has no sdpa attention; eager attention is used")
            model, info = _from_pretrained(folder, dtype, safe, "eager")
    _check_all_read(folder, model, info)
    return model


def _from_pretrained(
    folder: Path, dtype: torch.dtype, safe: bool, attention: str
) -> "tuple[PreTrainedModel, dict[str, Any]]":
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, dtype=dtype, use_safetensors=safe, weights_only=True,
        attn_implementation=attention, ignore_mismatched_sizes=True, output_loading_info=True,
    )  # fmt: skip
    model, info = loaded
    return model, info


def _check_all_read(folder: Path, model: "PreTrainedModel", info: dict[str, Any]) -> None:
    """Raise ValueError where weights were left random, or left over: transformers only logs it."""
    wrong = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(key for key in info["unexpected_keys"] if not OLD_BUFFERS.search(key)),
        "of another size": [f"{key} {(*has,)} for {(*of,)}" for key, has, of in sorted(info["mismatched_keys"])],
    }
    found = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})" for what, keys in wrong.items() if keys
    ]
    if found:
        raise ValueError(
            f"{folder}: weights are {', '.join(found)}; expected those of {type(model).__name__} with this config.json"
        )


def _tokenizer(folder: Path, rows: int) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder; each of its ids has one of the `rows` of the embedding (which may have more)."""
    from transformers import AutoTokenizer

    with _one_line(f"{folder}: transformers cannot load this tokenizer"), _quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(f"{folder}: the tokenizer has ids up to {largest}, but the embedding has {rows} rows")
    return tokenizer


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Errors of torch and transformers, of whatever class, as a ValueError of one line; those of memory as they are."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        cause = (str(error).strip().splitlines() or [""])[0][:200]
        raise ValueError(f"{what} ({type(error).__name__}: {cause})") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the table that transformers logs of weights that do not fit: the error names them."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers' own
    try:
        yield
    finally:
        logging.set_verbosity(before)
