"""The files of a distributed build: the list of images, divided into chunks, and the results of each chunk.

They are in the folder `derived/work/` of the index: `images.jsonl` (a line for each image, in the order of the build),
`work.json` (the model and the size of a chunk), and `000123.npz` for each chunk that is done. Files are written
atomically, and the name of a chunk's file does not depend on the worker, so a chunk that is computed twice still has
one result. Features are stored as in an index; nothing is pickled.

Shape letters: D dimension of the features, n images of a chunk that have features.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simsearch.common import outside_json
from simsearch.common.atomic_files import atomic_write
from simsearch.errors import UsageError
from simsearch.indexing.load import LoadedImage

SMALLEST, LARGEST = 256, 8192
"""The least and the most images in a chunk; both are multiples of the usual batch sizes."""

CHUNKS = 4096
"""Approximate limit on the number of chunks; exceeded only if chunks would need more than `LARGEST` images."""


@dataclass(frozen=True)
class WorkItem:
    """An image in the list of a build.

    source: the number of its source. path: relative to the source. size, stamp: its size in bytes and its mtime in ns
    (or a checksum) when it was listed; see `sources.base.Entry`.
    """

    source: int
    path: str
    size: int
    stamp: int


@dataclass(frozen=True)
class WorkInfo:
    """The content of `work.json`.

    model: name or path of the model, for loading. sources: kind and root of each source, in the order of their numbers.
    total: number of images. chunk_size: number of images in a chunk; `work.json` calls it `share`, as former versions
    did. batch_size: 0 for the device's default. precision, descriptor: how features are computed; see
    `Engine.precision` and `Meta.descriptor`.
    """

    model: str
    weights_sha256: str
    sources: list[list[str]]
    total: int
    chunk_size: int
    batch_size: int
    precision: str = "float32"
    descriptor: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WorkInfo:
        """Returns the object for the JSON values of `work.json`. Raises KeyError, TypeError."""
        given = dict(values)
        return cls(chunk_size=given.pop("share"), **given)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON values for `work.json`."""
        return {"share" if name == "chunk_size" else name: value for name, value in asdict(self).items()}


class WorkFolder:
    """The folder with the list of a build's images and the results of chunks. The list never changes."""

    def __init__(self, folder: Path, info: WorkInfo) -> None:
        self.folder, self.info = folder, info

    @classmethod
    def create(
        cls,
        folder: Path,
        model: str,
        digest: str,
        sources: Sequence[tuple[str, str]],
        items: Sequence[WorkItem],
        batch_size: int,
        precision: str = "float32",
        descriptor: dict[str, Any] | None = None,
    ) -> WorkFolder:
        """Creates the folder and writes the list of images; `work.json` is written last and makes the folder valid.

        digest: SHA-256 of the weights. sources: kind and root of each source. For the others, see `WorkInfo`.
        """
        discard(folder)
        folder.mkdir(parents=True)
        lines = "".join(json.dumps([item.source, item.path, item.size, item.stamp]) + "\n" for item in items)
        atomic_write(folder / "images.jsonl", lines.encode(), follow_links=False)
        info = WorkInfo(
            model,
            digest,
            [list(pair) for pair in sources],
            len(items),
            _chunk(len(items)),
            batch_size,
            precision,
            descriptor or {},
        )
        atomic_write(folder / "work.json", json.dumps(info.to_dict()).encode(), follow_links=False)
        return cls(folder, info)

    @classmethod
    def open(cls, folder: Path) -> WorkFolder | None:
        """Opens a work folder; returns None if it does not exist or was not completely written."""
        try:
            return cls(folder, WorkInfo.from_dict(outside_json.parse((folder / "work.json").read_bytes())))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def __len__(self) -> int:
        """Returns the number of chunks."""
        return -(-self.info.total // self.info.chunk_size)

    def items(self) -> list[WorkItem]:
        """Returns all images, in the order of the build."""
        with (self.folder / "images.jsonl").open(encoding="utf-8") as lines:
            return [WorkItem(*outside_json.parse(line)) for line in lines]

    def chunk_items(self, items: Sequence[WorkItem], chunk: int) -> Sequence[WorkItem]:
        """Returns the images of one chunk. items: all images."""
        return items[chunk * self.info.chunk_size : (chunk + 1) * self.info.chunk_size]

    def path(self, chunk: int) -> Path:
        """Returns the path of the file with the results of a chunk."""
        return self.folder / f"{chunk:06d}.npz"

    def write(self, chunk: int, results: Sequence[LoadedImage]) -> None:
        """Writes the results of a chunk to its file."""
        records = [[r.digest.hex(), r.size, r.width, r.height, r.problem, r.features is not None] for r in results]
        rows = [r.features for r in results if r.features is not None]
        features = np.stack(rows) if rows else np.zeros((0, 0), np.float16)  # (n, D)
        buffer = io.BytesIO()
        np.savez(buffer, records=np.frombuffer(json.dumps(records).encode(), np.uint8), features=features)
        atomic_write(self.path(chunk), buffer.getvalue(), follow_links=False)

    def read(self, chunk: int) -> list[LoadedImage] | None:
        """Returns the results of a chunk from its file; None if the file does not exist or is damaged."""
        try:
            with np.load(io.BytesIO(self.path(chunk).read_bytes()), allow_pickle=False) as arrays:
                records, rows = outside_json.parse(arrays["records"].tobytes()), iter(arrays["features"])
            return [
                LoadedImage(bytes.fromhex(digest), size, width, height, next(rows) if has else None, problem)
                for digest, size, width, height, problem, has in records
            ]
        except (OSError, ValueError, KeyError, StopIteration, EOFError, zipfile.BadZipFile):
            return None


def discard(folder: Path) -> None:
    """Deletes a work folder; `work.json` is deleted first, so that a partly deleted folder is not valid."""
    (folder / "work.json").unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def open_on_worker(folder: str) -> WorkFolder:
    """Opens a work folder on a worker's machine. Raises UsageError if the machine cannot see the folder."""
    work = WorkFolder.open(Path(folder))
    if work is None:
        raise UsageError(
            f"{os.uname().nodename} does not see {folder}",
            hint="index and sources must be at the same paths on all nodes",
        )
    return work


def _chunk(total: int) -> int:
    """Returns the number of images per chunk for `total` images, a multiple of SMALLEST."""
    return min(LARGEST, max(SMALLEST, -(-total // CHUNKS // SMALLEST) * SMALLEST))
