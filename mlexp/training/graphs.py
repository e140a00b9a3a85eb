"""Steps as CUDA graphs, one for every shape of batch: a small model's step costs one launch instead of thousands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mlexp.memory import out_of_memory

from .microbatch import Batch

if TYPE_CHECKING:
    from .loop import Fit

Step = Callable[..., Tensor]  # a batch's tensors -> its loss, the parameters being changed
Shape = tuple[torch.Size, ...]


class _Graph(NamedTuple):
    """A captured step, the tensors that it reads its batch from, and the one that it writes its loss to."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    loss: Tensor


class Captured:
    """Takes steps: the first WARM of a shape as usual, the others by replaying a graph.

    Where memory ran out all steps stay as usual: the graphs would hold on to it.
    """

    WARM = 3  # what is allocated or chosen at first use must not be part of a graph

    def __init__(self, usual: Step, bare: Step, result: Fit):
        self.usual, self.bare, self.result = usual, bare, result
        self.seen: Counter[Shape] = Counter()
        self.graphs: dict[Shape, _Graph] = {}
        self.enough_memory = True
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch does not annotate it

    def __call__(self, *batch: Tensor) -> Tensor:
        shape = tuple(tensor.shape for tensor in batch)
        self.seen[shape] += 1
        if shape not in self.graphs and (self.seen[shape] <= self.WARM or not self._capture(shape, batch)):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):  # autograd remembers the stream, and the capture's is another
                loss = self.usual(*batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return loss
        captured = self.graphs[shape]
        for own, given in zip(captured.inputs, batch, strict=True):
            own.copy_(given)
        captured.graph.replay()
        return captured.loss.clone()

    def _capture(self, shape: Shape, batch: Batch) -> bool:
        """Whether a graph for this shape was made; nothing is executed yet."""
        if self.result.micro_batch or self.result.relieved or not self.enough_memory:
            return False
        graph, inputs = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in batch]
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                loss = self.bare(*inputs)
        except Exception as error:
            if not out_of_memory(error):
                raise
            print(f"mlexp: no memory for a CUDA graph of batches {list(map(tuple, shape))}: steps run as usual")
            self.enough_memory = False
            return False
        self.graphs[shape], self.result.captured = _Graph(graph, inputs, loss), True
        return True
