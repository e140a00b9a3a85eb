"""`sample` and `generate(custom_generate=...)`: log-probabilities against plain forwards and transformers' filters."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from mlexp.decoding import branching, generate, sample
from mlexp.decoding.attention import attention_as
from mlexp.decoding.settings import Sampling

from .architectures import PROMPT, build, double_throughout, prompt
from .models import prompt_of, tiny
from .test_ends_and_filters import filtered

KINDS = ["mistral", "stablelm", "gpt_neox", "gemma2", "deepseek_v3", "gpt_oss"]
RULE = {"temperature": 0.7, "top_k": 40, "top_p": 0.95}
ENDS = [5, 9, 17, 23, 31, 44]


def plain_logprobs(model, tokens, lengths):
    """Of every token under the tempered and filtered distribution, 0 behind the end; one plain forward a text."""
    want = np.zeros(tokens.shape)
    with double_throughout(), attention_as(model, "eager"), torch.no_grad():
        for i, (row, length) in enumerate(zip(tokens, lengths, strict=True)):
            logits = model(torch.cat([prompt(), row[:length]])[None], use_cache=False).logits[0, PROMPT - 1 : -1]
            log_p = filtered(logits / RULE["temperature"], RULE["top_k"], RULE["top_p"]).log_softmax(-1)
            want[i, :length] = log_p.gather(1, row[:length, None])[:, 0]
    return want


@pytest.mark.parametrize("policy", ["eab_particles", "dedup", "eab_paper"])
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_those_of_plain_forwards(kind, policy):
    model = build(kind)
    with double_throughout():
        got = sample(model, None, prompt(), 6, policy, 12, threshold=0.2, eos_token_id=ENDS, seed=4, **RULE)
    want = plain_logprobs(model, got.tokens, got.lengths)
    np.testing.assert_allclose(got.logprobs.numpy(), want, atol=1e-9, rtol=0)
    assert got.texts is None and got.tokens.shape == got.logprobs.shape == (len(got.lengths), 12)
    assert policy == "eab_paper" or len(got.tokens) == 6
    for row, length in zip(got.tokens.tolist(), got.lengths.tolist(), strict=True):
        assert set(row[length:]) <= {ENDS[0]} and not set(row[: length - 1]) & set(ENDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_through_generate(kind):
    model = build(kind)
    asked = {
        "do_sample": True,
        "num_return_sequences": 6,
        "max_new_tokens": 12,
        "eos_token_id": ENDS,
        "pad_token_id": 0,
    }
    with double_throughout():
        torch.manual_seed(11)
        got = model.generate(
            prompt()[None],
            custom_generate=branching("dedup"),
            return_dict_in_generate=True,
            attention_mask=torch.ones(1, PROMPT, dtype=torch.int64),
            **asked,
            **RULE,
        )
        torch.manual_seed(11)
        again = model.generate(prompt()[None], custom_generate=branching("dedup"), **asked, **RULE)
    new = got.sequences[:, PROMPT:]
    assert torch.equal(again, got.sequences) and torch.equal(again[:, :PROMPT], prompt().expand(6, -1))
    np.testing.assert_allclose(got.logprobs.numpy(), plain_logprobs(model, new, got.lengths), atol=1e-9, rtol=0)
    assert new.shape[1] == got.lengths.max() == got.logprobs.shape[1]
    assert all((row[length:] == 0).all() for row, length in zip(new, got.lengths, strict=True))


def test_generate_decodes_several_prompts_and_obeys_a_seed():
    model, prompts = tiny().model, torch.stack([prompt_of(7, seed=i) for i in range(3)])
    ask = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 5, "top_k": 0, "temperature": 0.8}
    got = model.generate(prompts, custom_generate=branching("dedup", seed=3), **ask)
    assert torch.equal(got[:, :7], prompts.repeat_interleave(4, 0)) and got.shape == (12, 12)
    assert torch.equal(got, model.generate(prompts, custom_generate=branching("dedup", seed=3), **ask))
    alone = sample(model, None, prompts[0], 4, "dedup", 5, seed=3, eos_token_id=None)
    assert torch.equal(got[:4, 7:], alone.tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repetition_penalty": 1.5}, "RepetitionPenaltyLogitsProcessor is not supported"),
        ({"min_new_tokens": 3, "eos_token_id": 4}, "MinLengthLogitsProcessor is not supported"),
        ({"max_time": 9.0}, "MaxTimeCriteria is not supported"),
        ({"do_sample": False, "num_return_sequences": 1}, "do_sample=False, num_beams=1"),
        ({"num_beams": 4}, "do_sample=True, num_beams=4"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, "attention_mask has zeros"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask has zeros or another shape"),
        ({"position_ids": torch.arange(2, 6)[None]}, "position_ids is not supported"),
        ({"token_type_ids": torch.ones(1, 4, dtype=torch.int64)}, "token_type_ids is not supported"),
        ({"prefill_chunk_size": 2}, "prefill_chunk_size=2 is not supported"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores=True is not supported"),
    ],
)
def test_generate_refuses_what_a_tree_cannot_do(change, message):
    ask = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 4, "pad_token_id": 0} | change
    with pytest.raises(ValueError, match=message):
        tiny().model.generate(prompt_of(4)[None], custom_generate=branching(), **ask)


def test_what_is_asked_reaches_the_engine(monkeypatch):
    asked, tree = [], SimpleNamespace(tokens=lambda: np.zeros((2, 3), int), lengths=lambda: np.full(2, 3),
                                      logprobs=lambda: np.zeros((2, 3)))  # fmt: skip
    counts = SimpleNamespace(model_forwards=1, token_forwards=12, logit_rows=5)
    monkeypatch.setattr(generate, "grow", lambda *args, **more: asked.append((*args, more)) or (tree, counts))
    model, rest = tiny().model, {"branch_factor": 4, "max_paths": 3, "threshold": 0.7}
    got = sample(model, None, [1, 2], 2, "dedup", 3, 0.6, top_k=5, top_p=0.9, eos_token_id=[4, 2], stop_tokens=7,
                 seed=9, backend="reference", **rest)  # fmt: skip
    given, ids, sampling, policy, seed, more = asked.pop()
    assert sampling == Sampling(2, 3, 0.6, 0.7, 4, 3, 5, 0.9, (4, 2, 7)) and got.token_forwards == 12
    assert (given, ids.tolist(), policy, seed, more) == (model, [1, 2], "dedup", 9, {"backend": "reference"})
    sample(model, None, [1, 2])
    _, _, sampling, policy, seed, more = asked.pop()
    assert (policy, seed, more) == ("eab_particles", 0, {"backend": "auto"})
    assert sampling == Sampling(20, 50, 0.8, 0.4, 3, 20, 0, 1.0, ())
    ask = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 3, "pad_token_id": 0}
    model.generate(torch.tensor([[1, 2]]), custom_generate=branching("dedup", seed=3, **rest), top_k=6, top_p=0.8,
                   temperature=0.9, eos_token_id=[4, 5], **ask)  # fmt: skip
    _, ids, sampling, policy, seed, _ = asked.pop()
    assert sampling == Sampling(2, 3, 0.9, 0.7, 4, 3, 6, 0.8, (4, 5))
    assert (ids.tolist(), policy, seed) == ([[1, 2]], "dedup", 3)
    model.generate(torch.tensor([[1, 2]]), custom_generate=branching(), top_k=0, **ask)
    _, _, sampling, policy, seed, _ = asked.pop()
    assert sampling == Sampling(2, 3, 1.0, 0.4, 3, 2, 0, 1.0, ()) and policy == "eab_particles"


class Words:
    """A tokenizer of one letter a token."""

    def __call__(self, text):
        return {"input_ids": [ord(c) - 97 for c in text], "attention_mask": [1] * len(text)}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(97 + i) for i in ids)


def test_every_kind_of_prompt_is_the_same_prompt():
    model, ids = tiny(vocab=26).model, [3, 1, 4, 1, 5]
    ask = {"n": 5, "max_new_tokens": 6, "eos_token_id": 4, "threshold": 0.1}
    want = sample(model, Words(), "dbebf", **ask)
    masked = {"input_ids": [ids], "attention_mask": [[1] * 5]}
    for given in (ids, [ids], torch.tensor(ids), torch.tensor([ids]).int(), np.array(ids), BatchEncoding(masked)):
        assert torch.equal(sample(model, None, given, **ask).tokens, want.tokens)
    for text, row, length in zip(want.texts, want.tokens, want.lengths, strict=True):
        kept = row[: length - 1] if row[length - 1] == 4 else row[:length]
        assert text == Words().decode(kept.tolist())


def test_a_models_own_end_is_the_default():
    model = tiny(vocab=6, sharpness=1.0).model
    model.generation_config.eos_token_id = [2, 3]
    got = sample(model, None, [1, 1], n=30, max_new_tokens=9, policy="dedup")
    assert got.lengths.min() < 9 and not np.isin(got.tokens[:, :1][got.lengths > 1], [2, 3]).any()
    assert (sample(model, None, [1, 1], max_new_tokens=9, eos_token_id=None).lengths == 9).all()
    more = sample(model, None, [1, 1], n=30, max_new_tokens=9, policy="dedup", stop_tokens=4).tokens
    assert set(more[:, -1].tolist()) & {2} and 4 in more


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": "ab"}, ValueError, "tokenizer is None"),
        ({"prompt": [0.5]}, ValueError, "float32"),
        ({"prompt": [[1, 2], [3, 4]]}, ValueError, r"shape \(2, 2\).*one prompt a call"),
        ({"prompt": []}, ValueError, "the prompt is empty"),
        ({"prompt": ["a text"]}, ValueError, "expected one text"),
        ({"prompt": None}, ValueError, "NoneType"),
        ({"prompt": [[1, 2], [3]]}, ValueError, "token ids of one length"),
        ({"policy": ["dedup"]}, ValueError, "unknown policy"),
        ({"temperature": None}, ValueError, "temperature=None: expected a number"),
        ({"top_p": None}, ValueError, "top_p=None"),
        ({"seed": 1.5}, ValueError, "seed=1.5"),
        ({"stop_tokens": ["a"]}, ValueError, "stop_tokens=.*token ids"),
        ({"eos_token_id": "x"}, ValueError, "eos_token_id='x'"),
        ({"model": "gpt2"}, ValueError, "model is a str"),
        ({"prompt": list(range(30)) * 4}, ValueError, "96 positions, fewer than the prompt"),
        ({"prompt": {"input_ids": [1, 2], "attention_mask": [0, 1]}}, ValueError, "zeros"),
        ({"prompt": [40]}, ValueError, "prompt token 40: GPT2LMHeadModel has tokens 0 to 36"),
        ({"policy": "beam"}, ValueError, "unknown policy 'beam'; choose from dedup, eab_paper, eab_particles"),
        ({"n": 0}, ValueError, "n=0: expected"),
        ({"max_new_tokens": 95}, ValueError, "has 96 positions, for 94 new tokens"),
        ({"eos_token_id": 37}, ValueError, "stop token 37"),
    ],
)
def test_bad_requests_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        sample(**{"model": tiny().model, "tokenizer": None, "prompt": [1, 2, 3]} | arguments)


def test_the_last_position_may_be_used():
    got = sample(tiny(positions=10).model, None, list(range(8)), n=3, max_new_tokens=3, policy="dedup")
    assert got.tokens.shape == (3, 3)


def test_a_model_in_training_mode_is_refused():
    model = tiny().model.train()
    with pytest.raises(ValueError, match="training mode"):
        sample(model, None, [1, 2])
