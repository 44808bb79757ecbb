"""Features are extracted in order, in batches, within the memory limit."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import simsearch
from simsearch.common import machine
from simsearch.errors import DeviceError, ImageError
from simsearch.images.sources.resolve import resolve
from simsearch.indexing.extract import Task, extract
from simsearch.indexing.load import LoadedImage
from simsearch.models import load, registry
from simsearch.models.onnx import runtime
from simsearch.models.onnx.runtime import OnnxModel
from simsearch.models.torch import runtime as torch_runtime
from simsearch.models.torch.runtime import TorchRunner
from tests.helpers.data import ROOT
from tests.helpers.extract import picture
from tests.helpers.models import CellModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


def run(model: Any, files: Sequence[bytes], **options: Any) -> list[tuple[int, LoadedImage]]:
    tasks = [Task(lambda data=data: data, number) for number, data in enumerate(files)]  # type: ignore[misc]
    return [pair for group in extract(model, tasks, **options) for pair in group]


def features(found: Sequence[tuple[int, LoadedImage]]) -> NDArray[np.float16]:
    return np.stack([result.features for _, result in found if result.features is not None])


# -- results


def test_features_ignore_threads_and_batches(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [picture(number, (100, 80), "JPEG") for number in range(45)]
    plain = OnnxModel(registry.find_weights(str(tiny_weights)))
    expected = features(run(plain, files, batch_size=1, workers=1))
    assert expected.shape == (45, 32)
    monkeypatch.setattr(machine, "available_cores", lambda: 4)
    several = OnnxModel(registry.find_weights(str(tiny_weights)), threads=True)
    assert several.lanes == 4
    for model, batch_size, workers in [(plain, 32, 3), (several, 1, 8), (several, 7, 2), (several, 32, None)]:
        found = run(model, files, batch_size=batch_size, workers=workers)
        assert [key for key, _ in found] == list(range(45))
        assert features(found).tobytes() == expected.tobytes()


def test_results_come_in_order() -> None:
    delays = random.Random(3)

    def slow(data: bytes, seconds: float) -> bytes:
        time.sleep(seconds)
        return data

    seconds = [delays.uniform(0, 0.02) for _ in range(60)]
    tasks = [
        Task(lambda n=n: slow(picture(n) if n % 5 else b"broken", seconds[n]), n)  # type: ignore[misc]
        for n in range(60)
    ]
    found = [pair for group in extract(CellModel(), tasks, batch_size=4, workers=8) for pair in group]
    assert [key for key, _ in found] == list(range(60))
    assert all((result.features is None) == (key % 5 == 0) for key, result in found)
    assert all((result.problem is None) == (key % 5 != 0) for key, result in found)


def test_equal_images_are_computed_once() -> None:
    model, known = CellModel(), dict[bytes, int]()
    files = [picture(number % 9) for number in range(200)]
    tasks = [Task(lambda data=data: data, number) for number, data in enumerate(files)]  # type: ignore[misc]
    first: dict[bytes, int] = {}
    for group in extract(model, tasks, known=known, batch_size=2, workers=4):
        for key, result in group:
            if result.features is not None:
                assert first.setdefault(result.digest, key) == key
                known[result.digest] = key
        time.sleep(0.001)
    assert model.computed == 9
    assert sorted(first.values()) == list(range(9))


def test_slow_images_do_not_delay_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsearch.indexing.extract.PATIENCE", 0.05)
    going = threading.Event()

    def late() -> bytes:
        going.wait(20)
        return picture(9)

    tasks = [Task(lambda n=n: picture(n), n) for n in range(3)] + [Task(late, 3)]  # type: ignore[misc]
    groups = extract(CellModel(), tasks, batch_size=32, workers=2)
    assert [key for key, _ in next(groups)] == [0, 1, 2]
    going.set()
    assert [key for key, _ in next(groups)] == [3]


# -- failures


class Broken(CellModel):
    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.computed >= 8:
            raise RuntimeError("the network broke")
        return super().features(pixels)


def test_a_failing_model_fails_in_its_place() -> None:
    tasks = [Task(lambda n=n: picture(n), n) for n in range(40)]  # type: ignore[misc]
    groups = extract(Broken(), tasks, batch_size=4, workers=2)
    assert [len(next(groups)) for _ in range(2)] == [4, 4]
    with pytest.raises(RuntimeError, match="the network broke"):
        next(groups)
    assert not [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "feed", "compute"))
    ]


def test_failing_tasks_fail_the_caller() -> None:
    def tasks() -> Iterator[Task[int]]:
        yield Task(lambda: picture(0), 0)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(extract(CellModel(), tasks(), batch_size=1, workers=1))


def test_abandoned_extraction_ends_its_threads() -> None:
    tasks = (Task(lambda n=n: picture(n), n) for n in range(10_000))  # type: ignore[misc]
    groups = extract(CellModel(), tasks, batch_size=4, workers=2)
    next(groups)
    groups.close()  # type: ignore[attr-defined]
    assert not [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "feed", "compute"))
    ]


# -- a GPU, simulated


class Device(CellModel):
    """A model that computes two batches in parallel, each of which waits for the other."""

    lanes, engine = 2, "torch-cuda"

    def __init__(self) -> None:
        super().__init__()
        self.together = threading.Barrier(2)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.together.wait(30)
        return super().features(pixels)


@pytest.mark.parametrize("workers", [1, 4])
def test_batch_uploads_while_another_computes(workers: int) -> None:
    files = [picture(number) for number in range(24)]
    found = run(Device(), files, batch_size=4, workers=workers)
    assert [key for key, _ in found] == list(range(24))
    assert features(found).tobytes() == features(run(CellModel(), files)).tobytes()


def test_a_batch_that_does_not_fit_is_halved() -> None:
    import torch

    runner = TorchRunner(CellModel.recipe, "cpu")
    sizes = []

    def network(x: Any) -> Any:
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.mean((2, 3))

    pixels = np.random.default_rng(0).integers(0, 256, (13, 16, 16, 3), np.uint8)
    expected = TorchRunner(CellModel.recipe, "cpu").run(lambda x: x.mean((2, 3)), pixels)
    assert np.array_equal(runner.run(network, pixels), expected)
    assert sizes == [13, 6, 3, 3, 3, 3, 1]
    assert np.array_equal(runner.run(network, pixels[:4]), expected[:4])
    assert sizes[7:] == [3, 1]  # it keeps the smaller batch size
    assert runner.run(network, pixels[:0]).shape == (0, 3)


def test_gpu_too_small_for_one_image_is_error() -> None:
    import torch

    def network(x: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match="not enough memory for a single image"):
        TorchRunner(CellModel.recipe, "cpu").run(network, np.zeros((3, 16, 16, 3), np.uint8))


def test_unusable_gpu_is_passed_over(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(runtime, "choose_device", lambda device, few=False: "cuda")
    monkeypatch.setattr(torch_runtime, "TorchModel", full)
    assert load.load_model(str(tiny_weights)).engine == "onnxruntime-cpu"
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used: CUDA out of memory"):
        load.load_model(str(tiny_weights), "cuda")


# -- large files and images


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "csv"])
def test_large_files_are_decoded_in_place(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{n}.png": picture(n) for n in range(5)} | {"broken.png": b"\x89PNG\r\n\x1a\nbroken", "empty.png": b""}
    source = tmp_path / "folder"
    source.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif kind == "tar":
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive_:
            archive_.add(source, ".")
    elif kind == "csv":
        (source / "a.csv").write_text("path\n" + "\n".join(files))
    path = {"folder": source, "zip": tmp_path / "a.zip", "tar": tmp_path / "a.tar.gz", "csv": source / "a.csv"}[kind]
    rows = []
    for limit in (1 << 30, -1):
        monkeypatch.setattr("simsearch.images.decode.LARGE_BYTES", limit)
        with simsearch.build(path, tmp_path / f"index{limit}", CellModel()) as engine:
            assert len(engine) == 5
            assert dict(engine.failures()).keys() == {
                engine.paths([engine.item(1)])[0].replace("0.png", name) for name in ("broken.png", "empty.png")
            }
            with engine.reading() as reader:
                items = list(reader.items())
            rows.append(
                [(item.path, item.digest, engine.shards.read(np.array([item.row])).tobytes()) for item in items]
            )
    assert rows[0] == rows[1]


def test_a_stream_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        resolve(str(tmp_path)).stream("nowhere.png")


MEMORY = """
import json, re, sys
from pathlib import Path
import simsearch
from simsearch.indexing import extract
from tests.helpers.models import CellModel
extract.DECODING_BYTES = 100 << 20
engine = simsearch.build(sys.argv[1], sys.argv[2], CellModel(), workers=4)
# Not ru_maxrss, which starts at the value of the parent process.
print(json.dumps([len(engine), int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_large_pictures_do_not_add_up_in_memory(tmp_path: Path) -> None:
    """Five pictures of 95 MiB each, four threads, 100 MiB for decoding: decoded one at a time, without copies."""
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(5):
        colour = tuple(np.random.default_rng(number).integers(0, 255, 4))
        Image.new("RGBA", (5000, 5000), colour).save(folder / f"{number}.png", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder), str(tmp_path / "index")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    count, peak = json.loads(done.stdout)
    assert count == 5
    assert peak / 1024 < 340  # about 200 are taken by Python, its packages and the C library
