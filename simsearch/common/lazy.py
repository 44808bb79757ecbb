"""Modules that are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import Any


class LazyModule:
    """A module that is imported when one of its attributes is first read.

    For modules that import torch, FastAPI or rich, which most uses do without. At the top of a file, so that the
    direction of imports is seen by import-linter:

        if TYPE_CHECKING:
            from simsearch.models.torch import runtime
        else:
            runtime = LazyModule("simsearch.models.torch.runtime")
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
