"""Pictures that two indexes share."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from simsearch import api
from simsearch.curation import leaks as module
from simsearch.curation.leaks import leaks
from simsearch.errors import UsageError
from tests.curation.conftest import Fill
from tests.helpers.models import Colours


def test_every_pair_within_the_limit(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)
    random = np.random.default_rng(0)
    train, test = random.normal(0, 3, (200, 8)).astype(np.float16), random.normal(0, 3, (50, 8)).astype(np.float16)
    test[[5, 33]] = train[[100, 7]]
    test[40] = train[7] + 0.1
    found = leaks(fill(test, "test").engine.snapshots, fill(train, "train").engine.snapshots, 0.5)
    away = np.linalg.norm(test[:, None].astype(float) - train[None].astype(float), axis=2)
    expected = sorted((away[n].min(), n + 1, int(away[n].argmin()) + 1) for n in range(50) if away[n].min() <= 0.5)
    assert [(f.member.item.id, f.evidence[0].item.id) for f in found] == [(n, m) for _, n, m in expected]
    assert [f.facts["distance"] for f in found] == pytest.approx([d for d, _, _ in expected])
    assert {f.member.item.id for f in found} >= {6, 34, 41} and not found[0].evidence[0].own


def test_files_and_labels(tmp_path: Path, photos: Path, colours: Colours) -> None:
    other = tmp_path / "test"
    (other / "blue").mkdir(parents=True)
    (other / "rose").mkdir()
    shutil.copy(photos / "rose" / "0.png", other / "rose" / "a.png")
    shutil.copy(photos / "rose" / "1.png", other / "blue" / "b.png")
    with api.build(photos, tmp_path / "one", colours) as train, api.build(other, tmp_path / "two", colours) as test:
        found = leaks(test.snapshots, train.snapshots, 0)
        assert sorted((f.member.item.path, f.facts["same_file"], f.facts["same_label"]) for f in found) == [
            ("blue/b.png", True, False),
            ("rose/a.png", True, True),
        ]
        with pytest.raises(UsageError):
            leaks(test.snapshots, train.snapshots, -1)
