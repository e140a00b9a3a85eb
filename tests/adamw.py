"""AdamW written out (Loshchilov and Hutter 2019), a step at a time, for what training must come to."""

import math

import torch


def by_hand(parameters, gradients_of, steps, rate, decay, clip):
    """Change the parameters as so many steps do: `gradients_of(step)` (None: unused), `rate(step)`; matrices alone
    decay."""
    parameters = list(parameters)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    for step in range(steps):
        gradients = gradients_of(step)
        norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm().item()
        for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
            if g is None:
                continue
            g = g * min(1.0, clip / (norm + 1e-6))
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.95).add_(0.05 * g * g)
            with torch.no_grad():
                p -= rate(step) * decay * p * (p.ndim >= 2)
                p -= rate(step) * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)


def schedule(peak, steps, warmup, floor):
    """The rate of a step: a linear warm-up, then half a cosine down to `floor` of the peak."""

    def rate(step):
        done = (step - warmup) / (steps - warmup)
        return peak * (
            (step + 1) / warmup if step < warmup else floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
        )

    return rate
