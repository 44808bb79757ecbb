"""Feature files take and give rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simsearch.errors import IndexDamagedError
from simsearch.search.exact import FlatIndex
from simsearch.storage.feature_files import FeatureFiles


def test_shards_take_rows_in_any_portions(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    features = random.normal(size=(300, 5)).astype(np.float16)
    shards = FeatureFiles(tmp_path, 5, rows_per_shard=32)
    row = 0
    while row < len(features):
        count = int(random.integers(1, 80))
        shards.write(row, features[row : row + count])
        row = min(row + count, len(features))
    shards.write(40, features[40:])  # again, as after a crash
    rows = random.permutation(300)
    assert np.array_equal(shards.read(rows), features[rows])
    assert len(list(tmp_path.glob("*.f16"))) == 10
    assert all(shards.check_preamble(shard) is None for shard in range(10))


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    shards = FeatureFiles(tmp_path, 3, rows_per_shard=8)
    shards.write(0, np.zeros((20, 3), np.float16))
    for rows in ([-1, 2], [3, 20], [10**15]):
        with pytest.raises(IndexDamagedError, match="the index has only 20 rows"):
            FlatIndex(shards, 20).search(np.zeros((1, 3), np.float32), 2, np.array(rows))
    with pytest.raises(IndexDamagedError):
        FlatIndex(shards, 30).search(np.zeros((1, 3), np.float32), 2, None)
