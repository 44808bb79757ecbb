"""Modules that are imported on first use."""

from __future__ import annotations

import importlib
from typing import Any


class LazyModule:
    """A module that is imported when one of its attributes is first read.

    For modules that import torch, FastAPI or rich, which most commands do not need. Declare it at the top of a file, so
    that import-linter sees the import:

        if TYPE_CHECKING:
            from simsearch.models.torch import runtime
        else:
            runtime = LazyModule("simsearch.models.torch.runtime")
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
