"""What one generation of an index holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simsearch.search.exact import FlatIndex

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
from simsearch.images.sources.resolve import Sources


@dataclass(frozen=True)
class Snapshot:
    """What one generation of the index holds. live: the rows that items own, or None if all do."""

    generation: int
    flat: FlatIndex
    live: NDArray[np.int64] | None
    sources: Sources
