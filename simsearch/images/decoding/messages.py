"""Reasons why a file cannot be read, in plain words; the only place where Pillow's exceptions become ImageError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from simsearch.errors import ImageError, ImageTooLargeError, MissingExtraError
from simsearch.images.decoding import formats

_TRUNCATED = (
    "truncated",
    "incomplete",
    "not enough image data",
    "Premature",
    "Reached EOF",
    "too small",
    "unexpected end",
)
_DAMAGED = "the file is damaged: its image data cannot be decoded"


@contextlib.contextmanager
def readable(head: bytes, largest: int) -> Iterator[None]:
    """Turns exceptions of Pillow and its decoders that are raised in the `with` block into ImageError.

    head: the file's first bytes. largest: the most pixels that are permitted, for the message.
    """
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(_unidentified(head)) from error
    except Image.DecompressionBombError as error:
        message = f"too large: over {largest:,} pixels, the limit against decompression bombs"
        raise ImageTooLargeError(message) from error
    except MemoryError as error:
        raise ImageError("too large for the memory at hand") from error
    except Exception as error:  # hostile bytes make Pillow's decoders raise nearly anything
        raise ImageError(_reason(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # raised by decoders written in Rust
            raise
        raise ImageError(_DAMAGED) from error


def missing_extra(what: str, extra: str) -> ImageError:
    """Returns the error for a file that needs an extra which is not installed.

    what: the kind of file, for the message. extra: the name of the extra, such as "raw".
    """
    missing = MissingExtraError(what, extra)
    return ImageError(f"{missing}: {missing.hint}", hint=missing.hint)


def names_extra(reason: str) -> bool:
    """Returns True if the reason of a failure is a message of `missing_extra`."""
    return " needs the [" in reason and "] extra: " in reason


def _unidentified(head: bytes) -> str:
    """Returns the message for a file that no decoder accepts, with the format that its first bytes show."""
    if (kind := formats.left_out("", head)) is not None:
        return f"a{'n' * (kind[0] in 'AEOS')} {kind}, which is not read"
    if (name := formats.name_of(head)) is not None:
        return f"the file is damaged: it begins like {name}, but its header cannot be read"
    return "not an image, or of an unknown format"


def _reason(error: Exception) -> str:
    text = str(error)
    if any(word in text for word in _TRUNCATED):
        return "the file is truncated: a part of its image data is missing"
    if isinstance(error, NotImplementedError) or "nsupported" in text or "not support" in text:
        return "a variant of its format that cannot be read"
    return _DAMAGED
