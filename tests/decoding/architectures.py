"""Tiny models of many architectures, and the table of what the engine makes of them, which docs/models.md shows.

`python -m tests.decoding.architectures` writes the page.
"""

import contextlib
import re
from pathlib import Path

import torch
from pytest import MonkeyPatch

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
PROMPT, NEW = 20, 8  # tokens; the windows and chunks below are shorter
VOCABULARY = 64
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128, "pad_token_id": None,
    "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip
D8 = {"head_dim": 8}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = MOE | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12,
          "num_key_value_heads": 4}  # fmt: skip
WINDOW = {"sliding_window": 8}
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
LATER = WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
BERT = {"is_decoder": True, "pad_token_id": 0}
LLAMA4 = MOE | D8 | {"attention_chunk_size": 8, "layer_types": ["chunked_attention", "full_attention"],
                     "intermediate_size_mlp": 48, "no_rope_layers": [1, 0]}  # fmt: skip
MODERNBERT = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
              "local_attention": 8, "global_attn_every_n_layers": 2}  # fmt: skip
GEMMA4 = MIXED | D8 | {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8,
                       "vocab_size_per_layer_input": VOCABULARY}  # fmt: skip
VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32,
          "image_size": 28, "patch_size": 14}  # fmt: skip

SUPPORTED = {
    "afmoe": ROUTED | MIXED | {"num_dense_layers": 1},
    "apertus": {},
    "arcee": {},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2},
    "axk1": ROUTED | LATENT,
    "bert": BERT,
    "bert-generation": BERT,
    "biogpt": {},
    "bitnet": {},
    "cohere": {},
    "cohere2": MIXED,
    "cohere2_moe": ROUTED | MIXED,
    "ctrl": {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4},
    "cwm": MIXED | D8 | {"bos_token_id": 0, "eos_token_id": 0},
    "deepseek_v2": ROUTED | LATENT | {"topk_method": "greedy"},
    "deepseek_v3": ROUTED | LATENT,
    "diffllama": {},
    "electra": BERT | {"embedding_size": 32},
    "ernie": BERT,
    "ernie4_5": D8,
    "ernie4_5_moe": ROUTED | {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "exaone4": MIXED,
    "exaone_moe": ROUTED | MIXED | {"mlp_layer_types": ["dense", "sparse"]},
    "flex_olmo": MOE,
    "gemma": D8,
    "gemma2": MIXED | D8,
    "gemma3": {"text_config": COMMON | MIXED | D8 | {"query_pre_attn_scalar": 8}, "vision_config": VISION},
    "gemma3_text": MIXED | D8,
    "gemma4_text": GEMMA4,
    "glm": D8,
    "glm4": D8,
    "glm4_moe": ROUTED,
    "glm4_moe_lite": ROUTED | LATENT,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gpt_oss": MOE | MIXED | D8,
    "granite": {},
    "granite_swa": MIXED,
    "granitemoe": MOE,
    "granitemoe_swa": MOE | MIXED,
    "helium": D8,
    "hrm_text": {},
    "hunyuan_v1_dense": D8,
    "hyperclovax": {},
    "jais2": {},
    "jetmoe": {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "laguna": ROUTED | MIXED | D8,
    "lfm2": {"layer_types": ["full_attention", "full_attention"]},
    "llama": {},
    "llama4_text": LLAMA4,
    "mellum": ROUTED | MIXED | D8,
    "mimo_v2_flash": ROUTED | MIXED | D8 | {"v_head_dim": 8},
    "minicpm3": LATENT,
    "minimax_m2": ROUTED | D8,
    "ministral": WINDOW | D8,
    "ministral3": D8,
    "mistral": WINDOW,
    "mixtral": MOE | WINDOW,
    "modernbert-decoder": MODERNBERT,
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": MIXED,
    "olmoe": MOE,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": WINDOW,
    "phimoe": MOE | WINDOW,
    "qwen2": LATER,
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 16},
    "qwen3": LATER | D8,
    "qwen3_moe": MOE,
    "seed_oss": D8,
    "smollm3": {},
    "solar_open": ROUTED | D8,
    "stablelm": {},
    "starcoder2": WINDOW,
    "vaultgemma": MIXED | D8,
    "youtu": LATENT,
}
"""transformers' model type -> what its tiny configuration has beside COMMON."""

REFUSED = {
    "axk2": ({}, "deepseek_sparse_attention"),
    "bart": ({}, "position_ids"),
    "big_bird": (BERT, "AttentionInterface"),
    "bloom": ({}, "ALiBi"),
    "codegen": ({"rotary_dim": 4}, "AttentionInterface"),
    "deepseek_v32": ({}, "deepseek_sparse_attention"),
    "doge": ({}, "mask of its own"),
    "falcon": ({}, "AttentionInterface"),
    "falcon_h1": ({}, "recurrent state"),
    "falcon_mamba": ({}, "recurrent state"),
    "gpt_neo": ({"attention_types": [[["global", "local"], 1]]}, "AttentionInterface"),
    "gptj": ({"rotary_dim": 4}, "AttentionInterface"),
    "jamba": (MOE, "recurrent state"),
    "mamba": ({}, "recurrent state"),
    "minimax": (MOE, "linear_attention"),
    "moshi": (WINDOW, "plain forward"),
    "mpt": ({}, "ALiBi"),
    "nemotron_h": ({}, "recurrent state"),
    "openai-gpt": ({}, "AttentionInterface"),
    "recurrent_gemma": ({}, "recurrent state"),
    "roberta": (BERT, "plain forward"),
    "roformer": (BERT, "position_ids"),
    "rwkv": ({}, "recurrent state"),
    "xglm": ({}, "AttentionInterface"),
    "xlm-roberta": (BERT, "plain forward"),
}
"""transformers' model type -> (its tiny configuration, a word of the reason for which it is refused)."""


def build(name: str, dtype=torch.float64):
    """A tiny seeded model of the architecture, sharp enough that a wrong mask moves its logits by tenths of a nat."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    extra = SUPPORTED.get(name) if name in SUPPORTED else REFUSED[name][0]
    config = CONFIG_MAPPING[name](**(extra if "text_config" in extra else COMMON | extra))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for part, p in model.named_parameters():
                if p.ndim >= 2 or "sink" in part:
                    p.normal_(0, 0.25)
    model = model.to(dtype).eval().requires_grad_(False)
    with contextlib.suppress(Exception):  # models without experts; grouped products are not there in float64
        model.set_experts_implementation("eager")
    return model


def prompt() -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (PROMPT,), generator=torch.Generator().manual_seed(3))


@contextlib.contextmanager
def double_throughout():
    """Models round norms, routers, rotary angles and softmaxes to float32 even in float64: in here nothing does.

    Two computations that differ in the last place of float64 may round apart, so no bound below 1e-6 would hold.
    """
    softmax, to, as_type = torch.nn.functional.softmax, torch.Tensor.to, torch.Tensor.type

    def exact_softmax(x, dim=None, _stacklevel=3, dtype=None):
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype)

    def exact_to(x, *args, **kwargs):
        out = to(x, *args, **kwargs)
        return to(x, out.device, torch.float64) if out.dtype == torch.float32 else out

    def exact_type(x, *args, **kwargs):
        out = as_type(x, *args, **kwargs)
        return out.double() if isinstance(out, torch.Tensor) and out.dtype == torch.float32 else out

    with MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", exact_softmax)
        patch.setattr(torch.Tensor, "to", exact_to)
        patch.setattr(torch.Tensor, "type", exact_type)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def outcome(name: str) -> str | None:
    """Why the engine refuses an architecture, None if it decodes it."""
    from mlexp.decoding.settings import Sampling
    from mlexp.decoding.support import check

    model = build(name)
    try:
        for path in ("tree", "rows"):
            check(model, prompt(), Sampling(max_new_tokens=NEW), path)
    except ValueError as error:
        return str(error)
    return None


def page() -> str:
    """The page of supported models, from the tables above and what the engine says."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    def kind(name):
        return CLASSES[name] if isinstance(CLASSES[name], str) else CLASSES[name][0]

    rows = [f"| `{name}` | {kind(name)} | {features(extra)} |" for name, extra in SUPPORTED.items()]
    refusals = [f"| `{name}` | {reason(outcome(name), kind(name))} |" for name in REFUSED]
    return TEXT.format(supported=len(SUPPORTED), refused=len(REFUSED), rows="\n".join(rows),
                       refusals="\n".join(refusals))  # fmt: skip


def features(extra: dict) -> str:
    """What of a configuration the attention has to know, for people."""
    extra = extra.get("text_config", {}) | extra
    kinds = [kind.split("_")[0] for kind in extra.get("layer_types", ())]
    window = "/".join(dict.fromkeys(kinds)) if kinds else "sliding" if "sliding_window" in extra else ""
    named = {
        "experts": set(extra) & {"num_experts", "moe_num_experts", "num_local_experts"},
        "latent keys and values": "kv_lora_rank" in extra,
        "nested text configuration": "text_config" in extra,
    }
    return ", ".join(filter(None, [window and f"{window} attention", *(what for what, has in named.items() if has)]))


def reason(message: str, kind: str) -> str:
    message = re.sub(r": the engine's log-probabilities.*", ": its logits on the engine are not a plain forward's",
                     message)  # fmt: skip
    return message.removeprefix(kind).removeprefix(":").strip()


TEXT = """# Models that the decoding engine supports

Written by `python -m tests.decoding.architectures`; `tests/decoding/test_architectures.py` holds it. Each architecture
is built from a tiny configuration with windows and chunks shorter than the text, and every node of the trees of
`dedup`, `eab_paper` and `eab_particles` is compared with plain forwards of whole sequences by transformers' own eager
attention, in float64, to 1e-9 nats. {supported} are decoded exactly, {refused} are refused in one line, none is
silently wrong.

A model that is not in the table is not refused for that: at its first use in a process it is compared with plain
forwards too, and refused where it differs (`mlexp/decoding/support.py` has the bounds). The comparison is repeated for
texts twice as long and after a change of device or type, not after other changes of a model that was used before
(adapters, hooks). Mixtures of experts run in float64 only after `model.set_experts_implementation("eager")`: torch has
no grouped products of that type, and the error says that the model's own forward fails.

| model type | class | what its tiny configuration has |
|---|---|---|
{rows}

Refused:

| model type | why |
|---|---|
{refusals}
"""


if __name__ == "__main__":
    PAGE.write_text(page())
