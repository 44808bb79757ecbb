"""A model whose network is an ONNX graph that simsearch did not build itself: exported from torch, or a user's file.

Shape letters: B images in a batch, S side of the network's input, D dimension of the features; C, H, W channels, height
and width of maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing

LARGEST_DIMENSION = 1 << 16
"""Largest permitted number of features of an image."""


@dataclass(frozen=True)
class GraphInput:
    """The form in which a graph takes images.

    name: the name of the graph's input.
    dtype: the type of the input's elements. An input of uint8 takes pixels as they are. An input of any other type
    takes normalised pixels.
    channels_last: True if the input's shape is (B, S, S, 3), False if it is (B, 3, S, S).
    reverse: True for channels in the order blue, green, red.
    batch: the number of images that the graph takes at once; None if it takes any number.
    """

    name: str
    dtype: type[np.generic] = np.float32
    channels_last: bool = False
    reverse: bool = False
    batch: int | None = None

    def prepare(self, pixels: NDArray[np.uint8], recipe: Preprocessing) -> NDArray[Any]:
        """Converts pixels (B, S, S, 3) uint8 RGB into the input of the graph.

        recipe: the preprocessing, whose mean and std normalise the pixels unless the graph takes uint8.
        """
        x: NDArray[Any] = pixels
        if self.dtype != np.uint8:
            x = pixels.astype(np.float32)
            x -= np.array(recipe.mean, np.float32)
            x /= np.array(recipe.std, np.float32)
        x = x[..., ::-1] if self.reverse else x
        x = x if self.channels_last else x.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(x, self.dtype)


class GraphModel:
    """A network in an ONNX Runtime session on the CPU. Thread-safe.

    name, weights_sha256, recipe: as in `Model`.
    graph: the path of the ONNX file. session: an `onnxruntime.InferenceSession` of it.
    taken: the form in which the graph takes images.
    output: the name of the graph's output that has the features. The output's shape is (B, D) or, for maps,
    (B, C, H, W). Maps are averaged over H and W.
    few: True if the session was opened for a few images only (see `open_session`).
    dimension: D, the number of features of an image; if None, it is found by computing one image.
    """

    distances: tuple[float, ...] = ()
    engine = "onnxruntime-cpu"

    def __init__(
        self,
        name: str,
        weights_sha256: str,
        recipe: Preprocessing,
        graph: Path,
        session: Any,
        taken: GraphInput,
        output: str,
        *,
        few: bool = False,
        dimension: int | None = None,
    ) -> None:
        self.name, self.weights_sha256, self.recipe, self.few = name, weights_sha256, recipe, few
        self.graph, self.session, self.taken, self.output = graph, session, taken, output
        if dimension is None:
            side = recipe.crop
            dimension = self._run(np.full((1, side, side, 3), 128, np.uint8)).shape[1]
        if not 0 < dimension <= LARGEST_DIMENSION:
            raise WeightsError(f"{name} gives {dimension:,} features per image; the limit is {LARGEST_DIMENSION:,}")
        self.dimension = dimension

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the features (B, D) float32 of pixels (B, S, S, 3) uint8 RGB.

        Raises WeightsError if the network fails, or does not return D finite numbers for each image.
        """
        if not len(pixels):
            return np.zeros((0, self.dimension), np.float32)
        step = self.taken.batch or len(pixels)
        rows = np.concatenate([self._run(pixels[start : start + step]) for start in range(0, len(pixels), step)])
        if rows.shape != (len(pixels), self.dimension):
            raise WeightsError(f"{self.name}: the features are {rows.shape}, not ({len(pixels)}, {self.dimension})")
        return rows

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the features of one batch.

        If the graph takes a fixed number of images, a smaller batch is filled up with copies of its last image. The
        features of these copies are not returned.
        """
        count = len(pixels)
        if self.taken.batch:
            pixels = np.concatenate([pixels, pixels[-1:].repeat(self.taken.batch - count, 0)])
        try:
            found = self.session.run([self.output], {self.taken.name: self.taken.prepare(pixels, self.recipe)})[0]
        except Exception as error:  # onnxruntime raises its own classes
            raise WeightsError(f"{self.name}: ONNX Runtime cannot compute the network: {error}") from error
        if not isinstance(found, np.ndarray) or found.ndim not in {2, 4} or found.dtype.kind != "f":
            shape = getattr(found, "shape", "no array")
            raise WeightsError(
                f"{self.name}: the output {self.output!r} is {shape}, not floats (batch, D) or (batch, C, H, W)",
                hint='set "output" in the .json file to the name of another output',
            )
        rows = found.astype(np.float32)
        rows = (rows.mean((2, 3)) if rows.ndim == 4 else rows)[:count]
        if not np.isfinite(rows).all():
            raise WeightsError(f"{self.name}: a feature is NaN or infinite")
        result: NDArray[np.float32] = rows
        return result
