"""The network that backprop trains: a pre-LN transformer of the original's size, with the weights of `residual` blocks.

B sequences, T positions, d width, H heads, V alphabet.
    h = e(x) + p;  h += W_o MHA(LN h);  h += W_2 gelu(W_1 LN h), W_1 (2d, d);  logits = W LN(h).
Attention is causal and, as in `residual`, has no biases: at equal width and blocks both have as many parameters, but
for the biases of the norms. Source: the baseline of the original study (pre-LN, feed-forward of twice the width, GELU).
"""

from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, scaled_dot_product_attention

from .learners import ALPHABET, Size


class Attention(nn.Module):
    """Causal self-attention without biases: (B, T, d) -> (B, T, d)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        B, T, _ = h.shape
        parts = self.qkv(h).view(B, T, 3, self.heads, -1).unbind(2)  # before the transposition: gradients join in rows
        q, k, v = (part.transpose(1, 2) for part in parts)  # (B, H, T, d / H)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return out


class Feed(nn.Module):
    """The feed-forward part: (B, T, d) -> (B, T, d)."""

    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.down(gelu(self.up(h)))
        return out


class Block(nn.Module):
    """One pre-LN layer; `drop` is the probability that a part's output is dropped in training."""

    def __init__(self, width: int, heads: int, drop: float):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.feed, self.drop = Attention(width, heads), Feed(width), drop

    def forward(self, h: Tensor) -> Tensor:
        h = h + dropout(self.attention(self.norm_1(h)), self.drop, self.training)
        return h + dropout(self.feed(self.norm_2(h)), self.drop, self.training)


class Transformer(nn.Module):
    """Characters (B, T) -> logits of the next one (B, T, V)."""

    def __init__(self, size: Size, drop: float = 0.0):
        super().__init__()
        self.characters, self.places = nn.Embedding(ALPHABET, size.width), nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads, drop) for _ in range(size.layers))
        self.norm, self.head, self.drop = nn.LayerNorm(size.width), nn.Linear(size.width, ALPHABET), drop
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        h = self.characters(x) + self.places.weight[: x.shape[1]]
        h = dropout(h, self.drop, self.training)
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.head(self.norm(h))
        return logits
