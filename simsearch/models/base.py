"""The protocol of a model: pixels in, features out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing


class Model(Protocol):
    """The interface of a model; any object with these members can be used.

    name: the name by which `load_model` loads the model.
    weights_sha256: the SHA-256 that identifies the weights.
    dimension: D, the number of features of an image.
    recipe: the preprocessing of images.
    engine: the software and device that compute, such as "onnxruntime-cpu".
    distances: quantiles of the distances between random images, see `ModelCard`; empty if they are not known.

    Some models have more members:
    lanes: the number of threads that should call `features` at once.
    decoder: a `jpeg_decoder.JpegDecoder`, if the device can decode JPEGs.
    layers, outputs: the names of layers whose outputs are available, and the method that computes these outputs.
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
        """Returns the features of B images: (B, D) float32.

        pixels: (B, S, S, 3) uint8 RGB, as `recipe.pixels` makes them; S is the side of the network's input.
        """
        ...
