"""One image on its way to the network: read, hashed, and decoded into the pixels that the recipe asks for."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from simsearch import images
from simsearch.errors import ImageError
from simsearch.images import LARGE_BYTES
from simsearch.machine import Budget, trim

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.models.jpegs import JpegDecoder, Taken
    from simsearch.recipe import Recipe
    from simsearch.sources import Source

TRIMMED_BYTES = 32 << 20
"""After images that took more, freed memory is given back to the system."""


@dataclass(frozen=True)
class Extracted:
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
    file: Taken | None = None

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


def load(
    read: Callable[[], bytes | IO[bytes]],
    recipe: Recipe,
    known: Container[bytes] = (),
    budget: Budget | None = None,
    decoder: JpegDecoder | None = None,
) -> Extracted:
    """Reads, hashes and decodes one image; a failure is a result, not an exception.

    decoder: what it takes is left to it, undecoded.
    """
    digest, size = b"", 0
    try:
        data = read()
        with contextlib.nullcontext() if isinstance(data, bytes) else data:
            digest, size = _hashed(data)
            if digest in known:
                return Extracted(digest, size)
            if decoder is not None and isinstance(data, bytes) and (taken := decoder.takes(data)) is not None:
                return Extracted(digest, size, *taken.header.upright, file=taken)
            needed = images.footprint(data, recipe.resize) if budget is not None else 0
            with budget.hold(needed) if budget is not None else contextlib.nullcontext():
                picture = images.decode(data, recipe.resize)
                pixels = recipe.pixels(picture.image)
                width, height = picture.width, picture.height
                del picture
                if needed > TRIMMED_BYTES:
                    trim()
    except ImageError as error:
        return Extracted(digest, size, problem=str(error))
    except OSError as error:  # of a stream: bytes were read before
        return Extracted(digest, size, problem=error.strerror or str(error))
    except MemoryError:
        return Extracted(digest, size, problem="too large for the memory at hand")
    return Extracted(digest, size, width, height, pixels=pixels)


def decoded(
    loaded: Sequence[Extracted], decoder: JpegDecoder, recipe: Recipe, budget: Budget | None = None
) -> list[Extracted]:
    """With the pixels of all files that were left to the decoder; what it cannot decode after all is loaded here."""
    files = [result.file for result in loaded if result.file is not None]
    found = iter(decoder.pixels(files) if files else ())

    def resolved(result: Extracted, file: Taken) -> Extracted:
        if (pixels := next(found)) is not None:
            return replace(result, pixels=pixels, file=None)
        return load(lambda: file.data, recipe, budget=budget)

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
