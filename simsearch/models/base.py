"""The protocol of a model: pixels in, features out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing


class Model(Protocol):
    """What the engine needs of a model; any object with these members will do.

    name: how to get it again from `load`. weights_sha256: identifies the weights. dimension: D.
    engine: what computes, such as "onnxruntime-cpu". distances: see `ModelCard`; may be empty. A model
    that profits from several threads calling `features` at once has their number as `lanes`; one whose device decodes
    JPEGs has a `jpeg_decoder.JpegDecoder` as `decoder`.
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
        """(B, S, S, 3) uint8 RGB from `preprocessing.pixels` -> (B, D) float32."""
        ...
