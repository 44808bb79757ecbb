"""Every error that simsearch raises on purpose.

SimsearchError                  the root: `except simsearch.errors.SimsearchError` catches all of them
├── UsageError                  a wrong argument: a bad filter, an unknown model, a missing source
│   └── MissingExtraError       an optional package is needed; the hint is the line that installs it
├── ImageError                  an image that cannot be read or decoded
│   └── ImageTooLargeError      it has more pixels than are allowed
├── WeightsError                a file that holds no weights, or weights that do not fit
│   └── ModelMismatchError      the index was made with a different model
├── IndexNotFoundError          there is no index at this path
├── IndexDamagedError           the index's files contradict each other
├── IndexLockedError            another process is writing to the index
├── IndexReplacedError          the open index was removed or replaced on disk
├── ItemNotFoundError           no item has this id
├── TrainingInterruptedError    training was interrupted after writing a checkpoint
├── UnavailableError            a server or a cluster worker does not respond
└── DeviceError                 the requested device is not available

Each has a `hint`: one line on how to fix it, or None.
"""

from __future__ import annotations

__all__ = [
    "DeviceError",
    "ImageError",
    "ImageTooLargeError",
    "IndexDamagedError",
    "IndexLockedError",
    "IndexNotFoundError",
    "IndexReplacedError",
    "ItemNotFoundError",
    "MissingExtraError",
    "ModelMismatchError",
    "SimsearchError",
    "TrainingInterruptedError",
    "UnavailableError",
    "UsageError",
    "WeightsError",
]


class SimsearchError(Exception):
    """The base class of all errors above. `str(error)` is one sentence that names the invalid value."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(SimsearchError):
    """An argument that cannot be used."""


class MissingExtraError(UsageError):
    """An optional package is not installed."""

    def __init__(self, what: str, extra: str, *, packages: str = "") -> None:
        """packages: arguments for `pip install`, if installing the extra is not enough."""
        needed = f"the [{extra}] extra" if not packages else packages.removeprefix("--no-deps ")
        line = f"pip install {packages}" if packages else f"pip install 'simsearch[{extra}]'"
        super().__init__(f"{what} needs {needed}", hint=line)


class ImageError(SimsearchError):
    """An image that cannot be read or decoded."""


class ImageTooLargeError(ImageError):
    """An image with more pixels than the limit."""


class WeightsError(SimsearchError):
    """A weights file that cannot be used."""


class ModelMismatchError(WeightsError):
    """The index was made with different weights."""


class IndexNotFoundError(SimsearchError):
    """There is no index at the path."""


class IndexDamagedError(SimsearchError):
    """The files of the index contradict each other."""


class IndexLockedError(SimsearchError):
    """Another process holds the index's writer lock."""


class IndexReplacedError(SimsearchError):
    """The open index has been removed from its path or replaced by another one."""


class ItemNotFoundError(SimsearchError):
    """The index has no item with this id."""


class DeviceError(SimsearchError):
    """A device that does not exist or cannot be used."""


class TrainingInterruptedError(SimsearchError):
    """Training was interrupted; it can be resumed from its checkpoint."""


class UnavailableError(SimsearchError):
    """A server or the workers of a cluster do not respond."""
