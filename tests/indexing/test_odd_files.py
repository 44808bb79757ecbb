"""A folder of 100 good pictures and 200 broken and odd files: no file stops a build, and none is lost silently."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import simsearch
from simsearch import api
from simsearch.images import decode
from simsearch.images.samples import generate
from simsearch.indexing import options as indexing_options
from simsearch.models import base, load, registry
from simsearch.storage.verify import verify
from tests.helpers.encoded import encoded, png
from tests.helpers.models import CellModel

GOOD, ODD = 100, 200
UNREADABLE = "unreadable.jpg"
Turn = Image.Transpose
STORED_BY = (
    None,
    Turn.FLIP_LEFT_RIGHT,
    Turn.ROTATE_180,
    Turn.FLIP_TOP_BOTTOM,
    Turn.TRANSPOSE,
    Turn.ROTATE_90,
    Turn.TRANSVERSE,
    Turn.ROTATE_270,
)
"""The rotation or flip that a camera reports as EXIF orientation 1, 2, ..."""

# As in a program that does not turn warnings into errors: a warning from Pillow does not make a file fail.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def picture(seed: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Returns a smooth picture of random colours, different for each seed."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def turned(image: Image.Image, orientation: int) -> bytes:
    """Returns the picture as a camera stores it with this orientation."""
    turn = STORED_BY[orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image if turn is None else image.transpose(turn)
    return encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif.tobytes())


def odd_files() -> Iterator[tuple[bytes, bytes]]:
    """Yields names and contents; either the name or the content says that it is an image."""
    for orientation in range(1, 9):
        yield b"turned-%d.jpg" % orientation, turned(picture(1000), orientation)
    yield from odd_modes()
    yield from no_images()
    yield b"new\nline.png", encoded(picture(1001), "PNG")
    yield b"not-utf8-\xff\xe9.png", encoded(picture(1002), "PNG")
    yield b"broken-\xfe\n.jpg", encoded(picture(1003), "JPEG")[:-60]
    yield b"rows-missing.png", png(48, 32, 8, 2, bytes(145))
    yield b"no-extension", encoded(picture(1004), "GIF")
    yield b"wrong.jpg", encoded(picture(1005), "PNG")
    yield b"wrong.png", encoded(picture(1006), "JPEG")
    yield b"wrong.txt", encoded(picture(1007), "WEBP")
    yield UNREADABLE.encode(), encoded(picture(1008), "JPEG")
    yield from truncated()


def odd_modes() -> Iterator[tuple[bytes, bytes]]:
    image = picture(1100)
    frames = [image, picture(1101), picture(1102)]
    grey16 = (np.asarray(picture(1103).convert("L"), np.uint16) * 257).astype(">u2")  # (32, 48)
    colour16 = (np.asarray(picture(1104), np.uint16) * 257).astype(">u2").reshape(32, 144)
    yield b"cmyk.jpg", encoded(image.convert("CMYK"), "JPEG")
    yield b"cmyk.tif", encoded(image.convert("CMYK"), "TIFF")
    yield b"grey-16.png", png(48, 32, 16, 0, b"".join(b"\0" + row.tobytes() for row in grey16))
    yield b"colour-16.png", png(48, 32, 16, 2, b"".join(b"\0" + row.tobytes() for row in colour16))
    yield b"float.tif", encoded(Image.fromarray(np.asarray(image.convert("L"), np.float32) / 255), "TIFF")
    yield b"integer.tif", encoded(Image.fromarray(np.asarray(image.convert("L"), np.int32) * 9), "TIFF")
    yield b"bilevel.png", encoded(image.convert("1"), "PNG")
    yield b"palette.png", encoded(image.quantize(16), "PNG")
    yield b"palette-alpha.png", encoded(image.quantize(16), "PNG", transparency=3)
    yield b"grey-alpha.png", encoded(image.convert("LA"), "PNG")
    yield b"alpha.png", encoded(Image.merge("RGBA", (*image.split(), picture(1105).convert("L"))), "PNG")
    yield b"lab.tif", encoded(Image.new("LAB", (20, 20), (120, 130, 140)), "TIFF")
    yield b"one-pixel.png", encoded(Image.new("RGB", (1, 1), "red"), "PNG")
    yield b"line.png", encoded(picture(1106, (5000, 1)), "PNG")
    yield b"garbage-exif.jpg", encoded(picture(1107), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    yield b"frames.gif", encoded(image, "GIF", save_all=True, append_images=frames[1:])
    yield b"frames.webp", encoded(image, "WEBP", save_all=True, append_images=frames[1:])
    yield b"frames.png", encoded(image, "PNG", save_all=True, append_images=frames[1:])
    yield b"frames.tif", encoded(image, "TIFF", save_all=True, append_images=frames[1:])
    yield b"modern.avif", encoded(picture(1108), "AVIF")


def no_images() -> Iterator[tuple[bytes, bytes]]:
    yield b"empty.jpg", b""
    yield b"empty.png", b""
    yield b"text.jpg", b"This is no picture.\n" * 20
    yield b"page.png", b"<!doctype html><title>404</title>"
    yield b"zeros.bmp", bytes(2000)
    yield b"noise.webp", np.random.default_rng(7).bytes(3000)
    yield b"archive.jpeg", b"PK\x03\x04" + bytes(100)
    yield b"program.eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    yield b"bomb.png", png(30_000, 30_000, 8, 2, b"")
    yield b"bomb.bmp", b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield b"signature.jpg", b"\xff\xd8\xff"
    yield b"signature.gif", b"GIF89a"
    yield b"heic.heic", b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(40)


def truncated() -> Iterator[tuple[bytes, bytes]]:
    """Yields pictures truncated at many different places, more than are needed."""
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI")
    names = ("jpg", "png", "gif", "webp", "tif", "bmp", "avif", "jp2", "ppm", "qoi")
    whole = [encoded(picture(1200 + number, (60, 40)), kind) for number, kind in enumerate(kinds)]
    for part in (1, 3, 11, 25, 60, *range(100, 2000, 67)):
        for name, data in zip(names, whole, strict=True):
            yield b"cut-%d.%s" % (part, name.encode()), data[: part % len(data)]


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, bytes]:
    """Writes the odd files among the good ones into `tmp_path/pictures`, and returns the odd files by name."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(GOOD):
        kind = ("PNG", "JPEG", "WEBP", "BMP")[number % 4]
        (folder / f"good-{number:03d}.{kind.lower()}").write_bytes(encoded(picture(number), kind))
    files = {os.fsdecode(name): data for name, data in itertools.islice(odd_files(), ODD - 2)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "link.png").symlink_to("missing.png")
    (folder / "self.png").symlink_to("self.png")
    files |= {"link.png": b"", "self.png": b""}
    (folder / UNREADABLE).chmod(0)
    assert len(list(folder.iterdir())) == GOOD + ODD
    return files


@pytest.fixture
def _unreadable_even_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the system refuse a file, as root can read every file."""
    real = os.open

    def refusing(path: Any, *arguments: Any, **options: Any) -> int:
        if os.fspath(path).endswith(UNREADABLE):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **options)

    if os.geteuid() == 0:
        monkeypatch.setattr(os, "open", refusing)


def content(engine: simsearch.Engine) -> tuple[dict[str, int], dict[str, str]]:
    """Returns the items of an index (path and row) and its failures (path and reason)."""
    with engine.reading() as reader:
        items = [(item.path, item.row) for item in reader.items()]
        failures = [(path, reason) for _, path, reason in reader.failures()]
    assert len(dict(items)) == len(items)
    assert len(dict(failures)) == len(failures)
    return dict(items), dict(failures)


def similar(features: NDArray[np.floating[Any]]) -> float:
    """Returns the smallest cosine between any two of (n, D) features."""
    directions = features.astype(np.float64)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return float((directions @ directions.T).min())


@pytest.mark.usefixtures("_unreadable_even_for_root")
def test_odd_folder_is_indexed_where_readable(tmp_path: Path, odd: dict[str, bytes]) -> None:
    model = CellModel()
    with simsearch.build(tmp_path / "pictures", index=tmp_path / "index", model=model, workers=2) as engine:
        items, failures = content(engine)
        assert {name for name in items if name.startswith("good-")} == {
            path.name for path in (tmp_path / "pictures").glob("good-*")
        }
        assert len(items) - len(odd.keys() & items.keys()) == GOOD

        assert items.keys().isdisjoint(failures)
        assert odd.keys() - items.keys() == failures.keys()
        assert all(reason.strip() and "\n" not in reason for reason in failures.values())
        assert len(engine) + len(engine.failures()) == GOOD + ODD
        info = engine.info()
        assert (info["items"], info["failures"], info["rows"]) == (len(items), len(failures), len(items))
        assert_what_should_be_an_item(set(items), failures)

        rows = [items[f"turned-{orientation}.jpg"] for orientation in range(1, 9)]
        assert similar(engine.shards.read(np.array(rows))) >= 0.99
        assert verify(engine.index).problems == ()

    computed = model.computed
    options = indexing_options.BuildOptions(workers=2)
    engine, summary = api.build_with_summary(
        [tmp_path / "pictures"], tmp_path / "index", model, device="cpu", options=options
    )
    with engine:
        assert (summary.computed, model.computed) == (0, computed)
        assert (summary.added, summary.updated, summary.moved, summary.removed) == (0, 0, 0, 0)
        assert (summary.items, summary.unchanged, summary.failed) == (len(items), len(items), len(failures))
        assert content(engine) == (items, failures)
        assert verify(engine.index).problems == ()


def assert_what_should_be_an_item(items: set[str], failures: dict[str, str]) -> None:
    """For files whose outcome does not depend on the installed decoders."""
    decodable = {os.fsdecode(name) for name, _ in odd_modes()} | {f"turned-{number}.jpg" for number in range(1, 9)}
    decodable |= {"new\nline.png", os.fsdecode(b"not-utf8-\xff\xe9.png"), "no-extension"}
    decodable |= {"wrong.jpg", "wrong.png", "wrong.txt"}
    assert decodable <= items
    assert {os.fsdecode(name) for name, _ in no_images()} <= failures.keys()
    assert failures["empty.jpg"] == "empty file"
    assert failures["text.jpg"] == "not an image, or of an unknown format"
    assert failures["bomb.png"].startswith("too large: ")
    assert failures["bomb.bmp"].startswith("too large: ")
    assert failures[UNREADABLE] == "Permission denied"
    assert failures["link.png"] == "No such file or directory"
    assert "symbolic links" in failures["self.png"]
    assert "truncated" in failures[os.fsdecode(b"broken-\xfe\n.jpg")]
    cut = [name for name in failures if name.startswith("cut-")]
    assert len(cut) >= 100


def test_mended_and_broken_files_change_places(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(picture(0), "PNG"))
    (folder / "b.png").write_bytes(encoded(picture(1), "PNG")[:50])

    def build() -> tuple[list[str], list[str]]:
        with simsearch.build(folder, index=tmp_path / "index", model=CellModel()) as engine:
            assert verify(engine.index).problems == ()
            items, failures = content(engine)
            return sorted(items), sorted(failures)

    assert build() == (["a.png"], ["b.png"])
    (folder / "b.png").write_bytes(encoded(picture(1), "PNG"))
    (folder / "a.png").write_bytes(b"damaged")
    assert build() == (["b.png"], ["a.png"])
    (folder / "a.png").unlink()
    assert build() == (["b.png"], [])


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, int]:
    """Indexes two pictures, and again while one cannot be read; returns the folder and the number of items."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(encoded(picture(number), "PNG"))
    simsearch.build(folder, index=tmp_path / "index", model=CellModel()).close()
    real = os.stat

    def refusing(path: Any, **options: Any) -> os.stat_result:
        if os.fsdecode(path).endswith("0.png"):
            raise OSError(5, "Input/output error", path)
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refusing)
        with simsearch.build(folder, index=tmp_path / "index", model=CellModel()) as engine:
            assert engine.failures() == [(str(folder / "0.png"), "Input/output error")]
            return folder, len(engine)


def test_unreadable_file_keeps_its_features(interrupted: tuple[Path, int]) -> None:
    folder, items = interrupted
    model = CellModel()
    with simsearch.build(folder, index=folder.parent / "index", model=model) as engine:
        assert (items, len(engine), model.computed) == (2, 2, 0)


def test_failure_is_forgotten_once_readable(interrupted: tuple[Path, int]) -> None:
    folder, _ = interrupted
    with simsearch.build(folder, index=folder.parent / "index", model=CellModel()) as engine:
        assert engine.failures() == []


# -- the same picture, however the camera was held


def features(model: base.Model, image: Image.Image) -> NDArray[np.float32]:
    """Returns the features (8, D) of a picture in all eight orientations."""
    pixels = [
        model.recipe.pixels(decode.decode_image(turned(image, orientation), model.recipe.resize).image)
        for orientation in range(1, 9)
    ]
    return model.features(np.stack(pixels))


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (640, 400)])
def test_orientation_keeps_features(size: tuple[int, int]) -> None:
    assert similar(features(CellModel(), picture(3, size))) >= 0.99


def test_ignored_orientation_changes_features() -> None:
    model = CellModel()
    upside_down: Callable[[Image.Image], Image.Image] = lambda image: image.transpose(Turn.ROTATE_180)  # noqa: E731
    both = np.stack([model.recipe.pixels(picture(3)), model.recipe.pixels(upside_down(picture(3)))])
    assert similar(model.features(both)) < 0.95


@pytest.mark.parametrize("name", registry.BUILTIN)
def test_orientation_keeps_shipped_features(name: str) -> None:
    model = load.load_model(name, "cpu", images=8)
    assert similar(features(model, generate.draw("cat", 0))) >= 0.99
