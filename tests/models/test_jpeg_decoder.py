"""JPEG decoding on a GPU, tested with stand-ins on the CPU."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simsearch.images import decode
from simsearch.images.preprocessing import Preprocessing
from simsearch.models.torch import jpeg_decoder
from simsearch.models.torch.jpeg_decoder import JpegDecoder, header, scaled_centre
from tests.helpers.jpegs import CPU, jpeg, pillow, smooth
from tests.helpers.profiles import LINEAR_GREY, SRGB, WIDE

if TYPE_CHECKING:
    from numpy.typing import NDArray


def decoded(decoder: JpegDecoder, files: Sequence[bytes]) -> list[NDArray[np.uint8] | None]:
    taken = [decoder.accept(data) for data in files]
    assert None not in taken
    return decoder.pixels(taken)  # type: ignore[arg-type]


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
    assert header(jpeg(smooth(), icc_profile=SRGB)) == (400, 300, 1)
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    whole = jpeg(smooth())
    marked = whole[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + whole[2:]
    assert header(marked) == (400, 300, 1)


def test_others_are_left_to_the_cpu() -> None:
    whole, png, mpo = jpeg(smooth()), io.BytesIO(), io.BytesIO()
    smooth().save(png, "PNG")
    smooth().save(mpo, "MPO", save_all=True, append_images=[smooth(1)])
    for data in (
        b"",
        b"\xff\xd8\xff",
        png.getvalue(),
        mpo.getvalue(),
        whole[:-40],
        whole[:200] + b"\xff\xd9",
        jpeg(smooth(mode="CMYK")),
        jpeg(smooth(), keep_rgb=True),
        whole + bytes(20),
        whole[:-2],
        jpeg(smooth(), icc_profile=WIDE),
        jpeg(smooth(mode="L"), icc_profile=LINEAR_GREY),
    ):
        assert header(data) is None
    decoder = JpegDecoder(Preprocessing(32, 28), pillow)
    assert decoder.accept(jpeg(smooth(size=(650, 10)))) is None  # a panorama
    taken = decoder.accept(jpeg(smooth(size=(640, 10))))
    assert taken is not None
    assert taken.header == (640, 10, 1)


def test_large_ones_are_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(smooth())
    decoder = JpegDecoder(Preprocessing(32, 28), pillow)
    monkeypatch.setattr(jpeg_decoder, "MAX_PIXELS", 400 * 300)
    assert decoder.accept(data) is not None
    monkeypatch.setattr(jpeg_decoder, "MAX_PIXELS", 400 * 300 - 1)
    assert decoder.accept(data) is None
    monkeypatch.setattr(jpeg_decoder, "MAX_BYTES", len(data))
    assert header(data) is not None
    monkeypatch.setattr(jpeg_decoder, "MAX_BYTES", len(data) - 1)
    assert header(data) is None


# -- scaling and cropping


@pytest.mark.parametrize("interpolation", jpeg_decoder.MODES)
@pytest.mark.parametrize("size", [(400, 300), (301, 457), (64, 64), (50, 37), (1000, 64), (2001, 1333)])
def test_pixels_are_those_of_the_recipe(size: tuple[int, int], interpolation: str) -> None:
    recipe = Preprocessing(64, 56, interpolation=interpolation)
    data = jpeg(smooth(3, size))
    picture = pillow([torch.from_numpy(np.frombuffer(data, np.uint8).copy())])[0]
    found = scaled_centre(picture, recipe).numpy().astype(int)
    expected = recipe.pixels(decode.decode_image(data).image).astype(int)
    assert found.shape == (56, 56, 3)
    assert np.abs(found - expected).mean() < 1
    assert np.abs(found - expected).max() <= 6


def test_a_picture_of_many_times_the_size_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.from_numpy(np.array(smooth(3, (1200, 900)))).permute(2, 0, 1)
    expected = scaled_centre(picture, Preprocessing(16, 14)).int()
    monkeypatch.setattr(jpeg_decoder, "MAX_REDUCTION", 8)  # so that squares of 7 pixels are averaged
    assert (scaled_centre(picture, Preprocessing(16, 14)).int() - expected).abs().max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    recipe, data = Preprocessing(48, 41), jpeg(smooth(4, (131, 97)), orientation)
    found = decoded(JpegDecoder(recipe, pillow), [data])[0]
    assert found is not None
    expected = recipe.pixels(decode.decode_image(data).image).astype(int)
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_the_library_is_told_of_no_orientation() -> None:
    seen: list[Any] = []

    def decode(files: list[Tensor]) -> list[Tensor]:
        seen.extend(Image.open(io.BytesIO(file.numpy().tobytes())).getexif().get(0x0112) for file in files)
        return pillow(files)

    decoded(JpegDecoder(Preprocessing(48, 40), decode), [jpeg(smooth(), 6), jpeg(smooth(), 1), jpeg(smooth())])
    assert seen == [None, 1, None]


def test_recipes_that_torch_cannot_follow() -> None:
    assert jpeg_decoder.supports(Preprocessing())
    assert not jpeg_decoder.supports(Preprocessing(interpolation="lanczos"))
    assert not jpeg_decoder.supports(Preprocessing(28, 32))


# -- the decoder


def test_a_damaged_file_spoils_no_other() -> None:
    whole = [jpeg(smooth(number)) for number in range(5)]
    broken = whole[1][:300] + bytes(2000) + whole[1][-1000:]
    assert header(broken) is not None

    def decode(files: list[Tensor]) -> list[Tensor]:
        if any(file.numpy().tobytes() == broken for file in files):
            raise RuntimeError("nvjpegDecode failed: 4")
        return pillow(files)

    decoder = JpegDecoder(Preprocessing(48, 40), decode)
    found = decoded(decoder, [*whole[:2], broken, *whole[2:]])
    assert [x is None for x in found] == [False, False, True, False, False, False]
    alone = [decoded(decoder, [file])[0] for file in whole]
    for a, b in zip([x for x in found if x is not None], alone, strict=True):
        assert b is not None
        assert a.tobytes() == b.tobytes()


def test_picture_of_unannounced_size_is_not_used() -> None:
    decoder = JpegDecoder(
        Preprocessing(48, 40), lambda files: [torch.zeros(3, 400, 300, dtype=torch.uint8) for _ in files]
    )
    assert decoded(decoder, [jpeg(smooth())]) == [None]


def test_groups_hold_so_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_decoder, "GROUP_PIXELS", 250_000)
    groups = []

    def decode(files: list[Tensor]) -> list[Tensor]:
        groups.append(len(files))
        return pillow(files)

    files = [jpeg(smooth(n, size)) for n, size in enumerate([(400, 300)] * 5 + [(900, 600)] + [(10, 10)])]
    found = decoded(JpegDecoder(Preprocessing(8, 8), decode), files)
    assert groups == [2, 2, 1, 1, 1]
    assert all(x is not None for x in found)
    assert JpegDecoder(Preprocessing(8, 8), decode).pixels([]) == []


def test_a_library_is_tried_before_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert JpegDecoder.on(Preprocessing(), CPU, contextlib.nullcontext) is None
    gpu = torch.device("cuda")

    def absent(device: torch.device) -> Any:
        raise ImportError("No module named 'torchcodec'")

    def on(*finders: Any) -> JpegDecoder | None:
        for name, finder in zip(("_torchcodec", "_torchvision"), finders, strict=True):
            monkeypatch.setattr(jpeg_decoder, name, finder)
        return JpegDecoder.on(Preprocessing(), gpu, contextlib.nullcontext)

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
    assert JpegDecoder.on(Preprocessing(interpolation="lanczos"), gpu, contextlib.nullcontext) is None


def test_torchvision_decodes_as_pillow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same interface, but decoding on the CPU."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: _Stream())
    decode = jpeg_decoder._torchvision(CPU)
    with warnings.catch_warnings():  # those of tests are errors
        warnings.simplefilter("ignore", DeprecationWarning)
        assert jpeg_decoder._is_correct(decode)


class _Stream:
    def synchronize(self) -> None: ...


def test_torchcodec_decodes_as_pillow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import torchcodec  # noqa: F401
    except (ImportError, OSError) as error:  # of another torch, say
        pytest.skip(f"needs the extra [gpu]: {error}")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: _Stream())
    assert jpeg_decoder._is_correct(jpeg_decoder._torchcodec(CPU))
