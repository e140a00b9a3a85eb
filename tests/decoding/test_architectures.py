"""Every node of every tree arm on many architectures, against plain forwards of whole sequences that share nothing."""

import numpy as np
import pytest
import torch

from mlexp.decoding.attention import attention_as
from mlexp.decoding.decoders import DECODE
from mlexp.decoding.engine import grow
from mlexp.decoding.settings import TREE_DECODERS, Sampling

from .architectures import NEW, PAGE, REFUSED, SUPPORTED, build, double_throughout, outcome, page, prompt

SAMPLING = Sampling(samples=6, max_new_tokens=NEW, max_paths=5, threshold=0.2)


def referee(model, tree) -> tuple[np.ndarray, np.ndarray]:
    """(entropy, log-probability) of every node, by a plain forward of every sequence, those that were pruned too."""
    entropy, logprob = (np.full(len(tree.token), np.nan) for _ in range(2))
    with double_throughout(), attention_as(model, "eager"), torch.no_grad():
        for last in set(range(len(tree.token))) - set(tree.parent.tolist()):
            nodes = [last]
            while tree.parent[nodes[0]] >= 0:
                nodes.insert(0, tree.parent[nodes[0]])
            row = torch.from_numpy(tree.token[nodes])
            logits = model(torch.cat([prompt(), row])[None], use_cache=False).logits[0, len(prompt()) - 1 : -1]
            log_p = (logits / SAMPLING.temperature).log_softmax(-1)
            entropy[nodes] = -(log_p.exp() * log_p).sum(-1)
            logprob[nodes] = log_p.gather(1, row[:, None])[:, 0]
    return entropy, logprob


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_node_is_that_of_a_plain_forward(name):
    model, nodes = build(name), 0
    for decoder in TREE_DECODERS:
        with double_throughout():
            tree, _ = grow(model, prompt(), SAMPLING, decoder, 5)
        entropy, logprob = referee(model, tree)
        np.testing.assert_allclose(tree.logprob, logprob, atol=1e-9, rtol=0)
        np.testing.assert_allclose(tree.entropy, entropy, atol=1e-9, rtol=0)
        nodes += len(tree.token)
    assert nodes > 3 * NEW  # some of them branched


def test_the_comparison_sees_a_window_that_is_off_by_one():
    model = build("mistral")
    tree, _ = grow(model, prompt(), SAMPLING, "dedup", 5)
    model.config.sliding_window += 1
    assert np.abs(referee(model, tree)[1] - tree.logprob).max() > 1e-3


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss", "llama4_text", "stablelm", "deepseek_v3"])
def test_arms_without_a_tree_draw_the_same_samples(name):
    from types import SimpleNamespace

    lm, sampling = SimpleNamespace(model=build(name)), Sampling(samples=5, max_new_tokens=NEW)
    a, b, c = (DECODE[d](lm, prompt(), sampling, 2).tokens for d in ("sequential", "shared_prefill", "dedup"))
    assert torch.equal(a, b) and torch.equal(a, c) and len(torch.unique(a)) > 3


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_is_refused_in_one_line(name):
    message = outcome(name)
    assert message is not None and "\n" not in message
    assert REFUSED[name][1] in message
    assert message.startswith(type(build(name)).__name__)


def test_the_page_shows_what_the_engine_does():
    assert len(SUPPORTED) >= 60 and len(SUPPORTED) + len(REFUSED) >= 100
    assert PAGE.read_text() == page(), "docs/models.md is out of date: run python -m tests.decoding.architectures"
