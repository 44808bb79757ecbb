"""Trains binary codes on the features of an index, measures them, and records them as the way to search the index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simsearch.common.progress import Progress, no_progress
from simsearch.errors import UsageError
from simsearch.indexing import tune
from simsearch.search import tuning, tuning_codes
from simsearch.search.ann import AnnSettings
from simsearch.search.tuning import Choice

if TYPE_CHECKING:
    from simsearch.models.hashing import autoencoder
    from simsearch.storage.index import Index

RECALL = 0.95
"""Default of the recall that should be reached."""


def tune_codes(
    index: Index,
    config: autoencoder.HashConfig,
    recall: float = RECALL,
    memory: int | None = None,
    progress: Progress = no_progress,
) -> Choice:
    """Trains binary codes on the features of an index, and makes searches use them, even if another way is faster.

    A search takes the 200 items nearest by Hamming distance, or more if the recall requires it, and ranks them by their
    exact distances. The recall is measured with held-out items: the codes are not trained on these items, and these
    items are not searched.

    config: the autoencoder's settings.
    recall: the share of a query's 10 true neighbours that should be found, above 0 and at most 1.
    memory: the maximum size of the codes in bytes; None for no limit.
    progress: called with the number of images processed and their total.
    Raises UsageError for an invalid recall, a small index or too little memory, and IndexLockedError if another process
    is writing.
    """
    if not 0 < recall <= 1:
        raise UsageError(f"the recall is {recall}, but must be above 0 and at most 1")
    with index.writing(tune.LOCK_SECONDS):  # fail now if the index is locked, not after minutes of training
        pass
    flat, rows = tune.open_flat(index)
    _check_size(index, len(rows), config.bits, memory)
    made, choice = tuning_codes.learn(flat, rows, config, recall, progress)
    return tune.record_choice(index, made, choice, recall)


def _check_size(index: Index, items: int, bits: int, memory: int | None) -> None:
    """Raises UsageError if the index is too small to learn from, or the codes exceed the memory limit."""
    if items < tuning.LEAST:
        raise UsageError(
            f"{index.path} has {items:,} items, too few to learn codes from",
            hint=f"at least {tuning.LEAST:,} are needed",
        )
    needed = AnnSettings("codes", bits, 0, 0).bytes_for(items)
    if memory is not None and needed > memory:
        raise UsageError(f"codes of {bits} bits take {needed:,} bytes, more than the limit of {memory:,}")
