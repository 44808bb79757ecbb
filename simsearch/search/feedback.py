"""Query vectors moved by examples: relevance feedback and query expansion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = float(np.finfo(np.float32).max)


def blend(
    query: NDArray[np.float32],
    plus: NDArray[np.float32],
    minus: NDArray[np.float32],
    plus_weights: Sequence[float] = (),
    minus_weights: Sequence[float] = (),
) -> NDArray[np.float32]:
    """Relevance feedback (Rocchio 1971): the mean of what is wanted, moved half a step away from what is not.

    Weights count in the mean of what is wanted, where the query has weight 1, and in that of what is not; the mean of
    those of `minus` multiplies the step. All are 1 unless given. Of activations, which are not negative, neither is
    the result.
    """
    wanted: NDArray[np.float32] = np.concatenate([query[None], plus])
    factors = np.array([1.0, *(plus_weights or [1.0] * len(plus))], np.float32)
    wanted = (wanted * factors[:, None]).sum(0) / factors.sum()
    if len(minus):
        factors = np.array(minus_weights or [1.0] * len(minus), np.float32)
        unwanted = (minus * factors[:, None]).sum(0) / factors.sum()
        signed = min(float(wanted.min()), float(unwanted.min())) < 0  # principal components
        wanted = wanted + np.float32(0.5) * factors.mean() * (wanted - unwanted)
        wanted = wanted if signed else np.maximum(wanted, 0)
    return wanted


def expanded(query: NDArray[np.float32], near: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average query expansion (Chum et al., ICCV 2007): the mean of a (D,) query and its (n, D) first matches.

    Matches weigh the third power of their cosine to the query (Radenović, Tolias & Chum, PAMI 2019, "alpha QE"), so
    that doubtful ones count little; the result is as long as the query.
    """
    q, x = query.astype(np.float64), near.astype(np.float64)  # float32 need not hold the squares
    length = float(np.linalg.norm(q))
    if not len(near) or not length:
        return query
    cosines = x @ q / np.maximum(np.linalg.norm(x, axis=1) * length, 1e-9)
    total = q + (np.maximum(cosines, 0) ** 3) @ x
    scaled: NDArray[np.float64] = total * (length / max(float(np.linalg.norm(total)), 1e-9))
    return np.clip(scaled, -LARGEST, LARGEST).astype(np.float32)


def weighted(given: Sequence[Any]) -> tuple[list[Any], list[float]]:
    """Pictures and their weights, of which some may be given as (picture, weight). Raises UsageError."""
    pairs = [pair if isinstance(pair, tuple) else (pair, 1.0) for pair in given]
    for pair in pairs:
        number = pair[1] if len(pair) == 2 else None
        if isinstance(number, bool) or not isinstance(number, int | float | np.number) or not 0 < number < np.inf:
            raise UsageError(f"the weight of a picture is {number!r}, not a number above 0")
    return [picture for picture, _ in pairs], [float(number) for _, number in pairs]
