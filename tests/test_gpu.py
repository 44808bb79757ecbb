"""What a GPU does, as far as it can be seen without one: the same code on the CPU, and stand-ins for its libraries.

Nothing here is skipped for want of a GPU; where there is one, tests/test_real_gpu.py adds to it.
"""

from __future__ import annotations

import contextlib
import io
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import simsearch
from simsearch import extract, fit, images, machine, models, resident
from simsearch.loading import Extracted
from simsearch.models import jpegs, runtime, torch_runtime
from simsearch.models.jpegs import JpegDecoder, header, scaled_centre
from simsearch.models.replays import MOST, WARM, Replays
from simsearch.models.torch_runtime import TorchModel, TorchRunner
from simsearch.recipe import Recipe
from tests.filler import Filler
from tests.models import CellModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

CPU = torch.device("cpu")


def smooth(seed: int = 0, size: tuple[int, int] = (400, 300), mode: str = "RGB") -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image, orientation: int = 0, **options: Any) -> bytes:
    out = io.BytesIO()
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def decoded(decoder: JpegDecoder, files: Sequence[bytes]) -> list[NDArray[np.uint8] | None]:
    taken = [decoder.takes(data) for data in files]
    assert None not in taken
    return decoder.pixels(taken)  # type: ignore[arg-type]


def pillow(files: list[Tensor]) -> list[Tensor]:
    """Stands in for nvJPEG: the pictures as they are stored, one damaged file an error for all."""
    found = []
    for file in files:
        try:
            with Image.open(io.BytesIO(file.numpy().tobytes())) as image:
                found.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
        except OSError as error:
            raise RuntimeError(f"nvjpegDecode failed: {error}") from error
    return found


# -- which files


def test_plain_jpegs_are_taken() -> None:
    assert header(jpeg(smooth())) == (400, 300, 1)
    assert header(jpeg(smooth(), progressive=True)) == (400, 300, 1)
    assert header(jpeg(smooth(), subsampling=0)) == (400, 300, 1)
    assert header(jpeg(smooth(mode="L"))) == (400, 300, 1)
    found = header(jpeg(smooth(), orientation=6))
    assert found == (400, 300, 6)
    assert found.upright == (300, 400)
    assert header(jpeg(smooth(), orientation=9)) == (400, 300, 1)


def test_others_are_left_to_the_cpu() -> None:
    whole, png, mpo = jpeg(smooth()), io.BytesIO(), io.BytesIO()
    smooth().save(png, "PNG")
    smooth().save(mpo, "MPO", save_all=True, append_images=[smooth(1)])
    for data in (
        b"", b"\xff\xd8\xff", png.getvalue(), mpo.getvalue(), whole[:-40], whole[:200] + b"\xff\xd9",
        jpeg(smooth(mode="CMYK")), jpeg(smooth(), keep_rgb=True), whole + bytes(20),
    ):  # fmt: skip
        assert header(data) is None
    decoder = JpegDecoder(Recipe(32, 28), pillow)
    assert decoder.takes(jpeg(smooth(size=(650, 10)))) is None  # a panorama
    taken = decoder.takes(jpeg(smooth(size=(640, 10))))
    assert taken is not None
    assert taken.header == (640, 10, 1)


def test_large_ones_are_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(smooth())
    decoder = JpegDecoder(Recipe(32, 28), pillow)
    monkeypatch.setattr(jpegs, "MOST_PIXELS", 400 * 300)
    assert decoder.takes(data) is not None
    monkeypatch.setattr(jpegs, "MOST_PIXELS", 400 * 300 - 1)
    assert decoder.takes(data) is None
    monkeypatch.setattr(jpegs, "MOST_BYTES", len(data))
    assert header(data) is not None
    monkeypatch.setattr(jpegs, "MOST_BYTES", len(data) - 1)
    assert header(data) is None


# -- scaling and cropping


@pytest.mark.parametrize("interpolation", jpegs.MODES)
@pytest.mark.parametrize("size", [(400, 300), (301, 457), (64, 64), (50, 37), (1000, 64), (2001, 1333)])
def test_pixels_are_those_of_the_recipe(size: tuple[int, int], interpolation: str) -> None:
    recipe = Recipe(64, 56, interpolation=interpolation)
    data = jpeg(smooth(3, size))
    picture = pillow([torch.from_numpy(np.frombuffer(data, np.uint8).copy())])[0]
    found = scaled_centre(picture, recipe).numpy().astype(int)
    expected = recipe.pixels(images.decode(data).image).astype(int)
    assert found.shape == (56, 56, 3)
    assert np.abs(found - expected).mean() < 1
    assert np.abs(found - expected).max() <= 6


def test_a_picture_of_many_times_the_size_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.from_numpy(np.array(smooth(3, (1200, 900)))).permute(2, 0, 1)
    expected = scaled_centre(picture, Recipe(16, 14)).int()
    monkeypatch.setattr(jpegs, "WIDEST", 8)  # so that squares of 7 pixels are averaged
    assert (scaled_centre(picture, Recipe(16, 14)).int() - expected).abs().max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    recipe, data = Recipe(48, 41), jpeg(smooth(4, (131, 97)), orientation)
    found = decoded(JpegDecoder(recipe, pillow), [data])[0]
    assert found is not None
    expected = recipe.pixels(images.decode(data).image).astype(int)
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_the_library_is_told_of_no_orientation() -> None:
    seen: list[Any] = []

    def decode(files: list[Tensor]) -> list[Tensor]:
        seen.extend(Image.open(io.BytesIO(file.numpy().tobytes())).getexif().get(0x0112) for file in files)
        return pillow(files)

    decoded(JpegDecoder(Recipe(48, 40), decode), [jpeg(smooth(), 6), jpeg(smooth(), 1), jpeg(smooth())])
    assert seen == [None, 1, None]


def test_recipes_that_torch_cannot_follow() -> None:
    assert jpegs.suits(Recipe())
    assert not jpegs.suits(Recipe(interpolation="lanczos"))
    assert not jpegs.suits(Recipe(28, 32))


# -- the decoder


def test_a_damaged_file_spoils_no_other() -> None:
    whole = [jpeg(smooth(number)) for number in range(5)]
    broken = whole[1][:300] + bytes(2000) + whole[1][-1000:]
    assert header(broken) is not None

    def decode(files: list[Tensor]) -> list[Tensor]:
        if any(file.numpy().tobytes() == broken for file in files):
            raise RuntimeError("nvjpegDecode failed: 4")
        return pillow(files)

    decoder = JpegDecoder(Recipe(48, 40), decode)
    found = decoded(decoder, [*whole[:2], broken, *whole[2:]])
    assert [x is None for x in found] == [False, False, True, False, False, False]
    alone = [decoded(decoder, [file])[0] for file in whole]
    for a, b in zip([x for x in found if x is not None], alone, strict=True):
        assert b is not None
        assert a.tobytes() == b.tobytes()


def test_a_picture_of_another_size_than_announced_is_not_believed() -> None:
    decoder = JpegDecoder(Recipe(48, 40), lambda files: [torch.zeros(3, 400, 300, dtype=torch.uint8) for _ in files])
    assert decoded(decoder, [jpeg(smooth())]) == [None]


def test_groups_hold_so_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpegs, "GROUP_PIXELS", 250_000)
    groups = []

    def decode(files: list[Tensor]) -> list[Tensor]:
        groups.append(len(files))
        return pillow(files)

    files = [jpeg(smooth(n, size)) for n, size in enumerate([(400, 300)] * 5 + [(900, 600)] + [(10, 10)])]
    found = decoded(JpegDecoder(Recipe(8, 8), decode), files)
    assert groups == [2, 2, 1, 1, 1]
    assert all(x is not None for x in found)
    assert JpegDecoder(Recipe(8, 8), decode).pixels([]) == []


def test_a_library_is_tried_before_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert JpegDecoder.on(Recipe(), CPU, contextlib.nullcontext) is None
    gpu = torch.device("cuda")

    def absent(device: torch.device) -> Any:
        raise ImportError("No module named 'torchcodec'")

    def on(*finders: Any) -> JpegDecoder | None:
        for name, finder in zip(("_torchcodec", "_torchvision"), finders, strict=True):
            monkeypatch.setattr(jpegs, name, finder)
        return JpegDecoder.on(Recipe(), gpu, contextlib.nullcontext)

    def upside_down(files: list[Tensor]) -> list[Tensor]:
        return [picture.flip(1) for picture in pillow(files)]

    def failing(files: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("not compiled with nvJPEG support")

    found = on(lambda _: pillow, absent)
    assert found is not None
    assert found.library == "TorchCodec"
    assert on(absent, lambda _: pillow) is not None
    assert on(lambda _: failing, lambda _: pillow) is not None
    assert on(lambda _: upside_down, absent) is None
    assert on(lambda _: failing, lambda _: upside_down) is None
    assert on(absent, absent) is None
    assert JpegDecoder.on(Recipe(interpolation="lanczos"), gpu, contextlib.nullcontext) is None


def test_torchvision_decodes_as_pillow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its interface; on the CPU, since that is what is here."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: _Stream())
    decode = jpegs._torchvision(CPU)
    with warnings.catch_warnings():  # those of tests are errors
        warnings.simplefilter("ignore", DeprecationWarning)
        assert jpegs._right(decode)


class _Stream:
    def synchronize(self) -> None: ...


def test_torchcodec_decodes_as_pillow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import torchcodec  # noqa: F401
    except (ImportError, OSError) as error:  # of another torch, say
        pytest.skip(f"needs the extra [gpu]: {error}")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: _Stream())
    assert jpegs._right(jpegs._torchcodec(CPU))


# -- from files to features


class Handed(CellModel):
    """A model whose device decodes JPEGs."""

    engine = "torch-cuda"

    def __init__(self, decode: Any = pillow) -> None:
        super().__init__()
        self.decoder = JpegDecoder(self.recipe, decode)


def everything() -> list[bytes]:
    files = [jpeg(smooth(n, (60 + n, 50))) for n in range(30)]
    png = io.BytesIO()
    smooth(99).save(png, "PNG")
    files[3:3] = [png.getvalue(), b"", files[0], files[1][:-30], jpeg(smooth(7), 6), jpeg(smooth(mode="CMYK"))]
    files.append(files[5][:300] + bytes(2000) + files[5][-1000:])
    return files


def run(model: Any, files: Sequence[bytes], **options: Any) -> list[Extracted]:
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
def test_a_device_that_decodes_gives_the_same_results(
    waiting: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert sum(result.problem is not None for result in found) >= 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("no JPEG"), IndexError()])
def test_what_the_device_refuses_is_decoded_here(error: Exception) -> None:
    def refusing(files: list[Tensor]) -> list[Tensor]:
        raise error

    files = everything()
    for a, b in zip(run(CellModel(), files), run(Handed(refusing), files), strict=True):
        assert (a.problem, a.features is None) == (b.problem, b.features is None)
        assert a.features is None or a.features.tobytes() == b.features.tobytes()  # type: ignore[union-attr]


def test_files_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device slower than the files are read: what waits for it stays near the limit."""
    files = [jpeg(smooth(n, (200, 150)), comment=bytes(20_000)) for n in range(60)]
    limit, gate, most = 200_000, threading.Semaphore(0), 0
    monkeypatch.setattr(extract, "WAITING_BYTES", limit)
    count = extract._Room._count

    def noted(room: Any, reading: int, size: int) -> None:
        nonlocal most
        count(room, reading, size)
        most = max(most, room.bytes)
        gate.release()

    monkeypatch.setattr(extract._Room, "_count", noted)

    def slow(tensors: list[Tensor]) -> list[Tensor]:
        gate.acquire(timeout=0.02)
        return pillow(tensors)

    found = run(Handed(slow), files, batch_size=64, workers=2)
    assert all(result.features is not None for result in found)
    assert most <= limit + 6 * max(map(len, files))  # those being read already when the limit is reached


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_copies_of_what_nothing_decodes_fail_alike(batch_size: int, tmp_path: Path) -> None:
    """Its header is in order, so that the copies are told from each other's digests before it is known to be broken."""
    whole = jpeg(smooth())
    tables = whole.index(b"\xff\xc4") + 5
    broken = whole[:tables] + b"\xff" * 16 + whole[tables + 16 :]  # more codes of one bit than there are
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


def test_what_the_device_refuses_is_decoded_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    hold = machine.Budget.hold
    monkeypatch.setattr(machine.Budget, "hold", lambda budget, size: held.append(size) or hold(budget, size))  # type: ignore[func-returns-value]
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


# -- half precision


def test_half_precision_is_used_where_it_agrees(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = models.find(str(tiny_weights))
    exact = TorchModel(file, "cpu")
    assert exact.engine == "torch-cpu"
    assert exact.decoder is None
    runner = TorchRunner(exact.recipe, "cpu")
    network = exact.network
    assert runner.agreement(network.features, network.features) == pytest.approx(1)
    runner.device = _Cuda()  # type: ignore[assignment]
    monkeypatch.setattr(TorchRunner, "_once", plainly)
    half, engine = runner.fastest(network, lambda network: network.features)
    assert engine == "torch-cuda-float16"
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    pixels = np.random.default_rng(0).integers(0, 256, (5, 63, 63, 3), np.uint8)
    a, b = exact.features(pixels), runner.run(half.features, pixels)
    assert b.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 0.01 * np.abs(a).max()
    monkeypatch.setenv("SIMSEARCH_PRECISION", "float32")
    assert runner.fastest(network, lambda network: network.features) == (network, "torch-cuda")


def test_a_gpu_with_no_room_for_a_second_network_keeps_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 8)).requires_grad_(False)

    def full(runner: TorchRunner, function: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if next(function.parameters()).dtype == torch.float16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plainly(runner, function, pixels)

    monkeypatch.setattr(TorchRunner, "_once", full)
    runner = TorchRunner(Recipe(8, 8), "cpu")
    runner.device = _Cuda()  # type: ignore[assignment]
    assert runner.fastest(network, lambda network: network) == (network, "torch-cuda")
    assert runner.most is None


def test_memory_that_torch_does_not_give_back_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a recording that failed; during one it is waited for."""
    recording, emptied = threading.Event(), threading.Event()

    def refused() -> None:
        assert not recording.is_set()
        emptied.set()
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refused)
    runner = TorchRunner(Recipe(8, 8), "cpu")

    def small(x: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.sum((2, 3))

    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    with ThreadPoolExecutor(1) as pool:
        with simsearch.models.replays._recording:
            recording.set()
            found = pool.submit(runner.run, small, pixels)
            assert not emptied.wait(0.05)
            recording.clear()
        assert found.result(10).shape == (5, 3)
    assert emptied.is_set()


@pytest.mark.parametrize("scale", [300.0, 1e-9, float("nan")])
def test_half_precision_is_not_used_where_it_fails(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that float16 cannot hold, and features that are none."""
    linear = nn.Linear(3 * 64, 8).requires_grad_(False)
    linear.weight.mul_(scale)
    linear.bias.fill_(1e6 if scale == 300 else 0)
    network = nn.Sequential(nn.Flatten(), linear)
    runner = TorchRunner(Recipe(8, 8), "cpu")
    runner.device = _Cuda()  # type: ignore[assignment]
    monkeypatch.setattr(TorchRunner, "_once", plainly)
    assert runner.fastest(network, lambda network: network) == (network, "torch-cuda")


def test_half_and_full_precision_are_of_one_kind() -> None:
    assert models.precision_of("torch-cuda-float16") == models.precision_of("onnxruntime-cpu") == "float32"


class _Cuda:
    type = "cuda"


def plainly(runner: TorchRunner, function: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`TorchRunner._once` without streams."""
    with torch.inference_mode():
        return runner._step(function, torch.from_numpy(pixels)).numpy()


def test_full_precision_lasts_until_the_last_thread_is_done() -> None:
    states, log = [False], []

    @contextlib.contextmanager
    def setting() -> Any:
        log.append("in")
        states[0] = True
        yield
        states[0] = False
        log.append("out")

    together = torch_runtime._Together(setting)
    first_in, first_may_go = threading.Event(), threading.Event()

    def first() -> None:
        with together():
            first_in.set()
            first_may_go.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(10)
    with together():
        first_may_go.set()
        thread.join()
        assert states == [True]
    assert states == [False]
    with pytest.raises(ZeroDivisionError), together():
        _ = 1 / 0
    assert log == ["in", "out", "in", "out"]


# -- recording and replaying


def recording(step: Any, x: Tensor) -> tuple[Any, Tensor]:
    """Stands in for a CUDA graph: computes into the same memory from the same memory."""
    y = step(x)
    y_own = torch.full_like(y, torch.nan)  # nothing has been computed before the first replay
    return lambda: y_own.copy_(step(x)), y_own


def test_a_shape_is_recorded_and_replayed() -> None:
    recorded = []
    replays = Replays(lambda step, x: recorded.append(x.shape) or recording(step, x))  # type: ignore[func-returns-value]
    for number in range(8):
        x = torch.full((4, 3), float(number))
        assert torch.equal(replays.run("double", lambda x: 2 * x, x, CPU), 2 * x)
        assert len(replays) == (number >= WARM - 1)
    assert recorded == [(4, 3)]
    assert torch.equal(replays.run("triple", lambda x: 3 * x, x, CPU), 3 * x)  # another function
    assert torch.equal(replays.run("double", lambda x: 2 * x, x[:2], CPU), 2 * x[:2])  # another shape


def test_no_more_shapes_than_memory_is_meant_for() -> None:
    replays = Replays(recording)
    for size in range(1, MOST + 4):
        for _ in range(WARM + 1):
            assert torch.equal(replays.run("f", lambda x: x + 1, torch.ones(size), CPU), torch.full((size,), 2.0))
    assert len(replays) == MOST


@pytest.mark.parametrize("problem", ["error", "memory", "wrong", "nan"])
def test_a_recording_that_fails_is_not_used(problem: str) -> None:
    def capture(step: Any, x: Tensor) -> tuple[Any, Tensor]:
        if problem == "error":
            raise RuntimeError("operation not permitted when stream is capturing")
        if problem == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        _, y = recording(step, x)
        return (lambda: None) if problem == "nan" else (lambda: y.copy_(1.1 * step(x))), y

    replays, x = Replays(capture), torch.ones(4)
    for _ in range(6):
        assert torch.equal(replays.run("f", lambda x: x + 1, x, CPU), x + 1)
    assert len(replays) == 0


def test_an_error_of_the_network_is_its_own() -> None:
    def failing(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Replays(recording).run("f", failing, torch.ones(4), CPU)


# -- precision


@pytest.mark.parametrize("user", ["default", "high", "new", "convolutions", "products", "both"])
def test_full_precision_is_set_and_put_back(user: str) -> None:
    """Whichever of torch's interfaces the program around uses."""
    code = f"""
import warnings; warnings.simplefilter("error")
import torch
from simsearch.models import torch_runtime
b = torch.backends
if {user!r} == "high": torch.set_float32_matmul_precision("high")
if {user!r} == "new": b.fp32_precision = "tf32"
if {user!r} == "convolutions": b.cudnn.conv.fp32_precision = "ieee"
if {user!r} == "both": b.cuda.matmul.allow_tf32 = True; b.cudnn.conv.fp32_precision = "ieee"
if {user!r} == "products": b.cuda.matmul.fp32_precision = "tf32"
def state():
    found = [b.fp32_precision, b.cudnn.fp32_precision, b.cudnn.conv.fp32_precision, b.cudnn.rnn.fp32_precision,
             b.cuda.matmul.allow_fp16_reduced_precision_reduction, b.cuda.matmul.fp32_precision]
    return found + ([] if {user!r} in ("new", "products") else [torch.get_float32_matmul_precision()])
before = state()
with torch_runtime._full(), torch_runtime._full():
    assert "tf32" not in state()[2:] and "high" not in state() and not state()[4], state()
    assert not b.cuda.matmul.allow_tf32
    if {user!r} in ("default", "high"):
        assert not b.cudnn.allow_tf32
assert state() == before, (before, state())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- streams


class Stream:
    def wait_stream(self, other: Any) -> None: ...


def test_a_stream_is_lent_to_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, inside, most = TorchRunner(Recipe(8, 8), "cpu"), set[int](), 0
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: x)
    runner._free = queue.SimpleQueue()
    replays = [Replays(recording), Replays(recording)]
    for each in replays:
        runner._free.put(torch_runtime._Lane(Stream(), each))  # type: ignore[arg-type]

    def network(x: Tensor) -> Tensor:
        nonlocal most
        inside.add(threading.get_ident())
        most = max(most, len(inside))
        total = x.sum((2, 3))
        inside.remove(threading.get_ident())
        return total

    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    expected = TorchRunner(Recipe(8, 8), "cpu").run(network, pixels)
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: runner.run(network, pixels), range(60)):
            assert np.array_equal(found, expected)
    assert most <= 2
    assert {len(each) for each in replays} <= {0, 1}
    assert any(len(each) for each in replays)
    assert runner._free.qsize() == 2
    with pytest.raises(ZeroDivisionError):
        runner.run(lambda x: 1 / 0, pixels)  # type: ignore[arg-type,return-value]
    assert runner._free.qsize() == 2


def test_a_search_that_its_devices_have_no_memory_for_goes_on_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = Filler(tmp_path / "index", 32)
    filler.add(np.random.default_rng(0).random((500, 32)).astype(np.float16))
    query = np.random.default_rng(1).random(32).astype(np.float32)
    expected = filler.engine.search_by_vector(query)
    monkeypatch.setattr(runtime, "choose_device", lambda device: device)
    monkeypatch.setattr(resident, "devices_for", lambda *_: ["cpu"])
    with simsearch.open(filler.path, model=filler.model, device="cuda") as engine:
        engine.search_by_vector(query)
        assert engine.search_by_vector(query) == expected
        with engine.reading() as reader:
            flat = engine.snapshot(reader).flat
        assert getattr(flat, "_resident") is not None  # noqa: B009

        def full(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(resident.Resident, "_scan", full)
        assert engine.search_by_vector(query) == expected
        assert getattr(flat, "_resident") is None  # noqa: B009
        assert engine.search_by_vector(query) == expected


def test_training_takes_the_only_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []

    def set_device(device: torch.device) -> None:
        if device.index is None:
            raise ValueError("Expected a torch.device with a specified index")
        taken.append(device)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(fit, "choose_device", lambda name: name)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert fit._device("cuda") == torch.device("cuda")
    assert fit._device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert fit._device("cuda") == torch.device("cuda:2")
    assert taken == [torch.device("cuda:1"), torch.device("cuda:2")]
