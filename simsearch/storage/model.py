"""The model that an index was made with, loaded on first use."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.float16 import to_float16
from simsearch.errors import ModelMismatchError, UsageError
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import resolve
from simsearch.models import load, registry
from simsearch.storage import components

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models.base import Model
    from simsearch.storage.protocols import OpenIndex

_BATCH = 32
"""Number of images whose features the model computes at once."""


class IndexModel:
    """The model of an index, loaded when it is first needed. Safe for many threads.

    index: the index that the model is for.
    model: a name, a path or a `Model`, to use instead of the name that the index has recorded. If the precision of a
    `Model` differs from that of the index, a model with the same name and the index's precision is loaded instead.
    device: see `load.load_model`.
    Raises ModelMismatchError if the index was made by another model.
    """

    def __init__(self, index: OpenIndex, model: str | Model | None = None, device: str = "auto") -> None:
        self.index, self.device = index, device
        self._lock = threading.RLock()
        self._model: Model | None = None
        self.name = registry.current_name(index.meta.model)
        if isinstance(model, str):
            self.name = model
            if not load.is_torchvision(model) or model != index.meta.model:
                self._check(model, load.weights_sha256(model))
        elif model is not None:
            self._check(model.name, model.weights_sha256)
            self.name = model.name
            if registry.precision_of(model.engine) == self.precision:
                self._model = components.apply(model, index.folder, index.meta)

    @property
    def precision(self) -> str:
        """The number type in which all features of the index were computed: float32 or int8."""
        return registry.precision_of(self.index.meta.engine)

    @property
    def engine(self) -> str | None:
        """The library and device that the loaded model computes with; None before the model is loaded."""
        return self._model.engine if self._model is not None else None

    def load(self, expected: int | None = None, threads: bool = False) -> Model:
        """Returns the model, which is loaded at the first call.

        For up to `registry.FEW` images, the model is loaded in a way that starts faster but computes more slowly. It is
        loaded again at the first call for more images.
        expected: the number of images whose features are needed; None if unknown.
        threads: True if several threads will use the model.
        Raises UsageError if the weights file is missing, ModelMismatchError if the index was made with other weights,
        and IndexDamagedError if the principal components of the index are missing or damaged.
        """
        with self._lock:
            many = expected is None or expected > registry.FEW
            if self._model is None or (many and getattr(self._model, "few", False)):
                if self.name.endswith((".safetensors", ".onnx")) and not Path(self.name).is_file():
                    raise UsageError(
                        f"no weights file at {self.name}; the index was made with this file",
                        hint="model=PATH gives its new path",
                        shell_hint="--model FILE gives its new path",
                    )
                model = load.load_model(
                    self.name, self.device, images=expected, threads=threads, precision=self.precision
                )
                self._check(model.name, model.weights_sha256)
                self._model = components.apply(model, self.index.folder, self.index.meta)
            return self._model

    def compute(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Computes the features of n images; returns (n, D) float32, rounded to values that float16 can store.

        pixels: (S, S, 3) uint8 for each image, from `Preprocessing.pixels`. S is the side of the model's input.
        """
        if not pixels:
            return np.zeros((0, self.index.meta.dimension), np.float32)
        model = self.load(expected=len(pixels))
        rows = [
            to_float16(model.features(np.stack(pixels[start : start + _BATCH]))).astype(np.float32)
            for start in range(0, len(pixels), _BATCH)
        ]
        return np.concatenate(rows)

    def features(self, pictures: Iterable[Any]) -> NDArray[np.float32]:
        """Computes the features of n pictures; returns (n, D) float32, rounded to values that float16 can store.

        pictures: of any type that `resolve.open_picture` takes. Raises ImageError for a picture that cannot be read.
        """
        recipe = Preprocessing.from_dict(self.index.meta.recipe)
        decoded = (resolve.open_picture(picture, recipe.resize).image for picture in pictures)
        return self.compute([recipe.pixels(image) for image in decoded])

    def _check(self, name: str, digest: str) -> None:
        meta = self.index.meta
        if digest != meta.weights_sha256 and registry.sha256_before_ranges(name) != meta.weights_sha256:
            if name in registry.BUILTIN and name == registry.current_name(meta.model):
                raise ModelMismatchError(
                    f"the index {self.index.path} was made by former weights of {name}, {meta.weights_sha256};"
                    f" this version of simsearch has {digest}",
                    hint="build a new index, or give the former weights with model=PATH; without them, searches by id,"
                    " info, duplicates and export still work",
                    shell_hint="build a new index, or give the former weights with --model FILE; without them, queries"
                    " by id (id:N), info, duplicates and export still work",
                )
            raise ModelMismatchError(
                f"the index {self.index.path} was made by model {meta.model} with weights {meta.weights_sha256},"
                f" but {name} has weights {digest}",
                hint="use the model that made the index, or build a new index with this model",
            )
