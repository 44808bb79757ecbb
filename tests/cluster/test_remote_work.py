"""A cluster reads remote sources by their addresses; chunks are computed in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from simsearch import api
from simsearch.cluster import work as cluster_work
from simsearch.cluster.extractor import ClusterExtractor
from simsearch.cluster.work import WorkFolder
from simsearch.cluster.worker import Worker
from simsearch.errors import UsageError
from simsearch.indexing.options import BuildOptions, Summary
from simsearch.storage.verify import verify
from tests.helpers.remote import forget_permissions, own_cache, s3, s3_process, upload
from tests.helpers.s3_server import BUCKET, S3Server
from tests.helpers.sync import ALL, items, told

__all__ = ["own_cache", "s3", "s3_process"]

PLACE = f"s3://{BUCKET}/pictures"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_work, "SMALLEST", 8)


def build(path: Path, model: Path, extractor: ClusterExtractor | None, *names: str) -> Summary:
    options = BuildOptions(extractor=extractor)
    engine, summary = api.build_with_summary(names, path, str(model), device="cpu", options=options)
    with engine:
        assert verify(engine.index).problems == ()
    return summary


def worker_elsewhere(work: WorkFolder, chunks: Sequence[int]) -> Iterator[int]:
    """A worker on another machine, where nobody has named the source."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMSEARCH_CACHE", str(work.folder / "cache-of-another"))
        patch.setattr("simsearch.images.sources.remote.permission._named", set())
        worker = Worker(str(work.folder), "cpu", 2)
        worker.ready()
        for chunk in chunks:
            worker.compute(chunk)
            yield chunk


def test_the_index_is_that_of_a_local_build(s3: S3Server, photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    upload(s3, photos)
    build(tmp_path / "here", tiny_weights, None, PLACE)
    s3.forget()
    extractor = ClusterExtractor(worker_elsewhere)
    assert told(build(tmp_path / "away", tiny_weights, extractor, PLACE)) == {"added": ALL, "computed": ALL}
    assert set(s3.gets.values()) == {1} and len(s3.gets) == ALL
    assert items(tmp_path / "here") == items(tmp_path / "away")


def test_interrupted_driver(s3: S3Server, photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    upload(s3, photos)

    def dying(work: WorkFolder, chunks: Sequence[int]) -> Iterator[int]:
        yield from worker_elsewhere(work, chunks[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "away", tiny_weights, ClusterExtractor(dying), PLACE)
    read = set(s3.gets)
    assert len(read) == 16
    build(tmp_path / "away", tiny_weights, ClusterExtractor(worker_elsewhere))
    assert set(s3.gets.values()) == {1} and len(s3.gets) == ALL


def test_work_of_a_stranger_names_no_other_source(
    s3: S3Server, photos: Path, tmp_path: Path, tiny_weights: Path, own_cache: Path, monkeypatch: Any
) -> None:
    """Work that came with an index cannot have a worker ask for what the user has not named."""
    upload(s3, photos)
    upload(s3, photos, "secret")

    def stopping(work: WorkFolder, chunks: Sequence[int]) -> Iterator[int]:
        if chunks:
            raise KeyboardInterrupt
        yield from chunks

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "away", tiny_weights, ClusterExtractor(stopping), PLACE)
    folder = tmp_path / "away" / "derived" / "work"
    info = json.loads((folder / "work.json").read_text())
    info["sources"].append(["remote", f"s3://{BUCKET}/secret"])
    lines = (folder / "images.jsonl").read_text().splitlines()
    lines[1] = json.dumps([1, "amber/1.png", 100, 1])
    (folder / "images.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "work.json").write_text(json.dumps(info))
    s3.forget()
    build(tmp_path / "away", tiny_weights, ClusterExtractor(worker_elsewhere))
    assert not [key for key in s3.tries if key.startswith("secret")] and len(s3.gets) == ALL
    forget_permissions(own_cache, monkeypatch)
    with pytest.raises(UsageError, match="not named on this machine"):
        build(tmp_path / "away", tiny_weights, ClusterExtractor(worker_elsewhere))
