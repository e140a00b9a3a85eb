"""One training loop for every trained subject: AdamW, warm-up, cosine, the best held-out state, micro-batches."""

from .graphs import Captured
from .loop import Fit, fit, seed_everything
from .microbatch import backward, gradients
from .optimizer import Recipe
from .saved import saved_bytes

__all__ = ["Captured", "Fit", "Recipe", "backward", "fit", "gradients", "saved_bytes", "seed_everything"]
