"""The arms as one-line rows, the shapes that they are built at, and what each costs in closed form; needs no torch.

D width, H heads, T tokens of context, V vocabulary, L layers, F feed-forward width, E experts.
Ranks and head dimensions stand as at width 512 with heads 64 wide; `scaled` carries them to other shapes.
"""

from dataclasses import dataclass, replace

WIDTH, HEAD = 512, 64  # where the rows of VARIANTS are written down
POSITIONS = ("rope", "none", "learned")


@dataclass(frozen=True)
class Variant:
    """What an arm sets. With a kv_rank, keys and values come from a latent of that rank beside one rotary key that all
    heads share (DeepSeek's latent attention; nope = 0 leaves nothing but the shared key); without, it is multi-head
    attention, with fewer heads of keys and values where kv_heads says so (a count, at every shape)."""

    kv_rank: int | None = 64
    q_rank: int | None = None
    rope: int = HEAD  # dimensions of a query that positions turn
    nope: int = 0  # dimensions of a query that they do not
    v: int = HEAD
    bias: bool = False  # where DeepSeek has them: on q_a, kv_a and o; in multi-head attention on all four
    factor: float = 1.0  # positions are divided by it (linear interpolation)
    position: str = "rope"
    kv_heads: int | None = None

    @property
    def latent(self) -> bool:
        return self.kv_rank is not None

    @property
    def qk(self) -> int:
        return self.rope + self.nope


MULTI_HEAD = Variant(kv_rank=None)
VARIANTS = {
    "baseline": MULTI_HEAD,
    "lora_small": Variant(64, 32),
    "lora_medium": Variant(128, 64),
    "lora_large": Variant(256, 128),
    "lora_xl": Variant(512, 256),
    "enhanced_small": Variant(64, 32, rope=32, v=48, bias=True, factor=1.5),
    "enhanced_medium": Variant(128, 64, rope=64, v=96, bias=True, factor=2.0),
    "enhanced_large": Variant(256, 128, rope=128, v=192, bias=True, factor=2.5),
    "enhanced_xl": Variant(512, 256, rope=128, v=192, bias=True, factor=3.0),
    "rope_only": Variant(rope=64, v=96, factor=2.0),
    "rope_small": Variant(rope=32, v=48, factor=1.5),
    "rope_large": Variant(rope=128, v=192, factor=2.5),
    "bias_only": Variant(bias=True),
    # controls that the original's grid lacks
    "mla_plain": Variant(),
    "mla_true": Variant(rope=32, nope=32),
    "nope": replace(MULTI_HEAD, position="none"),
    "mha_pi": replace(MULTI_HEAD, factor=2.0),
    "mha_bias": replace(MULTI_HEAD, bias=True),
    "mqa": replace(MULTI_HEAD, kv_heads=1),
    "gqa": replace(MULTI_HEAD, kv_heads=2),
}
ORIGINAL_VARIANTS = tuple(VARIANTS)[:13]
FAMILIES = {
    name: name.partition("_")[0] if name in ORIGINAL_VARIANTS else "control" for name in VARIANTS
}  # baseline, lora, enhanced, rope, bias, control


@dataclass(frozen=True)
class Shape:
    """What every arm shares; experts = 0 is a dense feed-forward, else each token goes to its `top` experts."""

    width: int
    layers: int
    heads: int
    ff: int
    vocab: int
    context: int
    experts: int = 0
    top: int = 2


SHAPES = {
    "full": Shape(512, 8, 8, 2048, 49152, 512, experts=8),
    "natural": Shape(128, 4, 4, 512, 1024, 128),
    "quick": Shape(64, 2, 4, 256, 64, 64),
}


def scaled(variant: Variant, shape: Shape) -> Variant:
    """The arm at a shape: ranks in proportion to the width, head dimensions to the heads' width (and even)."""
    if shape.width % (2 * shape.heads):
        raise ValueError(f"heads={shape.heads}: must divide {shape.width} / 2, so that a head has whole rotary pairs")
    head = shape.width // shape.heads

    def rank(r: int | None) -> int | None:
        return r and max(1, round(r * shape.width / WIDTH))

    def even(d: int) -> int:
        return d and max(2, 2 * round(d * head / HEAD / 2))

    return replace(
        variant, kv_rank=rank(variant.kv_rank), q_rank=rank(variant.q_rank),
        rope=even(variant.rope), nope=even(variant.nope), v=even(variant.v),
        kv_heads=None if variant.latent else min(variant.kv_heads or shape.heads, shape.heads),
    )  # fmt: skip


def projections(variant: Variant, shape: Shape) -> dict[str, tuple[int, int, bool]]:
    """name -> (inputs, outputs, bias) of an attention layer's matrices."""
    a, D, H = scaled(variant, shape), shape.width, shape.heads
    rows = {"q": (D, H * a.qk, a.bias and not a.latent)}
    if a.q_rank is not None:
        rows = {"q_a": (D, a.q_rank, a.bias), "q_b": (a.q_rank, H * a.qk, False)}
    if a.kv_rank is not None:
        rows |= {"kv_a": (D, a.kv_rank + a.rope, a.bias), "kv_b": (a.kv_rank, H * (a.nope + a.v), False)}
    else:
        rows |= {"kv": (D, (a.kv_heads or H) * (a.qk + a.v), a.bias)}
    return rows | {"o": (H * a.v, D, a.bias)}


def attention_params(variant: Variant, shape: Shape) -> int:
    """Of one layer: matrices, biases, and the norms of the latents."""
    a = scaled(variant, shape)
    matrices = sum(n * m + m * bias for n, m, bias in projections(variant, shape).values())
    return matrices + (a.q_rank or 0) + (a.kv_rank or 0)


def total_params(variant: Variant, shape: Shape) -> int:
    """V D + L (experts, router, two norms, attention) + a norm, the embedding being the output layer too."""
    return _params(variant, shape, max(1, shape.experts))


def active_params(variant: Variant, shape: Shape) -> int:
    """What one token meets: as total_params, but of the experts only its own."""
    return _params(variant, shape, shape.top if shape.experts else 1)


def _params(variant: Variant, shape: Shape, experts: int) -> int:
    D = shape.width
    feed_forward = experts * 2 * D * shape.ff + D * shape.experts
    learned = shape.context * D if variant.position == "learned" else 0
    per_layer = feed_forward + 2 * D + attention_params(variant, shape)
    return shape.vocab * D + learned + shape.layers * per_layer + D


def of_same_params(variant: Variant, shape: Shape, reference: Variant) -> Shape:
    """The shape with the feed-forward width at which the arm has as many parameters as the reference has at `shape`, to
    within half a unit of that width."""
    unit = total_params(variant, replace(shape, ff=shape.ff + 1)) - total_params(variant, shape)
    ff = shape.ff + round((total_params(reference, shape) - total_params(variant, shape)) / unit)
    if ff < 1:
        raise ValueError(f"no feed-forward is narrow enough for {variant} to have the parameters of {reference}")
    return replace(shape, ff=ff)


def halved(shape: Shape) -> Shape:
    """Half the width, layers, heads and feed-forward width; the same text."""
    half = {name: max(1, getattr(shape, name) // 2) for name in ("width", "layers", "heads", "ff")}
    return replace(shape, **half)


def forward_flops_per_token(variant: Variant, shape: Shape, context: int | None = None) -> int:
    """Two per weight of a matrix that a token meets, output layer included, and attention over the whole context (the
    half that a causal kernel may skip counts too). Keys or values, whichever are narrower, are padded to the width of
    the other for the sake of one fused kernel for all arms, and count so."""
    a, D = scaled(variant, shape), shape.width
    matrices = sum(n * m for n, m, _ in projections(variant, shape).values())
    feed_forward = (shape.top if shape.experts else 1) * 2 * D * shape.ff + D * shape.experts
    attention = 2 * (context or shape.context) * shape.heads * max(a.qk, a.v)
    return 2 * (shape.layers * (matrices + feed_forward + attention) + shape.vocab * D)


def training_flops_per_token(variant: Variant, shape: Shape) -> int:
    """Three forwards, the backward being two; and half the attention of one more, as the fused kernel's backward makes
    the scores again."""
    again = shape.layers * shape.context * shape.heads * max(scaled(variant, shape).qk, scaled(variant, shape).v)
    return 3 * forward_flops_per_token(variant, shape) + 2 * again


def kv_elements_per_token(variant: Variant, shape: Shape) -> int:
    """Numbers that decoding keeps of a token, over all layers: the latent and the shared key, or keys and values."""
    a = scaled(variant, shape)
    if a.kv_rank is not None:
        return shape.layers * (a.kv_rank + a.rope)
    return shape.layers * (a.kv_heads or shape.heads) * (a.qk + a.v)


def kv_bytes_per_token(variant: Variant, shape: Shape, element: int = 2) -> int:
    """The cache's bytes per token at `element` bytes a number (2 = bfloat16)."""
    return element * kv_elements_per_token(variant, shape)
