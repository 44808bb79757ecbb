"""Learns the principal components that features are projected on, from a sample of the images to index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.pca import Projection, fit_pca
from simsearch.errors import UsageError
from simsearch.images.sources.remote.kept import KeptObjects
from simsearch.indexing import prefetch
from simsearch.indexing.extract import extract
from simsearch.models.descriptors import Descriptor, DescriptorModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.sources.base import Source
    from simsearch.models.base import Model

SAMPLE = 4096
"""Maximum number of pictures to learn from."""

ENOUGH, FEWEST = 2, 64
"""Minimum number of pictures for each component, and minimum number of pictures in total."""


def learn_components(
    base: Model,
    descriptor: Descriptor,
    sources: Sequence[Source],
    exclude: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Projection:
    """Returns the principal components of image vectors, learned from at most `SAMPLE` random pictures of the sources.

    If there are few pictures, the result has fewer components than `descriptor.dimension`.

    base: the model whose layers are computed.
    descriptor: the recipe that turns the outputs of these layers into the vector of an image.
    exclude: patterns of images to leave out, as in a .gitignore.
    progress: called with the number of pictures processed and their total.
    Raises UsageError for fewer than `FEWEST` readable pictures with different contents.
    """
    listed = [(source, entry) for source in sources for entry in source.listing(exclude).entries]
    chosen = np.random.default_rng(0).permutation(len(listed))[:SAMPLE]
    images = ((n, listed[n][0], listed[n][1]) for n in np.sort(chosen))
    tasks = prefetch.tasks(
        ((n, source, entry.path, entry.size, entry.stamp) for n, source, entry in images), KeptObjects()
    )
    model = DescriptorModel(base, replace(descriptor, dimension=0))
    rows: list[NDArray[np.float16]] = []
    done = 0
    progress(0, len(chosen))
    for group in extract(model, tasks):
        rows += [result.features for _, result in group if result.features is not None]
        done += len(group)
        progress(done, len(chosen))
    if len(rows) < FEWEST:
        raise UsageError(
            f"{len(rows):,} different pictures are too few to learn components from; at least {FEWEST} are needed",
            hint='build from more pictures, or use features="fc7-unit"',
            shell_hint="build from more pictures, or use --features fc7-unit",
        )
    return whitened(np.stack(rows), min(descriptor.dimension, len(rows) // ENOUGH), descriptor.whitening)


def whitened(sample: NDArray[np.floating[Any]], dimensions: int, whitening: float) -> Projection:
    """Returns the first principal components of an (n, D) sample, scaled for whitening.

    A component along which the sample has standard deviation s is divided by s ** `whitening`.
    dimensions: the number of components.
    """
    components = fit_pca(sample, dimensions)
    std = np.maximum(components(sample).std(0), 1e-6)
    return Projection(components.mean, (components.axes / std**whitening).astype(np.float32))
