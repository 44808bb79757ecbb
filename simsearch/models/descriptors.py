"""Other vectors of the same network: named recipes for what an index keeps of an image, instead of plain fc7.

Pooling: the maxima of each map (Razavian et al. 2014), or those over regions of several sizes, R-MAC (Tolias et al.,
ICLR 2016). Square roots of activations even out a few strong ones (Jégou et al., PAMI 2012, "power normalisation");
principal components keep the quality of neural codes in a fraction of their bytes (Babenko et al., ECCV 2014), and
whitening divides each by its deviation to some power (Jégou & Chum, ECCV 2012). The components are learned without
labels, from pictures of the index itself when it is made; after that they never change.

Letters: B images, D dimension of the network's layer or of a concatenation, d dimension that an index keeps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.pca import Projection
from simsearch.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing
    from simsearch.models.base import Model
    from simsearch.models.torch.jpeg_decoder import JpegDecoder

REFERENCE = "fc7"

"""The last hidden layer as it is, under Euclidean distance: what every other recipe is compared with."""


@dataclass(frozen=True)
class LayerPart:
    """One layer's share in a descriptor.

    layer: "features" (fc7), "fc6" or "conv5". pooling: of conv5, "max" or "rmac". root: square roots of activations.
    weight: of the part, at unit length, beside the others.
    """

    layer: str = "features"
    pooling: str = ""
    root: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Descriptor:
    """A recipe for one vector of unit length.

    parts: joined end to end. mirror: the mean with the mirror image's vector. dimension: of the principal components
    kept; 0 keeps the vector. whitening: 0 only rotates, 1 gives all components the same variance.
    """

    parts: tuple[LayerPart, ...] = (LayerPart(),)
    mirror: bool = False
    dimension: int = 0
    whitening: float = 0.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Descriptor:
        """Reads what `to_dict` wrote. Raises UsageError for a key of the future, which would change the features."""
        try:
            return cls(**{**values, "parts": tuple(LayerPart(**part) for part in values["parts"])})
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"the recipe of the index's features is not understood: {error}", hint="a newer simsearch may know it"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def layers(self) -> tuple[str, ...]:
        """What the network must give out, each once."""
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

"""Recipes by name. `best` retrieves best of those that scripts/bench/descriptors.py compares on training images and on
pictures of another kind; `fc7-256` is nearly as good at half the computation."""


def unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, D) rows at length 1; a row of zeros stays one."""
    scaled: NDArray[np.float32] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    return scaled


def r_mac(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, C, H, H) to (B, C): the sum of the unit maxima over 1, 4 and 9 overlapping squares."""
    side, total = maps.shape[2], np.zeros(maps.shape[:2], np.float32)
    for scale in (1, 2, 3):
        size = -(-2 * side // (scale + 1))
        starts = np.linspace(0, side - size, scale).round().astype(int)
        for y in starts:
            for x in starts:
                total += unit(maps[:, :, y : y + size, x : x + size].max((2, 3)))
    return total


def describe(descriptor: Descriptor, layers: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The (B, D) vectors of unit length from a network's layers, one view, before any projection."""
    joined = []
    for part in descriptor.parts:
        x = layers[part.layer]
        if part.pooling:
            x = r_mac(x) if part.pooling == "rmac" else x.max((2, 3))
        x = np.sqrt(np.maximum(x, 0)) if part.root else x
        joined.append(part.weight * unit(x))
    return unit(np.concatenate(joined, 1))


class DescriptorModel:
    """A model whose features are a descriptor's vectors; otherwise the model that it is given, `base`.

    projection: what `learn` found, for a descriptor that has a dimension. Raises UsageError where the network does not
    give out a layer.
    """

    def __init__(self, base: Model, descriptor: Descriptor, projection: Projection | None = None) -> None:
        self.base, self.descriptor, self.projection = base, descriptor, projection
        self.name, self.weights_sha256, self.engine = base.name, base.weights_sha256, base.engine
        self.distances: tuple[float, ...] = ()
        given = getattr(base, "layers", ("features",))
        for layer in descriptor.layers:
            if layer not in given:
                hint = f"it gives out {', '.join(given)}"
                raise UsageError(f"the network of {base.name} has no layer {layer!r}", hint=hint)

    @property
    def few(self) -> bool:
        """Whether the model was loaded for a handful of images."""
        return bool(getattr(self.base, "few", False))

    @property
    def lanes(self) -> int:
        """How many threads should compute at once."""
        return int(getattr(self.base, "lanes", 1))

    @property
    def decoder(self) -> JpegDecoder | None:
        """What decodes JPEGs on the model's device; None where nothing does."""
        return getattr(self.base, "decoder", None)

    @property
    def recipe(self) -> Preprocessing:
        return self.base.recipe

    @property
    def dimension(self) -> int:
        """d, or where nothing is projected D, for which an image is computed."""
        if self.projection is not None:
            return int(self.projection.axes.shape[1])
        if self.descriptor.layers == ("features",):
            return len(self.descriptor.parts) * self.base.dimension
        side = self.recipe.crop
        return int(self._view(np.zeros((1, side, side, 3), np.uint8)).shape[1])

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 RGB from `preprocessing.pixels` -> (B, d) float32 of unit length."""
        x = self._view(pixels)
        if self.descriptor.mirror:
            x = unit(x + self._view(np.ascontiguousarray(pixels[:, :, ::-1])))
        return x if self.projection is None else unit(self.projection(x))

    def _view(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        names = self.descriptor.layers
        if names == ("features",):
            return describe(self.descriptor, {"features": self.base.features(pixels)})
        found = self.base.outputs(names, pixels)  # type: ignore[attr-defined]  # a network with layers has outputs
        return describe(self.descriptor, dict(zip(names, found, strict=True)))


def find(name: str) -> Descriptor | None:
    """The recipe of that name; None for the reference. Raises UsageError."""
    if name == REFERENCE:
        return None
    if name not in DESCRIPTORS:
        raise UsageError(f"no features are called {name!r}", hint=f"one of {', '.join((REFERENCE, *DESCRIPTORS))}")
    return DESCRIPTORS[name]
