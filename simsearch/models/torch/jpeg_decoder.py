"""JPEGs from bytes to a network's input on a GPU: decoded by nvJPEG, then turned upright, scaled and cropped there.

Through TorchCodec, where it is installed, or torchvision, whose decoder TorchCodec succeeds. Which files are decoded
here depends on the file alone: those that every decoder reads alike. What the GPU refuses is decoded on the CPU.

Letters: H, W height and width, S side of the network's input.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing

    Decode = Callable[[list[torch.Tensor]], list[torch.Tensor]]
    Stream = Callable[[], contextlib.AbstractContextManager[object]]

MODES = ("bilinear", "bicubic")
"""The interpolations that torch does as Pillow does, widening the filter where it scales down."""

MOST_BYTES = 32 << 20
"""Larger files are read as streams, on the CPU."""

MOST_PIXELS = 1 << 26
"""Larger pictures are decoded on the CPU: on the GPU they would take three bytes a pixel and twelve while scaled."""

GROUP_PIXELS = 1 << 27
"""Pictures decoded at once."""

WIDEST = 23
"""Times that a picture is scaled down in one step, and not yet twice: bicubic filters of more than 47 do not fit."""

TOLERANCE = 4.0
"""Grey levels by which a decoder's answer may differ from Pillow's, in the mean over a test picture."""

_ORIENTATION = 0x0112  # EXIF tag


class Header(NamedTuple):
    """What is known of a JPEG before it is decoded: its size as stored and its EXIF orientation, 1 to 8."""

    width: int
    height: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as seen."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


class GpuJpeg(NamedTuple):
    """A file that the device is to decode, and what its header says."""

    data: bytes
    header: Header


def header(data: bytes) -> Header | None:
    """The header of a JPEG that a GPU decodes as Pillow does; None for everything else.

    That is: whole to its last bytes, of 8 bits, grey or in YCbCr (not RGB, CMYK, or with a second picture in it).
    """
    if len(data) > MOST_BYTES or not data.startswith(b"\xff\xd8\xff") or b"\xff\xd9" not in data[-16:]:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            layers = getattr(image, "layer", ())
            colours = [name for name, *_ in layers]
            plain = image.mode == "L" or (image.mode == "RGB" and colours in ([0, 1, 2], [1, 2, 3]))
            if image.format != "JPEG" or not plain or image.info.get("adobe_transform", 1) == 0:
                return None
            orientation = 1
            with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
                orientation = int(image.getexif().get(_ORIENTATION, 1))
            return Header(image.width, image.height, orientation if 1 <= orientation <= 8 else 1)
    except Exception:  # hostile bytes make Pillow raise nearly anything; the CPU's path names the reason
        return None


def scaled_centre(picture: torch.Tensor, recipe: Preprocessing, orientation: int = 1) -> torch.Tensor:
    """(3, H, W) uint8 as stored -> (S, S, 3) uint8 as `preprocessing.pixels` makes of the upright picture, within
    rounding.

    Beyond the widest filters that a GPU's blocks have memory for, squares of pixels are averaged first.
    """
    import torch.nn.functional as F

    x = _turned(picture, orientation)[None].float()  # (1, 3, H, W)
    factor = min(x.shape[2:]) // (WIDEST * recipe.resize)
    if factor > 1:
        top, left = (side % factor // 2 for side in x.shape[2:])
        x = F.avg_pool2d(x[:, :, top:, left:], factor)
    height, width = x.shape[2:]
    scale = recipe.resize / min(height, width)
    rows, columns = (max(recipe.resize, round(side * scale)) for side in (height, width))
    if (rows, columns) != (height, width):
        x = F.interpolate(x, (rows, columns), mode=recipe.interpolation, antialias=True, align_corners=False)
    top, left = (rows - recipe.crop) // 2, (columns - recipe.crop) // 2
    x = x[0, :, top : top + recipe.crop, left : left + recipe.crop]
    return x.round().clamp(0, 255).byte().permute(1, 2, 0)


def _turned(picture: torch.Tensor, orientation: int) -> torch.Tensor:
    """(3, H, W) as stored, upright: EXIF's orientations 2 to 8 are mirrored, turned, or both."""
    if orientation >= 5:
        picture = picture.transpose(1, 2)
    across, down = orientation in {2, 3, 6, 7}, orientation in {3, 4, 7, 8}
    return picture.flip([axis for axis, turn in ((2, across), (1, down)) if turn]) if across or down else picture


class JpegDecoder:
    """Decodes on one device by `decode`: 1-d uint8 tensors of files -> (3, H, W) uint8 there. Safe for threads.

    stream: the context in which a thread computes there. library: whose decoder it is.
    """

    def __init__(
        self, recipe: Preprocessing, decode: Decode, stream: Stream = contextlib.nullcontext, library: str = ""
    ) -> None:
        self.recipe, self.library, self._decode, self._stream = recipe, library, decode, stream

    @classmethod
    def on(cls, recipe: Preprocessing, device: torch.device, stream: Stream) -> JpegDecoder | None:
        """The decoder of a GPU; None on the CPU, and where no library decodes a test picture there rightly."""
        if device.type != "cuda" or not suits(recipe):
            return None
        for library, find in (("TorchCodec", _torchcodec), ("torchvision", _torchvision)):
            with contextlib.suppress(Exception), stream():  # a library that is absent, or of another CUDA
                decode = find(device)
                if _right(decode):
                    return cls(recipe, decode, stream, library)
        return None

    def takes(self, data: bytes) -> GpuJpeg | None:
        """The file if it is to be decoded here."""
        found = header(data)
        if found is None or found.width * found.height > MOST_PIXELS:
            return None
        shorter, longer = sorted((found.width, found.height))
        return (
            GpuJpeg(data, found) if shorter and longer <= 64 * shorter else None
        )  # else `preprocessing.pixels` cuts first

    def pixels(self, files: Sequence[GpuJpeg]) -> list[NDArray[np.uint8] | None]:
        """(S, S, 3) uint8 of each file; None for those that the device cannot decode after all."""
        import torch

        with torch.inference_mode(), self._stream():
            found: list[torch.Tensor | None] = []
            for group in _groups(files):
                found += self._group(group)
            return [None if x is None else x.cpu().numpy() for x in found]

    def _group(self, group: list[GpuJpeg]) -> list[torch.Tensor | None]:
        """Half by half where it fails: one damaged file spoils the group, and less at once takes less memory."""
        with contextlib.suppress(Exception):  # hostile bytes make libraries raise nearly anything
            return self._at_once(group)
        if len(group) == 1:
            return [None]
        middle = len(group) // 2
        return self._group(group[:middle]) + self._group(group[middle:])

    def _at_once(self, group: list[GpuJpeg]) -> list[torch.Tensor | None]:
        pictures = self._decode([_tensor(_neutral(taken)) for taken in group])
        return [self._fitted(picture, taken.header) for picture, taken in zip(pictures, group, strict=True)]

    def _fitted(self, picture: torch.Tensor, found: Header) -> torch.Tensor | None:
        if picture.shape != (3, found.height, found.width):
            return None
        return scaled_centre(picture, self.recipe, found.orientation)


def suits(recipe: Preprocessing) -> bool:
    """Whether `scaled_centre` can do what the recipe says."""
    return recipe.interpolation in MODES and recipe.crop <= recipe.resize


def _groups(files: Sequence[GpuJpeg]) -> Iterator[list[GpuJpeg]]:
    """The files in order, as many together as `GROUP_PIXELS` allow."""
    group: list[GpuJpeg] = []
    pixels = 0
    for taken in files:
        size = taken.header.width * taken.header.height
        if group and pixels + size > GROUP_PIXELS:
            yield group
            group, pixels = [], 0
        group.append(taken)
        pixels += size
    if group:
        yield group


def _tensor(data: bytes) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _neutral(taken: GpuJpeg) -> bytes:
    """Without an orientation for the library to follow: some do, some don't."""
    data = taken.data
    return data if taken.header.orientation == 1 else data.replace(b"Exif\0\0", b"----\0\0")


def _torchcodec(device: torch.device) -> Decode:
    from torchcodec.decoders import decode_jpeg

    return _in_turn(functools.partial(decode_jpeg, mode="RGB", device=device), device)


def _torchvision(device: torch.device) -> Decode:
    from torchvision.io import ImageReadMode, decode_jpeg

    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")  # for TorchCodec's sake
    return _in_turn(functools.partial(decode_jpeg, mode=ImageReadMode.RGB, device=device), device)


def _in_turn(decode: Decode, device: torch.device) -> Decode:
    """After all earlier work of the stream: the hardware's decoder may write into memory that is still being read."""
    import torch

    def waiting(files: list[torch.Tensor]) -> list[torch.Tensor]:
        torch.cuda.current_stream(device).synchronize()
        return decode(files)

    return waiting


def _right(decode: Any) -> bool:
    """Whether a decoder gives what Pillow does for two pictures, in colour with coarse chroma and in grey."""
    y, x = np.mgrid[0:96, 0:144]
    waves = [127 + 120 * np.sin(x / a + y / b) for a, b in ((17, 29), (31, -19), (-23, 41))]
    image = Image.fromarray(np.stack(waves, 2).astype(np.uint8))
    for picture in (image, image.convert("L")):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        expected = np.asarray(Image.open(file).convert("RGB"), np.float64)  # (H, W, 3)
        found = decode([_tensor(file.getvalue())] * 3)
        for one in found:
            if tuple(one.shape) != (3, 96, 144):
                return False
            if np.abs(one.cpu().numpy().transpose(1, 2, 0) - expected).mean() > TOLERANCE:
                return False
    return True
