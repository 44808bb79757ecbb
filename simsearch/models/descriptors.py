"""Descriptors: image vectors that an index can store instead of the plain features of the last hidden layer.

A descriptor is a recipe of these steps, each of which is optional:

- Pooling turns the maps of a convolution into a vector: the maximum of each map (Razavian et al. 2014), or R-MAC, a sum
  of maxima over regions of several sizes (Tolias et al., ICLR 2016).
- Square roots of activations reduce the weight of a few strong ones (Jégou et al., PAMI 2012, "power
  normalisation").
- Principal components keep the quality of features in a fraction of their bytes (Babenko et al., ECCV 2014). They are
  learned without labels from images of the index when it is built, and do not change afterwards.
- Whitening divides each component by a power of its standard deviation (Jégou & Chum, ECCV 2012).

Shape letters: B images, C maps of a convolution, H side of a map, D dimension of a layer or of several layers together,
d dimension stored in the index.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import suggestions
from simsearch.common.pca import Projection
from simsearch.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing
    from simsearch.models.base import Model
    from simsearch.models.torch.jpeg_decoder import JpegDecoder

REFERENCE = "fc7"
"""Name of the plain features of the last hidden layer. All descriptors are compared with these features."""


@dataclass(frozen=True)
class LayerPart:
    """The part of a descriptor's vector that comes from one layer of the network.

    layer: "features" (the last hidden layer, fc7), "fc6" or "conv5".
    pooling: "max" or "rmac" for conv5; empty for the other layers.
    root: True to take the square roots of activations.
    weight: the length to which this part is scaled before the parts are concatenated.
    """

    layer: str = "features"
    pooling: str = ""
    root: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Descriptor:
    """The recipe of an image vector of unit length.

    parts: the parts that are concatenated.
    mirror: True to average the vector with that of the mirror image.
    dimension: the number of principal components to keep; 0 to keep the vector as it is.
    whitening: from 0 (components as they are) to 1 (equal variance of all components).
    """

    parts: tuple[LayerPart, ...] = (LayerPart(),)
    mirror: bool = False
    dimension: int = 0
    whitening: float = 0.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Descriptor:
        """Returns the descriptor with the values that `to_dict` returned.

        Raises UsageError for unknown keys: if they were ignored, the features would be different.
        """
        try:
            return cls(**{**values, "parts": tuple(LayerPart(**part) for part in values["parts"])})
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"the recipe of the index's features is not understood: {error}",
                hint="update simsearch: a newer version may know the recipe",
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that the network must output, each once."""
        return tuple(dict.fromkeys(part.layer for part in self.parts))


DESCRIPTORS: dict[str, Descriptor] = {
    "best": Descriptor(mirror=True, dimension=256, whitening=0.25),
    "fc7-256": Descriptor(dimension=256, whitening=0.25),
    "fc7-64": Descriptor(dimension=64, whitening=0.25),
    "fc7-unit": Descriptor(),
    "fc7-root": Descriptor((LayerPart(root=True),)),
    "fc7-mirror": Descriptor(mirror=True),
    "fc6": Descriptor((LayerPart("fc6"),)),
    "conv5-max": Descriptor((LayerPart("conv5", "max"),)),
    "conv5-rmac": Descriptor((LayerPart("conv5", "rmac"),)),
}
"""Maps names to descriptors. `best` gave the best retrieval in scripts/bench/descriptors.py, on training images and on
images of another kind; `fc7-256` is nearly as good and takes half the computation."""


def unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns x (B, D) with each row scaled to length 1; rows of zeros stay zero."""
    scaled: NDArray[np.float32] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    return scaled


def r_mac(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pools maps (B, C, H, H) into vectors (B, C) by R-MAC.

    The maps are covered three times: by one square, by 2 x 2 squares, and by 3 x 3 squares, which overlap. For each of
    these 14 squares, the maximum of each map in the square is taken. The C maxima of an image form a vector, which is
    scaled to length 1. The result is the sum of an image's 14 vectors, (B, C) for all images.
    """
    side, total = maps.shape[2], np.zeros(maps.shape[:2], np.float32)
    for scale in (1, 2, 3):
        size = -(-2 * side // (scale + 1))
        starts = np.linspace(0, side - size, scale).round().astype(int)
        for y in starts:
            for x in starts:
                total += unit(maps[:, :, y : y + size, x : x + size].max((2, 3)))
    return total


def describe(descriptor: Descriptor, layers: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns a descriptor's vectors (B, D), of unit length, before mirror images and principal components are applied.

    layers: maps the name of each layer to its output, float32 of shape (B, D), or (B, C, H, H) for conv5.
    """
    joined = []
    for part in descriptor.parts:
        x = layers[part.layer]
        if part.pooling:
            x = r_mac(x) if part.pooling == "rmac" else x.max((2, 3))
        x = np.sqrt(np.maximum(x, 0)) if part.root else x
        joined.append(part.weight * unit(x))
    return unit(np.concatenate(joined, 1))


class DescriptorModel:
    """Wraps a model so that its features are the vectors of a descriptor.

    projection: the learned principal components; None for a descriptor that has none.
    Raises UsageError if the network does not output a layer that the descriptor needs.
    """

    def __init__(self, base: Model, descriptor: Descriptor, projection: Projection | None = None) -> None:
        self.base, self.descriptor, self.projection = base, descriptor, projection
        self.name, self.weights_sha256, self.engine = base.name, base.weights_sha256, base.engine
        self.distances: tuple[float, ...] = ()
        available = getattr(base, "layers", ("features",))
        for layer in descriptor.layers:
            if layer not in available:
                hint = f"it has {', '.join(available)}"
                raise UsageError(f"the network of {base.name} has no layer {layer!r}", hint=hint)

    @property
    def few(self) -> bool:
        """True if the wrapped model was loaded for a few images only (see `load_model`)."""
        return bool(getattr(self.base, "few", False))

    @property
    def lanes(self) -> int:
        """The number of threads that should call `features` at once."""
        return int(getattr(self.base, "lanes", 1))

    @property
    def decoder(self) -> JpegDecoder | None:
        """The JPEG decoder of the model's device; None if the device does not decode JPEGs."""
        return getattr(self.base, "decoder", None)

    @property
    def recipe(self) -> Preprocessing:
        """The preprocessing of the wrapped model."""
        return self.base.recipe

    @property
    def dimension(self) -> int:
        """The number of values of a vector: d, or D without principal components.

        If neither the components nor the wrapped model's `dimension` determine this number, the vector of one blank
        image is computed and its values counted.
        """
        if self.projection is not None:
            return int(self.projection.axes.shape[1])
        if self.descriptor.layers == ("features",):
            return len(self.descriptor.parts) * self.base.dimension
        side = self.recipe.crop
        return int(self._view(np.zeros((1, side, side, 3), np.uint8)).shape[1])

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the descriptor's vectors of B images: (B, d) float32, of unit length.

        pixels: (B, S, S, 3) uint8 RGB, as `recipe.pixels` makes them; S is the side of the network's input.
        """
        x = self._view(pixels)
        if self.descriptor.mirror:
            x = unit(x + self._view(np.ascontiguousarray(pixels[:, :, ::-1])))
        return x if self.projection is None else unit(self.projection(x))

    def _view(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        names = self.descriptor.layers
        if names == ("features",):
            return describe(self.descriptor, {"features": self.base.features(pixels)})
        found = self.base.outputs(names, pixels)  # type: ignore[attr-defined]  # models with `layers` have `outputs`
        return describe(self.descriptor, dict(zip(names, found, strict=True)))


def find(name: str) -> Descriptor | None:
    """Returns the descriptor called `name`; None for "fc7", the plain features.

    Raises UsageError for an unknown name.
    """
    if name == REFERENCE:
        return None
    if name not in DESCRIPTORS:
        raise UsageError(f"no features are called {name!r}", hint=suggestions.hint(name, (REFERENCE, *DESCRIPTORS)))
    return DESCRIPTORS[name]
