"""CUDA graphs: records the forward pass for input shapes that occur repeatedly, and replays the recording.

A replay starts the dozens of kernels of a forward pass with one call, which saves time in small batches such as a query
of one image. Inputs of a shape without a recording are computed in the ordinary way. If recording fails, or if the
result of a replay differs from the ordinary result, no more shapes are recorded on this CUDA stream.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    Step = Callable[[torch.Tensor], torch.Tensor]
    Capture = Callable[[Step, torch.Tensor], tuple[Callable[[], None], torch.Tensor]]

WARM_UP = 3
"""A shape is recorded after this many computations. By then the libraries have chosen their kernels."""

MAX_RECORDINGS = 8
"""Largest number of recordings per CUDA stream; each recording keeps the activations of its batch in memory."""

TOLERANCE = 0.01
"""Largest accepted difference between a replay and the ordinary result, as a fraction of the largest value."""

_recording = threading.Lock()  # torch allows one recording at a time per process


class _Recorded(NamedTuple):
    """A recording of a step. A step is a function that computes a tensor y from a tensor x.

    x, y: the tensors of the recording, which stay at their place in the GPU's memory. replay: computes y from x.
    """

    x: torch.Tensor
    replay: Callable[[], None]
    y: torch.Tensor


def capture(step: Step, x: torch.Tensor) -> tuple[Callable[[], None], torch.Tensor]:
    """Records `step(x)` on the current stream of x's GPU; returns the replay function and the tensor that it writes."""
    import torch

    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream(x.device)
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # other threads go on computing
        y = step(x)
    return graph.replay, y


def empty_cache() -> None:
    """Waits until no recording is in progress, then releases the GPU memory that torch has cached.

    After a failed recording, torch raises an error instead of releasing memory. The error is ignored.
    """
    import torch

    with _recording, contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()


class CudaGraphCache:
    """The recordings on one CUDA stream, at most one for each function and shape of its input. Not thread-safe."""

    def __init__(self, capture: Capture = capture) -> None:
        self._capture = capture
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recorded] = {}
        self._can_record = True

    def __len__(self) -> int:
        """The number of recordings in use."""
        return len(self._recorded)

    def run(self, function: Hashable, step: Step, x: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Returns `step(x)`, by replaying a recording if there is one. The result is valid until the next call.

        function: a key by which the recording is found. Steps that are given the same key must do the same computation.
        step: takes a tensor on the GPU.
        x: the input, in the memory of the host or of the GPU. device: the GPU.
        """
        key = (function, x.shape, x.dtype)
        recorded = self._recorded.get(key)
        if recorded is not None:
            recorded.x.copy_(x, non_blocking=True)
            recorded.replay()
            return recorded.y
        y = step(x.to(device, non_blocking=True))
        self._seen[key] += 1
        if self._seen[key] == WARM_UP and len(self._recorded) < MAX_RECORDINGS and self._can_record:
            if (recording := self._record(step, x, y, device)) is not None:
                self._recorded[key] = recording
            else:
                self._can_record = False  # do not try again
        return y

    def _record(self, step: Step, x: torch.Tensor, y: torch.Tensor, device: torch.device) -> _Recorded | None:
        """Records `step(x)`; returns None if the recording fails or if its replay does not give y.

        y: the result of `step(x)` without a recording.
        """
        try:
            copied = x.to(device, copy=True)
            with _recording:
                replay, again = self._capture(step, copied)
            replay()
            limit = TOLERANCE * float(y.abs().max())
            same = bool((again - y).abs().max() <= limit)  # false if either contains NaN
        except RuntimeError:  # out of memory, or an operation that cannot be recorded
            return None
        return _Recorded(copied, replay, again) if same else None
