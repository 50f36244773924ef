"""A training step as a CUDA graph, which launches all its kernels at once."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

# Libraries set themselves up in the first steps, which must be over before a step is captured
PLAIN_STEPS = 3


class CapturedStep:
    """`step` after a few plain calls captured, and replayed from then on.

    All inputs must have the same shapes in each call. `release` frees gradients before the capture,
    because a graph has memory of its own.
    """

    def __init__(self, step: Callable[..., Tensor], release: Callable[[], None]) -> None:
        self.step = step
        self.release = release
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.losses = torch.empty(0)
        self._n_plain = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._n_plain < PLAIN_STEPS:
            self._n_plain += 1
            return self._plain_step(inputs)
        if self.graph is None:
            self._capture(inputs)

        assert self.graph is not None
        for fixed, new in zip(self.inputs, inputs, strict=True):
            fixed.copy_(new)
        self.graph.replay()
        return self.losses

    def _plain_step(self, inputs: tuple[Tensor, ...]) -> Tensor:
        # On a side stream, as torch demands before a capture
        side = _side_stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            losses = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        return losses

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self.release()
        self.graph = torch.cuda.CUDAGraph()
        self.inputs = [values.clone() for values in inputs]
        with torch.cuda.graph(self.graph, stream=_side_stream()):
            self.losses = self.step(*self.inputs)


def beside(first: Callable[[], Tensor], second: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """The results of both, which need nothing of each other.

    In a step that is captured they are computed at the same time, and so are their gradients.
    """
    if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
        return first(), second()

    current = torch.cuda.current_stream()
    side = _side_stream(1)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        second_result = second()
    first_result = first()
    current.wait_stream(side)
    return first_result, second_result


@functools.cache
def _side_stream(number: int = 0) -> torch.cuda.Stream:
    """The same ones for all steps: for each stream, cuBLAS keeps memory until the process ends."""
    return torch.cuda.Stream()
