"""Computes positions of items on a plane from their nearest neighbours: t-SNE by openTSNE (extra `[map]`).

t-SNE is by van der Maaten and Hinton (2008). The initial positions are the first two principal components (Kobak and
Berens 2019, section "Initialization"). In large maps, repulsion is interpolated on a grid by FFT (Linderman et al.
2019). The learning rate is n divided by the exaggeration, the factor that increases attraction (Belkina et al. 2019).
scripts/bench/map.py compares this layout with UMAP and PaCMAP.

Shape letters: n items, k neighbours of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.lazy import LazyModule
from simsearch.common.machine import available_cores
from simsearch.common.pca import fit_pca
from simsearch.common.progress import Progress, no_progress
from simsearch.curation.graph import Collection
from simsearch.errors import MissingExtraError

if TYPE_CHECKING:
    import openTSNE
    from numpy.typing import NDArray
else:
    openTSNE = LazyModule("openTSNE")  # noqa: N816

PERPLEXITY = 30
"""Effective number of neighbours of an item (van der Maaten and Hinton recommend 5 to 50)."""

NEIGHBOURS = 3 * PERPLEXITY
"""Number of neighbours to search for: three times the perplexity. Farther ones would have affinities near 0."""

EARLY, ITERATIONS = 250, 500
"""Number of iterations in the first phase, where exaggerated attraction forms clusters, and in the second phase."""

EVERY = 10
"""Number of iterations from one progress report to the next."""

SAMPLE = 5000
"""Largest number of randomly chosen items from which the principal components are computed."""

BLOCK = 1024
"""Number of items whose features are read and projected at once."""

FEW = 5000
"""Largest number of items for Barnes-Hut t-SNE (van der Maaten 2014); for more items, the FFT grid is faster."""


def check_installed() -> None:
    """Raises MissingExtraError if openTSNE is not installed."""
    try:
        import openTSNE  # noqa: F401
    except ImportError:
        raise MissingExtraError("a map", "map") from None


def start_positions(collection: Collection, seed: int = 0) -> NDArray[np.float64]:
    """Returns the initial positions, (n, 2) float64: the features projected on their first two principal components.

    They are scaled to a standard deviation of 1e-4 in x. A little noise is added, since t-SNE could never separate
    identical items that start at the same position.
    """
    n, random = len(collection.items), np.random.default_rng(seed)
    chosen = np.sort(random.permutation(n)[:SAMPLE])
    sample = collection.snapshot.flat.read(collection.rows[chosen]).astype(np.float32)
    project = fit_pca(sample, 2, seed)
    starts = range(0, n, BLOCK)
    flat = np.concatenate([project(collection.features(start, min(start + BLOCK, n))) for start in starts])
    positions = np.zeros((n, 2))
    positions[:, : flat.shape[1]] = flat  # one-dimensional features have only one component
    deviation = float(positions[:, 0].std())
    positions *= 1e-4 / deviation if deviation > 0 else 0
    return positions + random.normal(0, 1e-6, positions.shape)


def lay_out(
    places: NDArray[np.int64],
    distances: NDArray[np.float64],
    start: NDArray[np.float64],
    seed: int = 0,
    progress: Progress = no_progress,
    exaggeration: float = 1.0,
) -> NDArray[np.float32]:
    """Returns the final positions of n items on the plane: (n, 2) float32, with mean 0.

    places, distances: (n, k), the nearest other items, numbered from 0, and the distances to them.
    start: (n, 2), the initial positions, see `start_positions`.
    progress: called with the number of iterations done so far and the number of all iterations.
    seed: random seed of t-SNE.
    exaggeration: factor that increases attraction in the second phase of the iterations; 1 for plain t-SNE. In the
    first phase, which forms the clusters, attraction is always increased.
    Raises MissingExtraError if openTSNE is not installed.
    """
    check_installed()
    n, k = places.shape
    threads, done = available_cores(), 0

    def report(iteration: int, error: float, embedding: Any) -> None:
        nonlocal done
        done += EVERY
        progress(done, EARLY + ITERATIONS)

    known = openTSNE.nearest_neighbors.PrecomputedNeighbors(places, distances)
    affinities = openTSNE.affinity.PerplexityBasedNN(
        perplexity=min(PERPLEXITY, k / 3), knn_index=known, n_jobs=threads, random_state=seed
    )
    settings = {
        "early_exaggeration_iter": EARLY,
        "n_iter": ITERATIONS,
        "exaggeration": exaggeration,
        "negative_gradient_method": "fft" if n > FEW else "bh",
        "n_jobs": threads,
        "random_state": seed,
        "callbacks": report,
        "callbacks_every_iters": EVERY,
    }
    found = openTSNE.TSNE(**settings).fit(affinities=affinities, initialization=start)
    positions = np.asarray(found, np.float64)
    positions -= positions.mean(0)
    flat: NDArray[np.float32] = positions.astype(np.float32)
    return flat
