"""Relevance feedback and query expansion: query vectors moved towards or away from examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_WEIGHT = 1_000_000
"""Largest weight of an example; the query itself has weight 1."""

LARGEST = float(np.finfo(np.float32).max)


def blend(
    query: NDArray[np.float32],
    plus: NDArray[np.float32],
    minus: NDArray[np.float32],
    plus_weights: Sequence[float] = (),
    minus_weights: Sequence[float] = (),
) -> NDArray[np.float32]:
    """Returns a (D,) query moved towards the examples `plus` and away from the examples `minus` (Rocchio 1971).

    p is the weighted mean of `plus` and the query, which has weight 1; m is the weighted mean of `minus`, and w is the
    average of `minus_weights`. The result is p + w / 2 * (p - m); without `minus`, it is p. If neither p nor m has
    negative values, as with ReLU activations, negative values of the result are set to 0.
    plus, minus: (n, D).
    plus_weights, minus_weights: a weight for each example; by default 1.
    """
    wanted: NDArray[np.float32] = np.concatenate([query[None], plus])
    factors = np.array([1.0, *(plus_weights or [1.0] * len(plus))], np.float32)
    wanted = (wanted * factors[:, None]).sum(0) / factors.sum()
    if len(minus):
        factors = np.array(minus_weights or [1.0] * len(minus), np.float32)
        unwanted = (minus * factors[:, None]).sum(0) / factors.sum()
        signed = min(float(wanted.min()), float(unwanted.min())) < 0  # as principal components have
        wanted = wanted + np.float32(0.5) * factors.mean() * (wanted - unwanted)
        wanted = wanted if signed else np.maximum(wanted, 0)
    return wanted


def expanded(query: NDArray[np.float32], near: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the weighted mean of a (D,) query and its (n, D) first matches, scaled to the query's length.

    This is average query expansion (Chum et al., ICCV 2007). The weight of a match is the cube of its cosine similarity
    to the query, so doubtful matches count little (Radenović, Tolias & Chum, PAMI 2019, "alpha QE").
    """
    q, x = query.astype(np.float64), near.astype(np.float64)  # float32 squares may overflow
    length = float(np.linalg.norm(q))
    if not len(near) or not length:
        return query
    cosines = x @ q / np.maximum(np.linalg.norm(x, axis=1) * length, 1e-9)
    total = q + (np.maximum(cosines, 0) ** 3) @ x
    scaled: NDArray[np.float64] = total * (length / max(float(np.linalg.norm(total)), 1e-9))
    return np.clip(scaled, -LARGEST, LARGEST).astype(np.float32)


def weighted(given: Sequence[Any]) -> tuple[list[Any], list[float]]:
    """Splits examples into a list of pictures and a list of weights.

    given: pictures, which get weight 1, and tuples (picture, weight). Raises UsageError for an invalid weight.
    """
    pairs = [pair if isinstance(pair, tuple) else (pair, 1.0) for pair in given]
    for pair in pairs:
        number = pair[1] if len(pair) == 2 else None
        if isinstance(number, bool) or not isinstance(number, int | float | np.number) or not 0 < number <= MOST_WEIGHT:
            raise UsageError(f"the weight of a picture is {number!r}, not a number above 0 and at most {MOST_WEIGHT:,}")
    return [picture for picture, _ in pairs], [float(number) for _, number in pairs]
