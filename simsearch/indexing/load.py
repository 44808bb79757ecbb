"""One image on its way to the network: read, hashed, and decoded into the pixels that the recipe asks for."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from simsearch.common.machine import MemoryBudget, release_free_memory
from simsearch.errors import ImageError
from simsearch.images import decode
from simsearch.images.decode import LARGE_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing
    from simsearch.images.sources.base import Source
    from simsearch.models.torch.jpeg_decoder import GpuJpeg, JpegDecoder

TRIMMED_BYTES = 32 << 20
"""After images that took more, freed memory is given back to the system."""


@dataclass(frozen=True)
class LoadedImage:
    """What became of one image.

    digest: SHA-256 of the file (empty if it could not be read). features: (D,) float16, None where the digest was
    known already or the image failed. problem: why it failed. pixels: (S, S, 3) uint8, or file: a JPEG that the model's
    device decodes, until the batch is computed.
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
        """Bytes of a file that waits for the device."""
        return 0 if self.file is None else len(self.file.data)

    @property
    def pending(self) -> bool:
        """Whether features are yet to be computed."""
        return self.pixels is not None or self.file is not None


def reading(source: Source, path: str, size: int) -> Callable[[], bytes | IO[bytes]]:
    """How to read an image of a source: a large one is not held in memory as a whole."""
    return functools.partial(source.read if size <= LARGE_BYTES else source.stream, path)


def load_image(
    read: Callable[[], bytes | IO[bytes]],
    recipe: Preprocessing,
    known: Container[bytes] = (),
    budget: MemoryBudget | None = None,
    decoder: JpegDecoder | None = None,
) -> LoadedImage:
    """Reads, hashes and decodes one image; a failure is a result, not an exception.

    decoder: what it takes is left to it, undecoded.
    """
    digest, size = b"", 0
    try:
        data = read()
        with contextlib.nullcontext() if isinstance(data, bytes) else data:
            digest, size = _hashed(data)
            if digest in known:
                return LoadedImage(digest, size)
            if decoder is not None and isinstance(data, bytes) and (taken := decoder.takes(data)) is not None:
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
    except OSError as error:  # of a stream: bytes were read before
        return LoadedImage(digest, size, problem=error.strerror or str(error))
    except MemoryError:
        return LoadedImage(digest, size, problem="too large for the memory at hand")
    return LoadedImage(digest, size, width, height, pixels=pixels)


def decode_on_gpu(
    loaded: Sequence[LoadedImage], decoder: JpegDecoder, recipe: Preprocessing, budget: MemoryBudget | None = None
) -> list[LoadedImage]:
    """With the pixels of all files that were left to the decoder; what it cannot decode after all is loaded here."""
    files = [result.file for result in loaded if result.file is not None]
    found = iter(decoder.pixels(files) if files else ())

    def resolved(result: LoadedImage, file: GpuJpeg) -> LoadedImage:
        if (pixels := next(found)) is not None:
            return replace(result, pixels=pixels, file=None)
        return load_image(lambda: file.data, recipe, budget=budget)

    return [result if result.file is None else resolved(result, result.file) for result in loaded]


def _hashed(data: bytes | IO[bytes]) -> tuple[bytes, int]:
    """SHA-256 and size in bytes; a stream is left at its start."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).digest(), len(data)
    digest, size = hashlib.sha256(), 0
    while block := data.read(1 << 20):
        digest.update(block)
        size += len(block)
    data.seek(0)
    return digest.digest(), size
