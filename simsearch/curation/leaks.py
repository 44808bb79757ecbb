"""Finds images of one index that are also in another index, for example training images in a test set.

For each item, the nearest item of the other index is found by exact search, even in large indexes, so that no match is
missed. If the distance is within the limit, the item is reported, together with that nearest item.
"""

from __future__ import annotations

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.graph import BLOCK, Collection, Finding
from simsearch.errors import UsageError
from simsearch.storage.protocols import Searchable


def leaks(
    snapshots: Searchable, against: Searchable, max_distance: float, progress: Progress = no_progress
) -> list[Finding]:
    """Returns the items of an index that have a near-identical item in another index, the nearest pairs first.

    snapshots: the index to examine, such as `engine.snapshots` of an `Engine`.
    against: the other index, given in the same way; its features must be from the same model.
    max_distance: the largest Euclidean distance of a pair.
    Facts of each finding: `distance`; `same_file`, True if the two files are identical byte for byte; `same_label`,
    True if both items have the same label. Evidence: the item of the other index.
    Raises UsageError if `max_distance` is negative or NaN, or if an index has no items.
    """
    if not max_distance >= 0:
        raise UsageError(f"the largest distance is {max_distance}, but must be at least 0")
    found: list[Finding] = []
    with snapshots.reading() as reader, against.reading() as other_reader:
        ours, theirs = Collection.read(snapshots, reader), Collection.read(against, other_reader)
        n = len(ours.items)
        for start in range(0, n, BLOCK):
            stop = min(start + BLOCK, n)
            places, distances = theirs.search(ours.features(start, stop), 1)
            for place in range(start, stop):
                twin, distance = int(places[place - start, 0]), float(distances[place - start, 0])
                if distance <= max_distance:
                    item, other = ours.items[place], theirs.items[twin]
                    facts = {
                        "distance": distance,
                        "same_file": item.digest == other.digest,
                        "same_label": item.label == other.label,
                    }
                    found.append(Finding(ours.member(place), facts, [theirs.member(twin, distance, own=False)]))
            progress(stop, n)
    return sorted(found, key=lambda finding: (finding.facts["distance"], finding.member.item.id))
