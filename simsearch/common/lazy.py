"""Modules that are imported on first use."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class LazyModule:
    """A module that is imported when one of its attributes is first read.

    This class is for modules that import torch, FastAPI or rich, which most commands do not need. Declare a lazy module
    at the top of a file, so that import-linter sees the import:

        if TYPE_CHECKING:
            from simsearch.models.torch import runtime
        else:
            runtime = LazyModule("simsearch.models.torch.runtime")
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._module: ModuleType | None = None

    def __getattr__(self, attribute: str) -> Any:
        if self._module is None:
            self._module = importlib.import_module(self._name)
        return getattr(self._module, attribute)
