"""The sizes of both architectures, one line each, under the original's names; `huge` and `giant` go beyond them."""

from typing import NamedTuple


class Size(NamedTuple):
    width: int  # d_model
    heads: int
    inner: int  # d_ff
    depth: int  # layers
    lr: float  # peak learning rate, the same for every architecture


SIZES = {
    "tiny": Size(128, 4, 512, 2, 1e-3),
    "small": Size(256, 4, 1024, 3, 7e-4),
    "medium": Size(512, 8, 2048, 4, 5e-4),
    "large": Size(768, 12, 3072, 6, 3e-4),
    "xl": Size(1024, 16, 4096, 8, 2e-4),
    "huge": Size(1280, 20, 5120, 10, 1.5e-4),  # about 200 million parameters
    "giant": Size(1792, 28, 7168, 13, 1e-4),  # about 500 million
}
