"""The decoder that every arm is tried in: pre-norm blocks, a tied embedding, no dropout, parameters drawn by name.

B batch, T tokens, D width, V vocabulary.
"""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .layers import Attention, Cache, Dense, Mixture, Norm, Rotary, rotary_tables
from .variants import POSITIONS, VARIANTS, Shape, Variant, scaled


class Block(nn.Module):
    def __init__(self, variant: Variant, shape: Shape):
        super().__init__()
        self.norm_1, self.attention = Norm(shape.width), Attention(variant, shape)
        self.norm_2, self.feed_forward = Norm(shape.width), Mixture(shape) if shape.experts else Dense(shape)

    def forward(self, h: Tensor, rotary: Rotary, cache: Cache | None, layer: int) -> tuple[Tensor, Tensor]:
        h = h + self.attention(self.norm_1(h), rotary, cache, layer)
        out, balance = self.feed_forward(self.norm_2(h))
        return h + out, balance


class Decoder(nn.Module):
    """Tokens (B, T) -> logits (B, T, V). With a cache, T tokens after the cached ones: a prompt, or one step."""

    blocks: Sequence[Block]

    def __init__(self, variant: Variant, shape: Shape):
        super().__init__()
        if variant.position not in POSITIONS:
            raise ValueError(f"unknown position {variant.position!r}; choose from {', '.join(POSITIONS)}")
        self.arm, self.shape = scaled(variant, shape), shape
        self.embed = nn.Embedding(shape.vocab, shape.width)
        if variant.position == "learned":
            self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(variant, shape) for _ in range(shape.layers))  # type: ignore[assignment]  # a ModuleList does not say of what
        self.norm = Norm(shape.width)

    def hidden(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Tensor]:
        """What the output layer reads, (B, T, D), and the balance losses of all layers together."""
        start = cache.length if cache else 0
        h, rotary = self._start(tokens, start, start + tokens.shape[1])
        balance = torch.zeros((), device=h.device)
        for layer, block in enumerate(self.blocks):
            h, more = block(h, rotary, cache, layer)
            balance = balance + more
        if cache:
            cache.length += tokens.shape[1]
        return self.norm(h), balance

    def _start(self, tokens: Tensor, start: int, stop: int) -> tuple[Tensor, Rotary]:
        h, arm = self.embed(tokens), self.arm
        if arm.position == "learned":
            if stop > self.shape.context:
                raise ValueError(f"{stop} tokens: positions were learned for {self.shape.context}")
            h = h + self.positions.weight[start:stop]
        if arm.position != "rope":
            return h, None
        return h, rotary_tables(start, stop, arm.rope, arm.factor, h.device, self.shape.heads)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        return linear(self.hidden(tokens, cache)[0], self.embed.weight)

    def kernel(self, batch: int = 1, dtype: torch.dtype = torch.float32) -> str:
        """The attention kernel of a forward over whole contexts: see Attention.kernel."""
        tokens = torch.zeros(batch, self.shape.context, dtype=torch.long, device=self.embed.weight.device)
        with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
            h, rotary = self._start(tokens, 0, tokens.shape[1])
            return self.blocks[0].attention.kernel(self.blocks[0].norm_1(h), rotary)


def initialise(model: Decoder, seed: int) -> None:
    """Draw every parameter from the seed and its own name: arms that share a name and a shape share the values (on one
    kind of device, whose own generator draws them).

    Matrices are N(0, .02) at width 512 and go with width ** -.5, those that write to the residual stream by a further
    (2 L) ** -.5; norms are one and biases zero.
    """
    std = 0.02 * (512 / model.shape.width) ** 0.5
    for name, p in model.named_parameters():
        if p.ndim == 1:
            nn.init.constant_(p, 0.0 if name.endswith("bias") else 1.0)
        else:
            generator = torch.Generator(p.device).manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            residual = name.endswith((".o.weight", ".down", ".down.weight"))
            own = std / (2 * model.shape.layers) ** 0.5 if residual else std
            with torch.no_grad():
                p.copy_(torch.randn(p.shape, generator=generator, device=p.device) * own)


def build(variant: str | Variant, shape: Shape, seed: int = 0, device: torch.device | str = "cpu") -> Decoder:
    """A decoder ready to train; torch's own generators are left as they were."""
    if isinstance(variant, str):
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; choose from {', '.join(VARIANTS)}")
        variant = VARIANTS[variant]
    with torch.device("meta"):
        model = Decoder(variant, shape)
    model = model.to_empty(device=device)
    initialise(model, seed)
    return model
