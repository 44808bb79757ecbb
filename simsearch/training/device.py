"""How a training computes on its device: compiled, in which arithmetic, and what it says where the memory is short."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from simsearch.errors import SimsearchError

if TYPE_CHECKING:
    from torch import Tensor

    from simsearch.training.config import TrainConfig


def compile_with_fallback(
    outputs: Callable[[Tensor], Any], log: Callable[[dict[str, Any]], None]
) -> Callable[[Tensor], Any]:
    """A forward pass by torch.compile, or as it stands where the first call fails: for want of a compiler, say."""
    forward: Callable[[Tensor], Any] | None = None

    def call(x: Tensor) -> Any:
        nonlocal forward
        if forward is not None:
            return forward(x)
        forward = torch.compile(outputs)
        try:
            return forward(x)
        except RuntimeError as error:
            if _is_memory(error):
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            log(
                {
                    "event": "note",
                    "text": f"torch.compile failed ({reason.strip()[:200]}); training goes on uncompiled, and slower",
                }
            )
            forward = outputs
            return forward(x)

    return call


@contextlib.contextmanager
def within_memory(batch: int, device: torch.device) -> Iterator[None]:
    """Raises SimsearchError where the memory does not suffice for a batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        hint = f"--set batch_size={max(1, batch // 2)}"
        raise SimsearchError(f"a batch of {batch} does not fit into the memory of {device}", hint=hint) from error


def _is_memory(error: Exception) -> bool:
    """Whether there was too little memory; only some of those who say so have a class of their own for it."""
    said = str(error).lower()
    words = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in said for word in words)


@contextlib.contextmanager
def autocast_context(config: TrainConfig, device: torch.device) -> Iterator[Callable[[], Any]]:
    """What makes the context in which the network computes, a new one for each use; settings are put back after."""
    if config.precision == "float32":
        yield contextlib.nullcontext
        return
    autocast: Callable[[], Any] = contextlib.nullcontext
    if has_bf16(device):
        autocast = functools.partial(torch.autocast, device.type, torch.bfloat16)
    if device.type != "cuda":
        yield autocast
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    try:
        yield autocast
    finally:
        torch.set_float32_matmul_precision(before)


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is fast on the device; without it, float32 is the quicker choice."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
