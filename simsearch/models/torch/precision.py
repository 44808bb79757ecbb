"""Full float32 precision on a GPU: switches off TF32 and reduced-precision sums while threads compute.

The settings apply to the whole process. torch has an older and a newer interface for them, which must not be mixed.
This module uses the interface that the rest of the program uses, and restores the settings afterwards.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch


class _SharedContext:
    """A context shared by threads: the first thread to come enters it, and the last thread to go leaves it."""

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._make, self._lock, self._threads = make, threading.Lock(), 0
        self._context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._threads:
                self._context = self._make()
                self._context.__enter__()
            self._threads += 1
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    self._context.__exit__(None, None, None)


@contextlib.contextmanager
def _ieee() -> Iterator[None]:
    """A context without TF32 and without reduced-precision sums; it restores the settings that it changed."""
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    precision = _matmul_precision()
    settings: list[tuple[Any, str, Any]] = [(matmul, "allow_fp16_reduced_precision_reduction", False)]
    if precision is not None and _uses_older_interface():
        settings.append((cudnn, "allow_tf32", False))
    else:
        settings += [(place, "fp32_precision", "ieee") for place in (matmul, cudnn.conv, cudnn.rnn)]
    with contextlib.ExitStack() as restore:
        if precision not in {None, "highest"}:  # the older interface must not contradict the newer one
            restore.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
        for place, name, value in settings:
            if (before := getattr(place, name)) != value:
                restore.callback(setattr, place, name, before)
                setattr(place, name, value)
        yield


def _matmul_precision() -> str | None:
    """Returns the precision of matrix products in the older interface; None if reading it raises an error."""
    with contextlib.suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    return None


def _uses_older_interface() -> bool:
    """Returns true unless the program has used torch's newer interface, for convolutions or for all operations.

    If the program has used neither interface, this module may use either; it uses the older one.
    """
    backends: Any = torch.backends
    with contextlib.suppress(RuntimeError):  # raised by the older interface after the newer one was used
        general = {backends.fp32_precision, backends.cudnn.fp32_precision}
        return general == {"none"} and backends.cudnn.allow_tf32 is not None
    return False


_full = _SharedContext(_ieee)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which a GPU computes float32 in full precision; on the CPU it does nothing.

    With TF32, whose mantissa has 10 bits, the features would differ from those of the CPU. In the context, sums of
    float16 products are computed in float32. The settings are restored when the last thread leaves the context.
    """
    return _full() if device.type == "cuda" else contextlib.nullcontext()
