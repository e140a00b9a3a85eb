"""A loaded model's layers as a CPU runs them fastest: weights packed once, GPT-2's activation in one kernel, not eight.

A property of the model, and so of every arm that decodes it. Outputs are those of the plain layers within rounding.
"""

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIN_ROWS = 3  # fewer are a read of the weights, which the plain product does as fast
TYPICAL_ROWS = 20  # what the packed layout is chosen for; any number runs on it

Forward = Callable[[Tensor], Tensor]


def pack(model: "PreTrainedModel") -> None:
    """Give the layers of a model that is only run, never trained, the forwards below.

    A packed weight is a copy, so that the model takes up to twice its memory. It is used for float32 on a CPU without
    gradients, as long as the weight is the one that was packed; otherwise the layer runs as it did.
    """
    from transformers.activations import NewGELUActivation
    from transformers.pytorch_utils import Conv1D

    layers: Iterable[Any] = model.modules()
    for module in layers:
        kind = type(module)
        if kind is NewGELUActivation:
            module.forward = functools.partial(nn.functional.gelu, approximate="tanh")
        elif kind in (nn.Linear, Conv1D) and _packable(module.weight):
            module.forward = _product(module, transposed=kind is Conv1D)


def _packable(weight: Any) -> bool:
    """Whether a product with a weight can be packed: torch's own oneDNN, and what it packs without rounding."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
        and isinstance(weight, Tensor)
        and not weight.is_inference()  # which has no count of its changes
        and (weight.dtype, weight.device.type, weight.requires_grad) == (torch.float32, "cpu", False)
    )


def _product(module: Any, transposed: bool) -> Forward:
    """x W^T + b over packed weights: transposed, the module's own is W^T."""
    plain: Forward = module.forward
    weight: Tensor = module.weight
    run, version = torch.ops.mkldnn._linear_pointwise, weight._version
    packed = torch.ops.mkldnn._reorder_linear_weight((weight.t() if transposed else weight).contiguous(), TYPICAL_ROWS)

    def forward(x: Tensor) -> Tensor:
        few = x.numel() < MIN_ROWS * x.shape[-1]
        changed = module.weight is not weight or weight._version != version
        if few or changed or x.dtype != torch.float32 or (x.requires_grad and torch.is_grad_enabled()):
            return plain(x)
        out: Tensor = run(x, packed, module.bias, "none", [], "")
        return out

    return forward
