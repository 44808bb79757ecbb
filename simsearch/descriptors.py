"""Other vectors of the same network: named recipes for what an index keeps of an image, instead of plain fc7.

Pooling: the maxima of each map (Razavian et al. 2014), or those over regions of several sizes, R-MAC (Tolias et al.,
ICLR 2016). Square roots of activations even out a few strong ones (Jégou et al., PAMI 2012, "power normalisation");
principal components keep the quality of neural codes in a fraction of their bytes (Babenko et al., ECCV 2014), and
whitening divides each by its deviation to some power (Jégou & Chum, ECCV 2012). The components are learned without
labels, from pictures of the index itself when it is made; after that they never change.

Letters: B images, D dimension of the network's layer or of a concatenation, d dimension that an index keeps.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from simsearch.errors import IndexDamagedError, UsageError
from simsearch.extract import Task, extract
from simsearch.projection import Projection, principal
from simsearch.shards import sync_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.meta import Meta
    from simsearch.models import Model
    from simsearch.models.jpegs import JpegDecoder
    from simsearch.recipe import Recipe
    from simsearch.sources import Source

REFERENCE = "fc7"
"""The last hidden layer as it is, under Euclidean distance: what every other recipe is compared with."""

FILE = "components.safetensors"
"""In an index's folder: the principal components that its features are made with."""

SAMPLE = 4096
"""Pictures that the components are learned from."""

ENOUGH, FEWEST = 2, 64
"""So many pictures are needed for each component, and for any at all."""


@dataclass(frozen=True)
class Part:
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

    parts: tuple[Part, ...] = (Part(),)
    mirror: bool = False
    dimension: int = 0
    whitening: float = 0.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Descriptor:
        """Reads what `to_dict` wrote. Raises UsageError for a key of the future, which would change the features."""
        try:
            return cls(**{**values, "parts": tuple(Part(**part) for part in values["parts"])})
        except (KeyError, TypeError) as error:
            raise UsageError(f"the recipe of the index's features is not understood: {error}",
                             hint="a newer simsearch may know it") from error  # fmt: skip

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
    "fc7-root": Descriptor((Part(root=True),)),
    "fc7-mirror": Descriptor(mirror=True),
    "fc6": Descriptor((Part("fc6"),)),
    "conv5-max": Descriptor((Part("conv5", "max"),)),
    "conv5-rmac": Descriptor((Part("conv5", "rmac"),)),
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


class Described:
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
    def recipe(self) -> Recipe:
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
        """(B, S, S, 3) uint8 RGB from `recipe.pixels` -> (B, d) float32 of unit length."""
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


def learn(
    base: Model, descriptor: Descriptor, sources: Sequence[Source], exclude: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Projection:  # fmt: skip
    """The principal components of a descriptor over up to `SAMPLE` pictures of the sources, drawn at random.

    Of few pictures, there are fewer components than the descriptor asks for. Raises UsageError for less than `FEWEST`.
    """
    listed = [(source, entry) for source in sources for entry in source.listing(exclude).entries]
    chosen = np.random.default_rng(0).permutation(len(listed))[:SAMPLE]
    tasks = [Task(functools.partial(listed[n][0].read, listed[n][1].path), n) for n in np.sort(chosen)]
    model = Described(base, replace(descriptor, dimension=0))
    rows: list[NDArray[np.float16]] = []
    done = 0
    progress(0, len(tasks))
    for group in extract(model, tasks):
        rows += [result.features for _, result in group if result.features is not None]
        done += len(group)
        progress(done, len(tasks))
    if len(rows) < FEWEST:
        raise UsageError(
            f"{len(rows):,} different pictures are too few to learn components from, which takes {FEWEST}",
            hint="begin with more of them, or with --features fc7-unit",
        )
    return whitened(np.stack(rows), min(descriptor.dimension, len(rows) // ENOUGH), descriptor.whitening)


def whitened(sample: NDArray[np.floating[Any]], dimensions: int, whitening: float) -> Projection:
    """The principal components of a (n, D) sample, each divided by its deviation to the power `whitening`."""
    found = principal(sample, dimensions)
    deviation = np.maximum(found(sample).std(0), 1e-6)
    return Projection(found.mean, (found.axes / deviation**whitening).astype(np.float32))


def write(folder: Path, projection: Projection) -> str:
    """Writes the components into an index's folder, durably in one step, and returns their SHA-256."""
    data = safetensors.numpy.save({"mean": projection.mean, "axes": projection.axes})
    partial = folder / f".{FILE}.partial"
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / FILE)
    sync_folder(folder)
    return hashlib.sha256(data).hexdigest()


def record(folder: Path, model: Model) -> dict[str, Any]:
    """What `meta.json` says of a model's descriptor, whose components are written first; empty without one."""
    if not isinstance(model, Described):
        return {}
    digest = {} if model.projection is None else {"components_sha256": write(folder, model.projection)}
    return {**model.descriptor.to_dict(), **digest}


def read(folder: Path, sha256: str) -> Projection:
    """The components of an index. Raises IndexDamagedError unless they are those that it was made with."""
    path = folder / FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IndexDamagedError(f"{path}: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IndexDamagedError(f"{path} has SHA-256 {found}, recorded was {sha256}")
    tensors = safetensors.numpy.load(data)
    return Projection(tensors["mean"], tensors["axes"])


def components(folder: Path, meta: Meta) -> Projection | None:
    """An index's components; None if its features have none. Raises IndexDamagedError."""
    digest = meta.descriptor.get("components_sha256")
    return None if digest is None else read(folder, str(digest))


def of_index(model: Model, folder: Path, meta: Meta) -> Model:
    """The model that an index's features come from: `model`, or what the index's recipe makes of it."""
    base = model.base if isinstance(model, Described) else model
    if not meta.descriptor:
        return base
    values = {key: value for key, value in meta.descriptor.items() if key != "components_sha256"}
    found = Described(base, Descriptor.from_dict(values), components(folder, meta))
    if found.dimension != meta.dimension:
        raise IndexDamagedError(f"{folder}: {meta.features} has {found.dimension} dimensions, not {meta.dimension}")
    return found
