"""The choice of precision: float32, or int8 if the weights and the processor are suited to it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from simsearch.errors import UsageError
from simsearch.models.registry import PRECISIONS

if TYPE_CHECKING:
    from simsearch.models.registry import WeightsFile

CALIBRATE = "simsearch models --calibrate SOURCE -m FILE measures them, for AlexNet"
"""Hint of the error for weights without the ranges of activations, which int8 needs."""

QUANTIZE = "simsearch models --calibrate SOURCE -m NAME|FILE.onnx writes an 8-bit copy if it agrees with float32"
"""Hint of the error if int8 was requested for a network that simsearch did not build."""

ENOUGH = 0.97
"""Int8 is used for a new index if its agreement with float32 (`ModelCard.agreement`) is at least this."""


def can_quantize(weights: WeightsFile) -> bool:
    """Returns true if the network can run in int8: it is AlexNet, and its file has the ranges of activations."""
    return weights.card.architecture == "alexnet" and bool(weights.card.ranges)


def choose_precision(weights: WeightsFile) -> str:
    """Returns the precision for a new index on the CPU: "float32" or "int8".

    If the variable $SIMSEARCH_PRECISION is "float32" or "int8", its value is returned. If it is "auto" or not set, int8
    is chosen if it is accurate and fast, else float32. Int8 is accurate if its agreement with float32 is at least
    `ENOUGH`; it is fast if the processor has VNNI. Raises UsageError if the variable has any other value.
    """
    requested = os.environ.get("SIMSEARCH_PRECISION") or "auto"
    if requested in PRECISIONS:
        return requested
    if requested != "auto":
        raise UsageError(f"SIMSEARCH_PRECISION cannot be {requested!r}", hint=f"use auto, {' or '.join(PRECISIONS)}")
    accurate = can_quantize(weights) and weights.card.agreement >= ENOUGH
    return "int8" if accurate and has_vnni() else "float32"


def has_vnni() -> bool:
    """Returns true if /proc/cpuinfo lists VNNI, the processor's instructions for dot products of 8-bit integers."""
    try:
        text = Path("/proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return False
    return bool(re.search(r"^flags\s*:.*\bavx(512)?_vnni\b", text, re.MULTILINE))
