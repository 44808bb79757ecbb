"""Compiles the network for training, sets the precision of its computations, and reports a lack of memory."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from simsearch.errors import SimsearchError
from simsearch.training import response_norm
from simsearch.training.config import setting_hint

if TYPE_CHECKING:
    from torch import Tensor, nn

    from simsearch.training.config import TrainConfig


def compile_with_fallback(
    network: nn.Module, outputs: nn.Module, device: torch.device, log: Callable[[dict[str, Any]], None]
) -> Callable[[Tensor], Any]:
    """Returns a function that does the same as `outputs`, compiled by torch.compile at the first call.

    On the CPU, only the local response normalisations of a network that has some are compiled: everything else calls
    library functions, which are as fast without.
    If the first call fails, for example because there is no compiler, the function calls `outputs` uncompiled from then
    on, and writes the reason to the log. If it fails because memory runs out, the error is raised.
    outputs: the forward pass of `network`. log: called with a row of the training's log; see `loop.train`.
    """
    forward: Callable[[Tensor], Any] | None = None
    for name in ("torch.utils.cpp_extension", "torch._inductor", "torch._dynamo"):  # their warnings are harmless
        logging.getLogger(name).setLevel(logging.ERROR)

    def call(x: Tensor) -> Any:
        nonlocal forward
        if forward is not None:
            return forward(x)
        fast = device.type == "cpu" and response_norm.make_fast(network)
        forward = outputs if fast else torch.compile(outputs)
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
            response_norm.make_plain(network)
            forward = outputs
            return forward(x)

    return call


@contextlib.contextmanager
def within_memory(batch: int, device: torch.device) -> Iterator[None]:
    """Turns an out-of-memory error into SimsearchError with the hint to use a smaller batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        hints = setting_hint("batch_size", max(1, batch // 2))
        raise SimsearchError(f"a batch of {batch} images does not fit into the memory of {device}", **hints) from error


def _is_memory(error: Exception) -> bool:
    """Returns True for an out-of-memory error; some libraries report it only by the message of a RuntimeError."""
    message = str(error).lower()
    phrases = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(phrase in message for phrase in phrases)


@contextlib.contextmanager
def autocast_context(config: TrainConfig, device: torch.device) -> Iterator[Callable[[], Any]]:
    """Yields a function that makes a context in which the network computes in the configured precision.

    With the precision "float32", the context changes nothing. With "auto", the network computes in bfloat16 if the
    device has instructions for it. What remains in float32 may use TF32 on a GPU until the block ends.
    """
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
    """Returns True if the device has instructions for bfloat16; without them, float32 is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def product_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype for large matrix products that need no precision: bfloat16 if `has_bf16`, or else float32.

    Without such instructions, a product in bfloat16 takes a hundred times as long as in float32.
    """
    return torch.bfloat16 if has_bf16(device) else torch.float32
