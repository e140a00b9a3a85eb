"""Decoding by CTranslate2, an inference engine of its own, from the same weights, prompts and settings.

The weights are converted once, into the cache; the converted model is compared with transformers' own forward before
it decodes. CTranslate2 encodes a prompt once and decodes its N samples as a batch of N rows, as `shared_prefill` does.
"""

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlexp import flops
from mlexp.extras import need
from mlexp.memory import out_of_memory
from mlexp.store import cache_dir, cached_folder

from .recipes import digest
from .settings import Sampling
from .support import BOUNDS

if TYPE_CHECKING:
    from ctranslate2 import Generator
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from .loading import LanguageModel

COMPUTE_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
RANDOM_SEED = 2**32 - 1  # CTranslate2 takes this seed as "from the operating system"
COMPARED = 64  # tokens of a prompt that a converted model is compared over, at most

_compared: set[tuple[Path, str, str]] = set()  # converted models that were found right in this process


def refusal(lm: "LanguageModel", prompt: Tensor, sampling: Sampling) -> str | None:
    """Why CTranslate2 cannot stand beside the other arms here, as a sentence; None where it can.

    Converts the model, if that was never done, and compares it with a plain forward of transformers' over `prompt`.
    """
    need("the arm ctranslate2", "ctranslate2")
    import ctranslate2

    device, kind = lm.model.device.type, COMPUTE_TYPES.get(lm.model.dtype, "none")
    if sampling.top_k or sampling.top_p < 1:
        return "CTranslate2's filters are its own; the arm is run without top_k and top_p"
    if device == "cuda" and not ctranslate2.get_cuda_device_count():
        return "CTranslate2 finds no CUDA device"
    if kind not in ctranslate2.get_supported_compute_types(device):
        return f"CTranslate2 does not compute in {lm.model.dtype} on this {device}"
    try:
        folder = converted(lm)
        if (where := (folder, device, kind)) not in _compared:
            difference, bound = _difference(lm, prompt.reshape(-1, prompt.shape[-1])[0]), BOUNDS[lm.model.dtype]
            if not difference <= bound:  # NaN is no agreement either
                return (
                    f"{type(lm.model).__name__} as CTranslate2 converts it is another model: log-probabilities differ "
                    f"by {difference:.2g} nats (allowed: {bound:g})"
                )
            _compared.add(where)
    except Exception as error:  # converters raise whatever their reading of a model runs into
        if out_of_memory(error):
            raise
        cause = (str(error).strip().splitlines() or [""])[0][:200]
        return f"CTranslate2 cannot convert {type(lm.model).__name__} ({type(error).__name__}: {cause})"
    return None


def converted(lm: "LanguageModel") -> Path:
    """The folder of the converted model in float32, from the cache or made now."""
    import ctranslate2

    name = digest("ctranslate2", ctranslate2.__version__, lm.weights_hash, lm.gain, str(lm.model.dtype))
    return cached_folder(cache_dir() / "ctranslate2" / name, lambda folder: _convert(lm.model, folder))


def _convert(model: "PreTrainedModel", folder: Path) -> None:
    """Write a loaded model to `folder` as CTranslate2 reads it. Its token i has the name "i"."""
    from ctranslate2.converters import TransformersConverter

    embedding: Any = model.get_input_embeddings()

    class Loaded(TransformersConverter):  # type: ignore[misc]  # of a package without types
        def load_model(self, *args: object, **more: object) -> "PreTrainedModel":
            return _apart(model)

        def load_tokenizer(self, *args: object, **more: object) -> "PreTrainedTokenizerFast":
            return _numbers(embedding.weight.shape[0])

    with tempfile.TemporaryDirectory() as config:
        model.config.save_pretrained(config)
        Loaded(config).convert(str(folder), force=True)


def _apart(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy in float32 on the CPU that shares the weights which are so already: some converters delete the layers that
    they have read."""
    shared: dict[int, Any] = {
        id(p): p for p in model.parameters() if p.dtype == torch.float32 and p.device.type == "cpu"
    }
    copied = copy.deepcopy(model, shared)
    torch.nn.Module.to(copied, "cpu", torch.float32)
    return copied


def _numbers(vocab: int) -> "PreTrainedTokenizerFast":
    """A tokenizer whose token i is the text "i"; CTranslate2 takes prompts as texts of tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(i): i for i in range(vocab)}, unk_token="0"))
    made: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = made(tokenizer_object=words, unk_token="0", bos_token="0", eos_token="0")
    return tokenizer


def _difference(lm: "LanguageModel", prompt: Tensor) -> float:
    """By how many nats at most the log-probabilities of a prompt's (P,) tokens differ from a plain forward's."""
    prompt = prompt[:COMPARED].to(lm.model.device)
    if len(prompt) < 2:  # nothing is predicted within it
        prompt = prompt.repeat(2)
    with torch.no_grad(), flops.uncounted():
        logits = lm.model(prompt[None], use_cache=False).logits[0, :-1]
    want = logits.double().log_softmax(-1).gather(-1, prompt[1:, None])[:, 0].cpu()
    return float((log_probs(lm, prompt) - want).abs().max())


def log_probs(lm: "LanguageModel", text: Tensor) -> Tensor:
    """What CTranslate2's own forward says of a text (P,): log p of every token but the first, (P - 1,) float64."""
    (scored,) = generator(lm, 0).score_batch([_words(text)])
    return torch.tensor(scored.log_probs[-len(text) + 1 :], dtype=torch.float64)


def generator(lm: "LanguageModel", seed: int) -> "Generator":
    """The converted model on the cell's device, with as many threads as torch has.

    CTranslate2's random state belongs to the generator's own thread and is seeded as that starts, so that a seed takes
    a generator of its own.
    """
    import ctranslate2

    ctranslate2.set_random_seed(seed % RANDOM_SEED)
    device = lm.model.device
    return ctranslate2.Generator(
        str(converted(lm)), device=device.type, device_index=device.index or 0,
        compute_type=COMPUTE_TYPES[lm.model.dtype], inter_threads=1, intra_threads=torch.get_num_threads(),
    )  # fmt: skip


def generate(generator: "Generator", prompts: Tensor, sampling: Sampling) -> list[list[int]]:
    """N samples of each prompt (B, P), prompt by prompt, each as long as its text, its stop token included."""
    G, stop = sampling.max_new_tokens, list(sampling.stop_tokens)
    found = generator.generate_batch(
        [_words(prompt) for prompt in prompts],
        num_hypotheses=sampling.samples, beam_size=1, sampling_topk=0, sampling_temperature=sampling.temperature,
        max_length=G, min_length=0 if stop else G, end_token=stop, return_end_token=True,
        include_prompt_in_result=False, max_batch_size=0,
    )  # fmt: skip
    return [tokens for each in found for tokens in each.sequences_ids]


def _words(tokens: Tensor) -> list[str]:
    return [str(token) for token in tokens.tolist()]
