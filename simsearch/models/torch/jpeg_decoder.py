"""Decodes JPEGs on a GPU with nvJPEG; also turns them upright, scales and crops them there.

The decoder is TorchCodec's if it is installed, otherwise torchvision's, which is deprecated. Some files give different
images with different decoders. These files are always decoded on the CPU, whichever decoder is installed.

Shape letters: H, W height and width, S side of the network's input.
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

from simsearch.images.decoding.colour import changes_colours
from simsearch.images.decoding.orientation import orientation

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing

    Decode = Callable[[list[torch.Tensor]], list[torch.Tensor]]
    Stream = Callable[[], contextlib.AbstractContextManager[object]]

MODES = ("bilinear", "bicubic")
"""Interpolations for which torch and Pillow give the same result: both widen the filter when scaling down."""

MAX_BYTES = 32 << 20
"""Largest size in bytes of a file decoded on the GPU; larger files are read as streams, on the CPU."""

MAX_PIXELS = 1 << 26
"""Largest number of pixels of an image decoded on the GPU.

An image takes three bytes per pixel in the GPU's memory, and twelve while it is scaled.
"""

GROUP_PIXELS = 1 << 27
"""Largest total number of pixels of images that are decoded at once."""

MAX_REDUCTION = 23
"""An image that shrinks by less than twice this factor is scaled down in a single step (see `scaled_centre`).

Bicubic filters for a factor of 47 are too large for the shared memory of a GPU's blocks.
"""

TOLERANCE = 4.0
"""Largest accepted mean difference between a decoder and Pillow on a test image, in grey levels."""


class Header(NamedTuple):
    """The size of a JPEG as stored, in pixels, and its EXIF orientation, 1 to 8."""

    width: int
    height: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


class GpuJpeg(NamedTuple):
    """The bytes of a JPEG file to decode on the GPU, and its header."""

    data: bytes
    header: Header


def header(data: bytes) -> Header | None:
    """Reads the header of a JPEG; returns None if decoders might disagree about the file, or if it is too large.

    All decoders read a file in the same way if it is complete, has 8 bits per channel, stores grey levels or YCbCr, has
    the colours of sRGB, and contains only one image. For other files, such as those in RGB or CMYK, returns None.
    """
    if len(data) > MAX_BYTES or not data.startswith(b"\xff\xd8\xff") or b"\xff\xd9" not in data[-16:]:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            layers = getattr(image, "layer", ())
            colours = [name for name, *_ in layers]
            plain = image.mode == "L" or (image.mode == "RGB" and colours in ([0, 1, 2], [1, 2, 3]))
            if image.format != "JPEG" or not plain or image.info.get("adobe_transform", 1) == 0:
                return None
            if changes_colours(image.info.get("icc_profile"), image.mode):
                return None
            return Header(image.width, image.height, orientation(image))
    except Exception:  # Pillow may raise anything for hostile bytes; decoding on the CPU reports the reason
        return None


def scaled_centre(picture: torch.Tensor, recipe: Preprocessing, orientation: int = 1) -> torch.Tensor:
    """Scales and crops an image as `Preprocessing.pixels` does, up to rounding: (3, H, W) uint8 -> (S, S, 3) uint8.

    An image that shrinks by a factor of twice `MAX_REDUCTION` or more is reduced in two steps, since the filters for
    a single step would be too large for a GPU. The first step averages square blocks of pixels.
    picture: as stored, not yet upright. orientation: its EXIF orientation, 1 to 8.
    """
    import torch.nn.functional as F

    x = _turn_upright(picture, orientation)[None].float()  # (1, 3, H, W)
    factor = min(x.shape[2:]) // (MAX_REDUCTION * recipe.resize)
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


def _turn_upright(picture: torch.Tensor, orientation: int) -> torch.Tensor:
    """Returns a picture (3, H, W) upright; one with an EXIF orientation from 2 to 8 is mirrored, rotated, or both."""
    if orientation >= 5:
        picture = picture.transpose(1, 2)
    across, down = orientation in {2, 3, 6, 7}, orientation in {3, 4, 7, 8}
    return picture.flip([axis for axis, flipped in ((2, across), (1, down)) if flipped]) if across or down else picture


class JpegDecoder:
    """Decodes JPEGs on one device, and scales and crops them to the size of a network's input. Thread-safe.

    decode: a function from files (1-d uint8 tensors) to images, (3, H, W) uint8 on the device.
    stream: a function that returns a context manager. A thread uses the device only inside this context.
    library: the name of the library that decodes.
    """

    def __init__(
        self, recipe: Preprocessing, decode: Decode, stream: Stream = contextlib.nullcontext, library: str = ""
    ) -> None:
        self.recipe, self.library, self._decode, self._stream = recipe, library, decode, stream

    @classmethod
    def on(cls, recipe: Preprocessing, device: torch.device, stream: Stream) -> JpegDecoder | None:
        """Returns a decoder for a GPU.

        Returns None for the CPU, if the recipe is not supported, or if no library decodes the test images correctly.
        """
        if device.type != "cuda" or not supports(recipe):
            return None
        for library, find in (("TorchCodec", _torchcodec), ("torchvision", _torchvision)):
            with contextlib.suppress(Exception), stream():  # the library is missing, or made for another CUDA
                decode = find(device)
                if _is_correct(decode):
                    return cls(recipe, decode, stream, library)
        return None

    def accept(self, data: bytes) -> GpuJpeg | None:
        """Returns the file with its header if the GPU can decode it, otherwise None. data: the content of the file."""
        found = header(data)
        if found is None or found.width * found.height > MAX_PIXELS:
            return None
        shorter, longer = sorted((found.width, found.height))
        if not shorter or longer > 64 * shorter:  # the CPU crops such images before scaling
            return None
        return GpuJpeg(data, found)

    def pixels(self, files: Sequence[GpuJpeg]) -> list[NDArray[np.uint8] | None]:
        """Returns the network's input for each file, (S, S, 3) uint8, or None if the device cannot decode the file."""
        import torch

        with torch.inference_mode(), self._stream():
            found: list[torch.Tensor | None] = []
            for group in _groups(files):
                found += self._decode_group(group)
            return [None if x is None else x.cpu().numpy() for x in found]

    def _decode_group(self, group: list[GpuJpeg]) -> list[torch.Tensor | None]:
        """Decodes files at once, to (S, S, 3) uint8 on the device; None for a file that cannot be decoded.

        If the group cannot be decoded at once, each half is tried: one file may be damaged, or the memory too small.
        """
        with contextlib.suppress(Exception):  # libraries may raise anything for hostile bytes
            return self._decode_at_once(group)
        if len(group) == 1:
            return [None]
        middle = len(group) // 2
        return self._decode_group(group[:middle]) + self._decode_group(group[middle:])

    def _decode_at_once(self, group: list[GpuJpeg]) -> list[torch.Tensor | None]:
        pictures = self._decode([_tensor(_without_orientation(jpeg)) for jpeg in group])
        return [self._fit(picture, jpeg.header) for picture, jpeg in zip(pictures, group, strict=True)]

    def _fit(self, picture: torch.Tensor, found: Header) -> torch.Tensor | None:
        """Scales and crops a decoded image; returns None if its size is not that of `found`, the file's header."""
        if picture.shape != (3, found.height, found.width):
            return None
        return scaled_centre(picture, self.recipe, found.orientation)


def supports(recipe: Preprocessing) -> bool:
    """Returns true if `scaled_centre` supports the interpolation and the sizes of the recipe."""
    return recipe.interpolation in MODES and recipe.crop <= recipe.resize


def _groups(files: Sequence[GpuJpeg]) -> Iterator[list[GpuJpeg]]:
    """Yields the files in order, in groups whose images have up to `GROUP_PIXELS` pixels together."""
    group: list[GpuJpeg] = []
    pixels = 0
    for jpeg in files:
        size = jpeg.header.width * jpeg.header.height
        if group and pixels + size > GROUP_PIXELS:
            yield group
            group, pixels = [], 0
        group.append(jpeg)
        pixels += size
    if group:
        yield group


def _tensor(data: bytes) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _without_orientation(jpeg: GpuJpeg) -> bytes:
    """Returns the file without its EXIF orientation, since some libraries turn images upright and others do not."""
    data = jpeg.data
    return data if jpeg.header.orientation == 1 else data.replace(b"Exif\0\0", b"----\0\0")


def _torchcodec(device: torch.device) -> Decode:
    from torchcodec.decoders import decode_jpeg

    return _synchronized(functools.partial(decode_jpeg, mode="RGB", device=device), device)


def _torchvision(device: torch.device) -> Decode:
    from torchvision.io import ImageReadMode, decode_jpeg

    warnings.filterwarnings(
        "ignore", category=DeprecationWarning, module=r"torchvision\.io"
    )  # the warning recommends TorchCodec
    return _synchronized(functools.partial(decode_jpeg, mode=ImageReadMode.RGB, device=device), device)


def _synchronized(decode: Decode, device: torch.device) -> Decode:
    """Returns a function that waits for the device's current stream and then calls `decode`.

    Without waiting, the hardware decoder may write to memory that the stream still reads.
    """
    import torch

    def synchronized(files: list[torch.Tensor]) -> list[torch.Tensor]:
        torch.cuda.current_stream(device).synchronize()
        return decode(files)

    return synchronized


def _is_correct(decode: Any) -> bool:
    """Returns true if a decoder agrees with Pillow on two images: one in colour with subsampled chroma, one grey."""
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
