"""Comparing a backend's draws with the reference's: equal wherever float32 decides, elsewhere allowed by rounding.

m draws, V vocabulary, k tokens a draw; x (m, V) float32: the tempered logits of each draw's own row.
"""

import math

import torch
from torch import Tensor

from mlexp.decoding.kernels.reference import GUMBEL_MAX, ROUNDING
from mlexp.decoding.rng import token_words

ULP = torch.finfo(torch.float32).eps
ENTROPY_ATOL = 5e-5  # nats: sums of 50 thousand float32 exponentials in any order, each with a fast exponential's error


def bounds(x: Tensor, seeds: Tensor, position) -> tuple[Tensor, Tensor]:
    """Between what a backend's perturbed logits may lie, (m, V) float64 twice; -inf both for an impossible token.

    v is rounded to float32, as every backend must round it (IEEE arithmetic leaves no choice). From there on
    the numbers are float64, and a backend is allowed ROUNDING units in the last place about them.
    """
    words = token_words(seeds, position, x.shape[-1])
    v = (words.float() * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24).double()
    perturbed = x.double() - (-torch.log1p(-v)).log()
    slack = ROUNDING * ULP * (x.double().abs() + GUMBEL_MAX)
    slack = slack.masked_fill(x == -math.inf, 0)
    return perturbed - slack, perturbed + slack


def _margins(low: Tensor, high: Tensor, k: int) -> Tensor:
    m, V = low.shape
    order = (low + high).sort(dim=-1, descending=True, stable=True).indices
    low, high = low.gather(-1, order), high.gather(-1, order)
    rest = high.flip(-1).cummax(-1).values.flip(-1)  # the highest that this rank or any later one may reach
    pad = high.new_full((m, max(0, k + 1 - V)), -math.inf)
    low, rest = torch.cat((low, pad), -1)[:, :k], torch.cat((rest, pad), -1)[:, 1 : k + 1]
    return (low - rest).masked_fill(rest == -math.inf, math.inf)  # nothing is left that could take the place


def margins(x: Tensor, seeds: Tensor, position, k: int) -> Tensor:
    """(m, k) nats: how far the j-th best perturbed logit is above all later ones beyond rounding; > 0 is decided.

    Infinite where no possible token comes after, so for every -1 of the reference too.
    """
    return _margins(*bounds(x, seeds, position), k)


def assert_draws_agree(got: tuple, want: tuple, x: Tensor, seeds: Tensor, position, k: int) -> float:
    """Assert that (entropy, log_z, tokens, logprobs) are the reference's; return the share of tokens decided.

    A token between two positive margins must be the reference's. Any other must be one that some rounding could put at
    its rank. Log-probabilities must be those of the tokens that were drawn.
    """
    got, want = [r.cpu() for r in got], [r.cpu() for r in want]
    x, seeds = x.detach().cpu().float(), seeds.cpu()
    position = position.cpu() if isinstance(position, Tensor) else position
    m, V = x.shape
    entropy, log_z, tokens, logprobs = got
    kinds = torch.float32, torch.float32, torch.int64, torch.float32
    for name, r, w, kind in zip(("entropy", "log_z", "tokens", "logprobs"), got, want, kinds, strict=True):
        assert r.shape == w.shape and r.dtype == kind, (
            f"{name}: {tuple(r.shape)} {r.dtype}, not {tuple(w.shape)} {kind}"
        )
    far = ULP * ROUNDING * x.masked_fill(x == -math.inf, 0).abs().amax(-1)
    _assert_near("entropy", entropy, want[0], ENTROPY_ATOL)
    _assert_near("log_z", log_z, want[1], ENTROPY_ATOL + far)

    low, high = bounds(x, seeds, position)
    margin = _margins(low, high, k)
    decided = (margin > 0) & torch.cat((torch.ones(m, 1, dtype=torch.bool), margin[:, :-1] > 0), -1)
    wrong = decided & (tokens != want[2])
    assert not wrong.any(), f"decided tokens differ at {_some(wrong)}: {tokens[wrong][:4]}, not {want[2][wrong][:4]}"
    found = tokens >= 0
    assert ((tokens >= -1) & (tokens < V)).all(), f"no such token: {tokens}"
    assert (found == (want[2] >= 0)).all(), f"{found.sum(-1)} tokens drawn, not {(want[2] >= 0).sum(-1)}"
    low_of, high_of = (side.gather(-1, tokens.clamp(min=0)).masked_fill(~found, -math.inf) for side in (low, high))
    kth_low, kth_high = (_ranked(side, k) for side in (low, high))
    misplaced = (high_of < kth_low) | (low_of > kth_high)
    assert not misplaced.any(), f"tokens {tokens[misplaced][:4]} cannot have the ranks {_some(misplaced)}"
    ranked = tokens.sort(-1).values
    assert not ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] >= 0)).any(), f"a token is drawn twice: {tokens}"
    its = (x.gather(-1, tokens.clamp(min=0)) - want[1][:, None]).masked_fill(~found, -math.inf)
    _assert_near("logprobs", logprobs, its, (ENTROPY_ATOL + far)[:, None])
    return decided.double().mean().item() if m else 1.0


def _ranked(values: Tensor, k: int) -> Tensor:
    best = values.topk(min(k, values.shape[-1]), -1).values
    return torch.cat((best, best.new_full((len(best), k - best.shape[-1]), -math.inf)), -1)


def _assert_near(name: str, got: Tensor, want: Tensor, atol) -> None:
    near = (got == want) | ((got - want).abs() <= atol)  # -inf is equal to -inf, a NaN is near nothing
    assert near.all(), f"{name} differs at {_some(~near)}: {got[~near][:4]}, not {want[~near][:4]}"


def _some(where: Tensor) -> list:
    return where.nonzero()[:4].tolist()
