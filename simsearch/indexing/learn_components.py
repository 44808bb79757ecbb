"""Learning the components of a descriptor from a sample of the images to index."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.pca import Projection, fit_pca
from simsearch.errors import UsageError
from simsearch.indexing.extract import Task, extract

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.sources.base import Source
    from simsearch.models.base import Model
from simsearch.models.descriptors import Descriptor, DescriptorModel

SAMPLE = 4096

"""Pictures that the components are learned from."""

ENOUGH, FEWEST = 2, 64

"""So many pictures are needed for each component, and for any at all."""


def learn_components(
    base: Model,
    descriptor: Descriptor,
    sources: Sequence[Source],
    exclude: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Projection:
    """The principal components of a descriptor over up to `SAMPLE` pictures of the sources, drawn at random.

    Of few pictures, there are fewer components than the descriptor asks for. Raises UsageError for less than `FEWEST`.
    """
    listed = [(source, entry) for source in sources for entry in source.listing(exclude).entries]
    chosen = np.random.default_rng(0).permutation(len(listed))[:SAMPLE]
    tasks = [Task(functools.partial(listed[n][0].read, listed[n][1].path), n) for n in np.sort(chosen)]
    model = DescriptorModel(base, replace(descriptor, dimension=0))
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
    found = fit_pca(sample, dimensions)
    deviation = np.maximum(found(sample).std(0), 1e-6)
    return Projection(found.mean, (found.axes / deviation**whitening).astype(np.float32))
