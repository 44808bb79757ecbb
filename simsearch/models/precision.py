"""What features are computed in: float32, or int8 where weights and processor are fit for it."""

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

ENOUGH = 0.97
"""From this agreement of int8 with float32 on, int8 is the choice for a new index."""


def can_quantise(weights: WeightsFile) -> bool:
    """Whether the network can run in int8: AlexNet, with ranges in its file."""
    return weights.card.architecture == "alexnet" and bool(weights.card.ranges)


def choose_precision(weights: WeightsFile) -> str:
    """What a new index is computed in on the CPU: `$SIMSEARCH_PRECISION`, else int8 where it is good and fast.

    Good is an agreement with float32 of `ENOUGH` on training images; fast is a processor with VNNI, by which it was
    measured. Raises UsageError for another word.
    """
    asked = os.environ.get("SIMSEARCH_PRECISION") or "auto"
    if asked in PRECISIONS:
        return asked
    if asked != "auto":
        raise UsageError(f"SIMSEARCH_PRECISION is {asked!r}", hint=f"auto, {' or '.join(PRECISIONS)}")
    good = can_quantise(weights) and weights.card.agreement >= ENOUGH
    return "int8" if good and has_vnni() else "float32"


def has_vnni() -> bool:
    """Whether the processor multiplies 8-bit integers fast, as far as Linux says."""
    try:
        text = Path("/proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return False
    return bool(re.search(r"^flags\s*:.*\bavx(512)?_vnni\b", text, re.MULTILINE))
