"""The protocol of a model: pixels in, features out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing


class Model(Protocol):
    """The interface of a model; any object with these members can be used.

    name: `load_model(name)` loads the model again.
    weights_sha256: identifies the weights. dimension: D. recipe: the preprocessing of images.
    engine: the software and device that compute, such as "onnxruntime-cpu".
    distances: quantiles of distances between random images, see `ModelCard`; may be empty.

    Optional members: `lanes`, the number of threads that should call `features` at once; `decoder`, a
    `jpeg_decoder.JpegDecoder` if the device can decode JPEGs; `layers` and `outputs`, for features of other layers.
    """

    @property
    def name(self) -> str: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def recipe(self) -> Preprocessing: ...
    @property
    def engine(self) -> str: ...
    @property
    def distances(self) -> tuple[float, ...]: ...

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Computes features: (B, S, S, 3) uint8 RGB from `recipe.pixels` -> (B, D) float32."""
        ...
