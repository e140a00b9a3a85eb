"""Tiny causal LMs for the tests: GPT-2 and Llama kinds, seeded, with logits sharp enough to branch unevenly; and
others."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch

from mlexp.decoding.settings import DECODERS

# the other's tests are in test_ctranslate.py
TORCH_DECODERS = tuple(name for name, row in DECODERS.items() if row.library is None)


def tiny(kind="gpt2", vocab=37, layers=2, positions=96, seed=0, sharpness=12.0, dtype=torch.float64):
    """An LM (anything with .model) of the kind `gpt2` (tied, absolute positions) or `llama` (grouped heads, rotary)."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    common = {"vocab_size": vocab, "bos_token_id": None, "eos_token_id": None, "attn_implementation": "sdpa"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=positions,
                                               tie_word_embeddings=False, **common))  # fmt: skip
        else:
            model = LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=layers, num_attention_heads=4,
                                                 num_key_value_heads=2, intermediate_size=48,
                                                 max_position_embeddings=positions, **common))  # fmt: skip
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim == 2:
                    p.normal_(0, 0.3)
            model.get_output_embeddings().weight.mul_(sharpness / 12)
    return SimpleNamespace(model=model.to(dtype).eval().requires_grad_(False), name=kind)


def tiny_config(kind, **more):
    """A transformers config of a family other than GPT-2's, at the sizes of `tiny`."""
    from transformers import AutoConfig

    sizes = {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 96, "bos_token_id": None,
             "eos_token_id": None, "pad_token_id": None}  # fmt: skip
    return AutoConfig.for_model(kind, **sizes | more)


def tiny_of(config, attention="sdpa"):
    """A randomly initialised LM (anything with .model) of a config, in float32."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return SimpleNamespace(model=model.eval().requires_grad_(False), name=config.model_type)


def prompt_of(length, vocab=37, seed=0):
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed))


def independent_logits(model, prompt, paths):
    """Logits behind every token of every path by plain forwards without a cache: paths (n, G) -> (n, G, V)."""
    full = torch.cat([prompt[None].expand(len(paths), -1), torch.as_tensor(paths)], 1)
    with torch.no_grad():
        return model(full, use_cache=False).logits[:, len(prompt) :]


def exact_paths(model, prompt, vocab, new, temperature=0.8):
    """Every text of `new` tokens behind the prompt and its probability: (V^G, G), (V^G,)."""
    paths = np.array(list(itertools.product(range(vocab), repeat=new)))
    full = independent_logits(model, prompt, paths)[:, :-1]
    first = model(prompt[None]).logits[:, -1:].expand(len(paths), -1, -1)
    logits = torch.cat([first, full], 1) / temperature
    log_p = logits.log_softmax(-1).gather(-1, torch.from_numpy(paths)[..., None])
    return paths, log_p[..., 0].sum(1).exp().numpy()
