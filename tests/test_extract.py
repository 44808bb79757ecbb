"""From files to features: the same whatever the threads and batches, in order, in bounded memory."""

from __future__ import annotations

import io
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
from simsearch import images, machine, models, sample
from simsearch.errors import DeviceError, ImageError
from simsearch.extract import Task, extract
from simsearch.loading import Extracted
from simsearch.machine import Budget, quota
from simsearch.models import runtime, torch_runtime
from simsearch.models.runtime import OnnxModel
from simsearch.models.torch_runtime import TorchRunner
from simsearch.opening import resolve
from simsearch.recipe import Recipe
from tests.models import CellModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent


def picture(seed: int, size: tuple[int, int] = (40, 30), kind: str = "PNG", **options: Any) -> bytes:
    """A picture of random smooth colours, as a file."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(out, kind, **options)
    return out.getvalue()


def run(model: Any, files: Sequence[bytes], **options: Any) -> list[tuple[int, Extracted]]:
    tasks = [Task(lambda data=data: data, number) for number, data in enumerate(files)]  # type: ignore[misc]
    return [pair for group in extract(model, tasks, **options) for pair in group]


def features(found: Sequence[tuple[int, Extracted]]) -> NDArray[np.float16]:
    return np.stack([result.features for _, result in found if result.features is not None])


# -- results


def test_features_do_not_depend_on_threads_and_batches(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [picture(number, (100, 80), "JPEG") for number in range(45)]
    plain = OnnxModel(models.find(str(tiny_weights)))
    expected = features(run(plain, files, batch_size=1, workers=1))
    assert expected.shape == (45, 32)
    monkeypatch.setattr(machine, "cores", lambda: 4)
    several = OnnxModel(models.find(str(tiny_weights)), threads=True)
    assert several.lanes == 4
    for model, batch_size, workers in [(plain, 32, 3), (several, 1, 8), (several, 7, 2), (several, 32, None)]:
        found = run(model, files, batch_size=batch_size, workers=workers)
        assert [key for key, _ in found] == list(range(45))
        assert features(found).tobytes() == expected.tobytes()


def test_results_come_in_order_however_long_each_takes() -> None:
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


def test_what_is_alike_is_computed_once_while_batches_are_under_way() -> None:
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


def test_slow_images_do_not_hold_back_those_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsearch.extract.PATIENCE", 0.05)
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


def test_an_abandoned_extraction_ends_its_threads() -> None:
    tasks = (Task(lambda n=n: picture(n), n) for n in range(10_000))  # type: ignore[misc]
    groups = extract(CellModel(), tasks, batch_size=4, workers=2)
    next(groups)
    groups.close()  # type: ignore[attr-defined]
    assert not [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "feed", "compute"))
    ]


# -- a GPU, as far as that can be seen without one


class Device(CellModel):
    """A model that computes two batches at once, each of which waits for the other."""

    lanes, engine = 2, "torch-cuda"

    def __init__(self) -> None:
        super().__init__()
        self.together = threading.Barrier(2)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.together.wait(30)
        return super().features(pixels)


@pytest.mark.parametrize("workers", [1, 4])
def test_one_batch_is_uploaded_while_another_is_computed(workers: int) -> None:
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
    assert sizes[7:] == [3, 1]  # it remembers
    assert runner.run(network, pixels[:0]).shape == (0, 3)


def test_a_gpu_too_small_for_one_image_is_an_error() -> None:
    import torch

    def network(x: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match="its memory does not hold one image"):
        TorchRunner(CellModel.recipe, "cpu").run(network, np.zeros((3, 16, 16, 3), np.uint8))


def test_a_gpu_that_cannot_be_used_is_passed_over(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(runtime, "choose_device", lambda device, few=False: "cuda")
    monkeypatch.setattr(torch_runtime, "TorchModel", full)
    assert models.load(str(tiny_weights)).engine == "onnxruntime-cpu"
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used: CUDA out of memory"):
        models.load(str(tiny_weights), "cuda")


# -- large files and images


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "csv"])
def test_large_files_are_decoded_from_where_they_are(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        monkeypatch.setattr("simsearch.loading.LARGE_BYTES", limit)
        with simsearch.build(path, tmp_path / f"index{limit}", CellModel()) as engine:
            assert len(engine) == 5
            assert dict(engine.failures()).keys() == {engine.paths([engine.item(1)])[0].replace("0.png", name)
                                                      for name in ("broken.png", "empty.png")}  # fmt: skip
            with engine.reading() as reader:
                items = list(reader.items())
            rows.append(
                [(item.path, item.digest, engine.shards.read(np.array([item.row])).tobytes()) for item in items]
            )
    assert rows[0] == rows[1]


def test_a_stream_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        resolve(str(tmp_path)).stream("nowhere.png")


KINDS = ["RGB", "RGBA", "LA", "P", "L", "I;16", "I", "F", "CMYK", "turned"]


@pytest.mark.parametrize("kind", KINDS)
def test_large_pictures_are_scaled_while_they_are_converted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Image.open(io.BytesIO(picture(5, (435, 310)))).convert("RGB")
    out, options = io.BytesIO(), dict[str, Any]()
    image = base
    if kind in {"RGBA", "LA"}:
        image = base.convert(kind)
        image.putalpha(base.convert("L").transpose(Image.Transpose.ROTATE_180))
    elif kind == "P":
        image, options = base.quantize(32), {"transparency": 3}
    elif kind in {"I;16", "I", "F"}:
        values = np.asarray(base.convert("L")).astype(np.float32) * {"I;16": 257, "I": 4001, "F": 1 / 255}[kind]
        image = Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind]))
    elif kind == "turned":
        options = {"exif": Image.Exif()}
        options["exif"][0x0112] = 6
    elif kind != "RGB":
        image = base.convert(kind)
    image.save(out, "TIFF" if kind in {"I;16", "I", "F", "CMYK"} else "PNG", **options)
    whole = images.decode(out.getvalue())
    monkeypatch.setattr(images, "LARGE_PIXELS", 4 * 435 * 9)  # bands of 9 rows and fewer
    small = images.decode(out.getvalue(), 30)
    assert (small.width, small.height) == (whole.width, whole.height)
    assert small.image.mode == "RGB"
    assert min(small.image.size) == 62  # a fifth, at least twice of what is needed
    difference = np.asarray(small.image, np.int16) - np.asarray(whole.image.reduce(5), np.int16)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "I", "F", "CMYK"])
@pytest.mark.parametrize("size", [(2001, 40), (37, 1000), (4001, 21)])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_of_large_panoramas_only_the_middle_is_converted(
    size: tuple[int, int], kind: str, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Image.open(io.BytesIO(picture(5, size))).convert("RGB")
    values = np.asarray(base.convert("L")).astype(np.float32)
    if kind in {"I", "F"}:
        base = Image.fromarray((values * 4001).astype(np.int32) if kind == "I" else values / 300)
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = turn
    base.convert(kind).save(out, "TIFF", exif=exif)
    recipe = Recipe(30, 28)
    whole = images.decode(out.getvalue())
    monkeypatch.setattr(images, "LARGE_PIXELS", 30_000)
    middle = images.decode(out.getvalue(), 30)
    assert (middle.width, middle.height) == (whole.width, whole.height)
    lower = min(size)
    assert sorted(middle.image.size) == [lower, 8 * lower + (max(size) - 8 * lower) % 2]
    assert middle.image.mode == "RGB"
    difference = recipe.pixels(middle.image).astype(int) - recipe.pixels(whole.image)
    assert np.abs(difference).max() <= 1


def test_footprint_knows_what_is_kept_while_decoding() -> None:
    size = (1200, 800)
    assert images.footprint(picture(1, size), 10) == 1200 * 800 * 4
    assert images.footprint(picture(1, size, "JPEG"), 10) == 150 * 100 * 4
    assert images.footprint(picture(1, size, "JPEG"), None) == 1200 * 800 * 4
    coefficients = images.footprint(picture(1, size, "JPEG", progressive=True, subsampling=2), 10) - 150 * 100 * 4
    assert coefficients == 1200 * 800 * 3
    assert images.footprint(b"no image") == 0
    stream = io.BytesIO(picture(1, size))
    assert images.footprint(stream) == 1200 * 800 * 4
    assert stream.tell() == 0


MEMORY = """
import json, re, sys
from pathlib import Path
import simsearch
from simsearch import extract
from tests.models import CellModel
extract.DECODING_BYTES = 100 << 20
engine = simsearch.build(sys.argv[1], sys.argv[2], CellModel(), workers=4)
# Not ru_maxrss, which begins with what the parent process had.
print(json.dumps([len(engine), int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_large_pictures_do_not_add_up_in_memory(tmp_path: Path) -> None:
    """Five pictures of 95 MiB each, four threads, 100 MiB for decoding: one at a time, and no copies of any."""
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(5):
        colour = tuple(np.random.default_rng(number).integers(0, 255, 4))
        Image.new("RGBA", (5000, 5000), colour).save(folder / f"{number}.png", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder), str(tmp_path / "index")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, peak = json.loads(done.stdout)
    assert count == 5
    assert peak / 1024 < 340  # Python and its packages, and what the C library keeps, take some 200


# -- agreement


def test_scaled_decoding_agrees_with_plain_pillow() -> None:
    """Drawn pictures of 3 megapixels, by the shipped weights; scripts/bench/decoding does it with photographs."""
    model = models.load(device="cpu", images=16)
    assert model.recipe.crop == 128
    fast, plain = [], []
    for number, kind in enumerate(list(sample.KINDS)[:16]):
        out = io.BytesIO()
        sample.draw(kind, number).resize((2000, 1500), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        small = images.decode(out.getvalue(), model.recipe.resize).image
        assert small.size == (500, 375)
        fast.append(model.recipe.pixels(small))
        plain.append(model.recipe.pixels(images.decode(out.getvalue()).image))
    a, b = (model.features(np.stack(pixels)).astype(np.float64) for pixels in (fast, plain))
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    assert cosines.min() >= 0.995
    assert np.median(cosines) >= 0.999


# -- the machine


def test_a_budget_is_never_exceeded_and_what_is_larger_goes_alone() -> None:
    budget, held, most = Budget(100), [0], [0]
    lock = threading.Lock()

    def use(size: int) -> None:
        for _ in range(20):
            with budget.hold(size):
                with lock:
                    held[0] += size
                    most[0] = max(most[0], held[0])
                    assert size <= 100 or held[0] == size
                time.sleep(0.0005)
                with lock:
                    held[0] -= size

    threads = [threading.Thread(target=use, args=(size,)) for size in (10, 40, 60, 35, 250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert held == [0]
    assert most[0] == 250


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        ({"a/cpu.max": "150000 100000\n"}, "0::/a\n", 1.5),
        ({"a/cpu.max": "max 100000\n", "cpu.max": "400000 100000\n"}, "0::/a/b\n", 4.0),
        ({"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5),
        (
            {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"},
            "4:memory:/a\n3:cpu,cpuacct:/a\n",
            3,
        ),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/a\n", float("inf")),
        ({}, "0::/\n", float("inf")),
        ({}, None, float("inf")),
    ],
)
def test_quotas_of_control_groups(files: dict[str, str], groups: str | None, expected: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    assert quota(tmp_path / "groups", tmp_path / "fs") == expected
    assert 1 <= machine.cores() <= 1024
