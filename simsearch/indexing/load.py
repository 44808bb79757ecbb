"""Loads one image: reads and hashes the file, and decodes it into the pixels that the model takes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from simsearch.common.machine import MemoryBudget, release_free_memory
from simsearch.errors import ImageError, UnavailableError
from simsearch.images import decode
from simsearch.images.decode import LARGE_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing
    from simsearch.images.sources.base import Source
    from simsearch.models.torch.jpeg_decoder import GpuJpeg, JpegDecoder

TRIMMED_BYTES = 32 << 20
"""If decoding an image needed more memory than this, freed memory is returned to the system afterwards."""


@dataclass(frozen=True)
class LoadedImage:
    """The result of loading one image.

    digest: SHA-256 of the file; empty if the file could not be read.
    size: of the file, in bytes.
    width, height: of the image, in pixels.
    features: (D,) float16; None if they are not computed yet, the digest was known already, or the image failed.
    problem: the reason if the image could not be read or decoded, else None.
    pixels: (S, S, 3) uint8; None after the features are computed.
    file: a JPEG that the GPU is to decode; None after it is decoded.
    """

    digest: bytes = b""
    size: int = 0
    width: int = 0
    height: int = 0
    features: NDArray[np.float16] | None = None
    problem: str | None = None
    pixels: NDArray[np.uint8] | None = None
    file: GpuJpeg | None = None

    @property
    def waiting(self) -> int:
        """The size in bytes of the file that waits for the GPU decoder; 0 if no file waits."""
        return 0 if self.file is None else len(self.file.data)

    @property
    def pending(self) -> bool:
        """True if the features of this image are still to be computed."""
        return self.pixels is not None or self.file is not None


def reading(source: Source, path: str, size: int) -> Callable[[], bytes | IO[bytes]]:
    """Returns a function that reads an image of a source: as bytes, or as a stream if the file is large.

    path: of the image in the source. size: of the file, in bytes.
    """
    return functools.partial(source.read if size <= LARGE_BYTES else source.stream, path)


def load_image(
    read: Callable[[], bytes | IO[bytes]],
    recipe: Preprocessing,
    known: Container[bytes] = (),
    budget: MemoryBudget | None = None,
    decoder: JpegDecoder | None = None,
) -> LoadedImage:
    """Reads, hashes and decodes one image. If the image cannot be read or decoded, the result has the reason.

    read: a function that returns the file as bytes or as a stream.
    recipe: the preprocessing that makes the pixels.
    known: SHA-256 digests of images that need not be decoded.
    budget: memory shared by all images being decoded; None for no limit.
    decoder: a GPU decoder. Files that it accepts are not decoded here: their bytes are returned, for the GPU to decode.
    Raises UnavailableError if the image is on another machine that cannot be reached. This error is raised and not put
    into the result, because all other images on that machine would fail, too.
    """
    digest, size = b"", 0
    try:
        data = read()
        with contextlib.nullcontext() if isinstance(data, bytes) else data:
            digest, size = _hash(data)
            if digest in known:
                return LoadedImage(digest, size)
            if decoder is not None and isinstance(data, bytes) and (taken := decoder.accept(data)) is not None:
                return LoadedImage(digest, size, *taken.header.upright, file=taken)
            needed = decode.decode_memory(data, recipe.resize) if budget is not None else 0
            with budget.hold(needed) if budget is not None else contextlib.nullcontext():
                picture = decode.decode_image(data, recipe.resize)
                pixels = recipe.pixels(picture.image)
                width, height = picture.width, picture.height
                del picture
                if needed > TRIMMED_BYTES:
                    release_free_memory()
    except ImageError as error:
        return LoadedImage(digest, size, problem=str(error))
    except UnavailableError:  # a subclass of OSError, but all other images would fail as well
        raise
    except OSError as error:  # while reading a stream
        return LoadedImage(digest, size, problem=error.strerror or str(error))
    except MemoryError:
        return LoadedImage(digest, size, problem="too large for the memory at hand")
    return LoadedImage(digest, size, width, height, pixels=pixels)


def decode_on_gpu(
    loaded: Sequence[LoadedImage], decoder: JpegDecoder, recipe: Preprocessing, budget: MemoryBudget | None = None
) -> list[LoadedImage]:
    """Decodes all files that wait for the GPU, and returns all images in order.

    Files that the GPU cannot decode are decoded on the CPU.
    """
    files = [result.file for result in loaded if result.file is not None]
    decoded = iter(decoder.pixels(files) if files else ())

    def with_pixels(result: LoadedImage, file: GpuJpeg) -> LoadedImage:
        if (pixels := next(decoded)) is not None:
            return replace(result, pixels=pixels, file=None)
        return load_image(lambda: file.data, recipe, budget=budget)

    return [result if result.file is None else with_pixels(result, result.file) for result in loaded]


def _hash(data: bytes | IO[bytes]) -> tuple[bytes, int]:
    """Returns the SHA-256 digest and the size in bytes of a file; rewinds a stream to its start."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).digest(), len(data)
    digest, size = hashlib.sha256(), 0
    while block := data.read(1 << 20):
        digest.update(block)
        size += len(block)
    data.seek(0)
    return digest.digest(), size
