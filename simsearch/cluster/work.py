"""The work of a build, frozen: which images, cut into shares, and what became of each share.

It lies in the index, in `derived/work/`: `decode.jsonl` (a line an image, in the order of the build), `work.json` (the
model and how the lines are cut), and for each share that is done `000123.npz`. Every file appears under its name whole,
and under the same name whoever writes it, so that a share computed twice, or by a worker that was taken for lost, is
still there once. Features are as an index keeps them; nothing is pickled.

Letters: D dimension, n images of a share.
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

from simsearch.common.atomic_files import atomic_write
from simsearch.errors import UsageError
from simsearch.indexing.load import LoadedImage

SMALLEST, LARGEST = 256, 8192
"""Images of a share; both are multiples of the batch sizes."""

SHARES = 4096
"""About how many shares at most, until they are the largest."""


@dataclass(frozen=True)
class WorkItem:
    """One image: its source, by number; its path in it; its size in bytes and stamp when the work was frozen."""

    source: int
    path: str
    size: int
    stamp: int


@dataclass(frozen=True)
class WorkInfo:
    """What `work.json` says. sources: the kind and root of each. model: by what name to load it. total: images.

    precision and descriptor: what the features are computed in and made of; see `Engine.precision`, `Meta.descriptor`.
    """

    model: str
    weights_sha256: str
    sources: list[list[str]]
    total: int
    share: int
    batch_size: int
    precision: str = "float32"
    descriptor: dict[str, Any] = field(default_factory=dict)


class WorkFolder:
    """A frozen piece of work in a folder."""

    def __init__(self, folder: Path, facts: WorkInfo) -> None:
        self.folder, self.facts = folder, facts

    @classmethod
    def freeze(
        cls,
        folder: Path,
        model: str,
        digest: str,
        sources: Sequence[tuple[str, str]],
        jobs: Sequence[WorkItem],
        batch_size: int,
        precision: str = "float32",
        descriptor: dict[str, Any] | None = None,
    ) -> WorkFolder:
        """Writes the jobs down; `work.json`, which is written last, makes them count."""
        discard(folder)
        folder.mkdir(parents=True)
        lines = "".join(json.dumps([job.source, job.path, job.size, job.stamp]) + "\n" for job in jobs)
        atomic_write(folder / "images.jsonl", lines.encode())
        facts = WorkInfo(
            model,
            digest,
            [list(pair) for pair in sources],
            len(jobs),
            _chunk(len(jobs)),
            batch_size,
            precision,
            descriptor or {},
        )
        atomic_write(folder / "work.json", json.dumps(asdict(facts)).encode())
        return cls(folder, facts)

    @classmethod
    def open(cls, folder: Path) -> WorkFolder | None:
        """The work in a folder; None if there is none, or it was not frozen to the end."""
        try:
            return cls(folder, WorkInfo(**json.loads((folder / "work.json").read_bytes())))
        except (OSError, ValueError, TypeError):
            return None

    def __len__(self) -> int:
        """The number of shares."""
        return -(-self.facts.total // self.facts.share)

    def jobs(self) -> list[WorkItem]:
        """All images, in order."""
        with (self.folder / "images.jsonl").open(encoding="utf-8") as lines:
            return [WorkItem(*json.loads(line)) for line in lines]

    def cut(self, jobs: Sequence[WorkItem], share: int) -> Sequence[WorkItem]:
        """The images of one share."""
        return jobs[share * self.facts.share : (share + 1) * self.facts.share]

    def path(self, share: int) -> Path:
        return self.folder / f"{share:06d}.npz"

    def write(self, share: int, results: Sequence[LoadedImage]) -> None:
        """Leaves the results of a share."""
        records = [[r.digest.hex(), r.size, r.width, r.height, r.problem, r.features is not None] for r in results]
        rows = [r.features for r in results if r.features is not None]
        features = np.stack(rows) if rows else np.zeros((0, 0), np.float16)  # (n, D)
        buffer = io.BytesIO()
        np.savez(buffer, records=np.frombuffer(json.dumps(records).encode(), np.uint8), features=features)
        atomic_write(self.path(share), buffer.getvalue())

    def read(self, share: int) -> list[LoadedImage] | None:
        """The results of a share; None if they are not there, or damaged."""
        try:
            with np.load(io.BytesIO(self.path(share).read_bytes()), allow_pickle=False) as arrays:
                records, rows = json.loads(arrays["records"].tobytes()), iter(arrays["features"])
            return [
                LoadedImage(bytes.fromhex(digest), size, width, height, next(rows) if has else None, problem)
                for digest, size, width, height, problem, has in records
            ]
        except (OSError, ValueError, KeyError, StopIteration, EOFError, zipfile.BadZipFile):
            return None


def discard(folder: Path) -> None:
    """Forgets the work in a folder; what is half deleted does not count any more."""
    (folder / "work.json").unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def checked(folder: str) -> WorkFolder:
    """The work, as a worker on another machine sees it. Raises UsageError."""
    work = WorkFolder.open(Path(folder))
    if work is None:
        raise UsageError(
            f"{os.uname().nodename} does not see {folder}",
            hint="index and sources must be at the same paths on all nodes",
        )
    return work


def _chunk(total: int) -> int:
    """Images of a share, for so many in all: a multiple of SMALLEST."""
    return min(LARGEST, max(SMALLEST, -(-total // SHARES // SMALLEST) * SMALLEST))
