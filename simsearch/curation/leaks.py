"""Finds images of one index that are also in another one, for example training images in a test set.

Each item is compared with its exact nearest neighbour in the other index, for an index of any size, and reported if
the distance is within the limit. So every item with a twin within the limit is reported, once, with its nearest twin.
"""

from __future__ import annotations

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.graph import BLOCK, Collection, Finding
from simsearch.errors import UsageError
from simsearch.storage.protocols import Searchable


def leaks(
    snapshots: Searchable, against: Searchable, max_distance: float, progress: Progress = no_progress
) -> list[Finding]:
    """Returns the items that have a near-identical one in another index of the same model, the nearest first.

    Facts of each finding: distance; same_file, True if the two files are identical byte for byte; same_label.
    Raises UsageError.
    """
    if not max_distance >= 0:
        raise UsageError(f"the largest distance must be a number that is not negative, not {max_distance}")
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
