"""Extraction with a device that decodes JPEGs."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import simsearch
from simsearch.common import machine
from simsearch.indexing import extract
from simsearch.indexing.load import LoadedImage
from simsearch.models.torch.jpeg_decoder import JpegDecoder, header
from tests.helpers.jpegs import jpeg, pillow, smooth
from tests.helpers.models import CellModel

# -- from files to features


class Handed(CellModel):
    """A model whose device decodes JPEGs."""

    engine = "torch-cuda"

    def __init__(self, decode: Any = pillow) -> None:
        super().__init__()
        self.decoder = JpegDecoder(self.recipe, decode)


def everything() -> list[bytes]:
    files = [jpeg(smooth(n, (60 + n, 44))) for n in range(30)]
    png = io.BytesIO()
    smooth(99).save(png, "PNG")
    files[3:3] = [png.getvalue(), b"", files[0], files[1][:-30], jpeg(smooth(7), 6), jpeg(smooth(mode="CMYK"))]
    files.append(files[5][:300] + bytes(2000) + files[5][-1000:])
    return files


def run(model: Any, files: Sequence[bytes], **options: Any) -> list[LoadedImage]:
    tasks = [extract.Task(lambda data=data: data, number) for number, data in enumerate(files)]  # type: ignore[misc]
    known: set[bytes] = set()
    found = []
    for group in extract.extract(model, tasks, known=known, **options):
        known.update(result.digest for _, result in group if result.features is not None)
        found += group
    assert [key for key, _ in found] == list(range(len(files)))
    return [result for _, result in found]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("waiting", [1, 5000, extract.WAITING_BYTES])
def test_decoding_device_gives_same_results(waiting: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files = everything()
    monkeypatch.setattr(extract, "WAITING_BYTES", waiting)
    expected, found = run(CellModel(), files), run(Handed(), files, workers=workers, batch_size=4)
    for a, b in zip(expected, found, strict=True):
        assert (a.digest, a.size, a.problem) == (b.digest, b.size, b.problem)
        assert (a.features is None) == (b.features is None)
        assert b.file is None
        assert b.pixels is None
        if a.features is not None and b.features is not None:
            assert (a.width, a.height) == (b.width, b.height)
            assert np.abs(a.features - b.features).max() < 2
    assert sum(result.problem is not None for result in found) >= 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("no JPEG"), IndexError()])
def test_what_the_device_refuses_is_decoded_here(error: Exception) -> None:
    def refusing(files: list[Tensor]) -> list[Tensor]:
        raise error

    files = everything()
    for a, b in zip(run(CellModel(), files), run(Handed(refusing), files), strict=True):
        assert (a.problem, a.features is None) == (b.problem, b.features is None)
        assert a.features is None or a.features.tobytes() == b.features.tobytes()  # type: ignore[union-attr]


def test_files_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is slower than the reading: the size of the waiting files stays near the limit."""
    files = [jpeg(smooth(n, (200, 150)), comment=bytes(20_000)) for n in range(60)]
    limit, gate, most = 200_000, threading.Semaphore(0), 0
    monkeypatch.setattr(extract, "WAITING_BYTES", limit)
    count = extract._InFlight._count

    def noted(room: Any, reading: int, size: int) -> None:
        nonlocal most
        count(room, reading, size)
        most = max(most, room.bytes)
        gate.release()

    monkeypatch.setattr(extract._InFlight, "_count", noted)

    def slow(tensors: list[Tensor]) -> list[Tensor]:
        gate.acquire(timeout=0.02)
        return pillow(tensors)

    found = run(Handed(slow), files, batch_size=64, workers=2)
    assert all(result.features is not None for result in found)
    assert most <= limit + 6 * max(map(len, files))  # files already being read when the limit is reached


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_copies_of_undecodable_file_fail_alike(batch_size: int, tmp_path: Path) -> None:
    """Its header is valid, so that the copies are recognised by their digest before the file is known to be broken."""
    whole = jpeg(smooth())
    tables = whole.index(b"\xff\xc4") + 5
    broken = whole[:tables] + b"\xff" * 16 + whole[tables + 16 :]  # more one-bit codes than can exist
    files = [whole, broken, jpeg(smooth(1)), broken, broken]
    assert header(broken) is not None
    expected = run(CellModel(), files, batch_size=batch_size)
    found = run(Handed(), files, batch_size=batch_size)
    assert [result.problem for result in found] == [result.problem for result in expected]
    assert sum(result.problem is not None for result in found) == 3
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, data in enumerate(files):
        (folder / f"{number}.jpg").write_bytes(data)
    with simsearch.build(folder, tmp_path / "index", Handed(), batch_size=batch_size) as engine:
        assert len(engine) == 2
        assert len(engine.failures()) == 3


def test_refused_by_device_decodes_within_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    hold = machine.MemoryBudget.hold
    monkeypatch.setattr(machine.MemoryBudget, "hold", lambda budget, size: held.append(size) or hold(budget, size))  # type: ignore[func-returns-value]
    found = run(Handed(lambda files: []), [jpeg(smooth(n), progressive=True) for n in range(4)])
    assert all(result.features is not None for result in found)
    assert len(held) == 4
    assert min(held) > 2 * 400 * 300


def test_an_index_made_by_such_a_device(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, data in enumerate(everything()):
        (folder / f"{number:02d}.jpg").write_bytes(data)
    with (
        simsearch.build(folder, tmp_path / "a", CellModel()) as plain,
        simsearch.build(folder, tmp_path / "b", Handed()) as handed,
    ):
        assert handed.failures() == plain.failures()
        assert [handed.item(n).path for n in range(1, 30)] == [plain.item(n).path for n in range(1, 30)]
        query = folder / "09.jpg"
        assert [match.id for match in handed.search(query, 3)] == [match.id for match in plain.search(query, 3)]
