"""Manifests and archives that somebody sent."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from simsearch.errors import UsageError
from simsearch.images.sources.archives import TarSource
from simsearch.images.sources.tables import ManifestSource


@pytest.mark.parametrize("levels", [70, 900, 100_000])
def test_deep_manifest_is_one_error(tmp_path: Path, levels: int) -> None:
    deep = "[" * levels + "]" * levels
    (tmp_path / "m.jsonl").write_text(f'{{"path": "a.png", "x": {deep}}}\n')
    with pytest.raises(UsageError, match="line 1: "):
        ManifestSource(str(tmp_path / "m.jsonl")).listing()


@pytest.mark.parametrize("mtime", ["inf", "-inf", "nan", "1e300", "-1e300"])
def test_tar_with_an_odd_time_is_listed(tmp_path: Path, mtime: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.png")
        member.size, member.pax_headers = 3, {"mtime": mtime}
        archive.addfile(member, io.BytesIO(b"png"))
    (entry,) = TarSource(str(tmp_path / "a.tar")).listing().entries
    assert (entry.path, entry.stamp) == ("a.png", 0)
