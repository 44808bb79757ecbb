"""CUDA graphs: what is computed again and again for one shape of input is recorded once, and then replayed.

A replay starts the dozens of kernels of a forward pass by one call, which matters where a batch is small: a query is
one picture. Recording is an optimisation only: where it fails, or its result differs, the shape is computed as before.
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

WARM = 3
"""A shape is recorded when it has been computed so many times, by when libraries have chosen their kernels."""

MOST = 8
"""Shapes recorded a thread: each keeps the activations of its batch."""

DEVIATION = 0.01
"""By how much a replay may differ from the ordinary result, relative to the largest value."""

_recording = threading.Lock()  # torch permits one recording at a time in a process


class _Recorded(NamedTuple):
    """x: what is read, y: what is written, by `replay`; both stay where they are on the device."""

    x: torch.Tensor
    replay: Callable[[], None]
    y: torch.Tensor


def capture(step: Step, x: torch.Tensor) -> tuple[Callable[[], None], torch.Tensor]:
    """Records `step(x)` on the current stream of x's GPU: what replays it, and the tensor that it then writes."""
    import torch

    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream(x.device)
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # others go on meanwhile
        y = step(x)
    return graph.replay, y


def empty_cache() -> None:
    """Gives the GPU's memory that torch keeps for itself back, after what is being recorded.

    torch refuses that during a recording, and for good after one that failed.
    """
    import torch

    with _recording, contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()


class CudaGraphCache:
    """The recordings of one thread, on its stream. Not safe for several."""

    def __init__(self, capture: Capture = capture) -> None:
        self._capture = capture
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recorded] = {}
        self._able = True

    def __len__(self) -> int:
        """The number of recordings in use."""
        return len(self._recorded)

    def run(self, function: Hashable, step: Step, x: torch.Tensor, device: torch.device) -> torch.Tensor:
        """`step` of x, which may lie on the host; the result is valid until the next call.

        function: what tells one step from another of equal shape.
        """
        key = (function, x.shape, x.dtype)
        recorded = self._recorded.get(key)
        if recorded is not None:
            recorded.x.copy_(x, non_blocking=True)
            recorded.replay()
            return recorded.y
        y = step(x.to(device, non_blocking=True))
        self._seen[key] += 1
        if self._seen[key] == WARM and len(self._recorded) < MOST and self._able:
            if (made := self._record(step, x, y, device)) is not None:
                self._recorded[key] = made
            else:
                self._able = False  # what failed once is not tried again
        return y

    def _record(self, step: Step, x: torch.Tensor, y: torch.Tensor, device: torch.device) -> _Recorded | None:
        """The recording of a step whose ordinary result is y; None where that cannot be had or is not y."""
        try:
            own = x.to(device, copy=True)
            with _recording:
                replay, again = self._capture(step, own)
            replay()
            limit = DEVIATION * float(y.abs().max())
            same = bool((again - y).abs().max() <= limit)  # not where either is NaN
        except RuntimeError:  # out of memory, and what cannot be recorded
            return None
        return _Recorded(own, replay, again) if same else None
