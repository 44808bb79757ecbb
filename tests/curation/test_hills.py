"""Clusters are the hills of a map's density."""

from __future__ import annotations

import numpy as np
import pytest

from simsearch.curation.hills import find_hills


def islands(sizes, seed=0):
    """Round islands in a row, 10 apart."""
    random = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(len(sizes)), sizes)
    centres = np.stack([10.0 * np.arange(len(sizes)), np.zeros(len(sizes))], 1)
    order = random.permutation(len(kinds))
    return (centres[kinds] + random.normal(0, 1, (len(kinds), 2))).astype(np.float32)[order], kinds[order]


def test_islands_are_found_and_numbered_by_size():
    positions, kinds = islands([200, 400, 300])
    found = find_hills(positions)
    assert found.dtype == np.int32
    assert [set(kinds[found == number]) for number in range(3)] == [{1}, {2}, {0}]
    np.testing.assert_array_equal(find_hills(positions), found)


def test_number_of_clusters_is_limited():
    positions, kinds = islands([300, 300, 300, 300])
    for most in (1, 2, 3, 4):
        found = find_hills(positions, most)
        assert found.max() + 1 == most
        assert all(len(set(found[kinds == kind])) == 1 for kind in range(4))


def test_a_ridge_is_one_hill():
    """A dip that is hardly one does not part a cluster; a deep one does."""
    random = np.random.default_rng(1)
    cloud, other = random.normal(0, 1, (2, 2000, 2))
    for apart, expected in [(1.0, 1), (6.0, 2)]:
        both = np.concatenate([cloud, other + np.array([apart, 0])]).astype(np.float32)
        assert find_hills(both).max() + 1 == expected


def test_few_strangers_make_no_cluster():
    positions, _ = islands([3000])
    strangers = np.array([[50, 50], [50.1, 50], [-60, 3]], np.float32)
    assert find_hills(np.concatenate([positions, strangers])).max() == 0


@pytest.mark.parametrize("positions", [np.zeros((20, 2)), np.eye(10, 2), np.arange(24).reshape(12, 2) * 1e6])
def test_odd_maps(positions):
    found = find_hills(positions.astype(np.float32))
    assert len(found) == len(positions) and found.min() == 0
    assert find_hills(positions.astype(np.float32), 1).max() == 0
