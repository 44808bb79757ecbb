"""Every error that simsearch raises on purpose.

SimsearchError                  the root: `except simsearch.errors.SimsearchError` catches all of them
├── UsageError                  a wrong argument: a bad filter, an unknown model, a missing source
│   └── MissingExtraError       an optional package is needed; the hint is the line that installs it
├── ImageError                  an image that cannot be read or decoded
│   └── ImageTooLargeError      it has more pixels than are allowed
├── WeightsError                a weights file that is not one, or does not fit
│   └── ModelMismatchError      the model at hand is not the one that made the index
├── IndexNotFoundError          there is no index at that path
├── IndexDamagedError           the index's files contradict each other
├── IndexLockedError            another process is writing to the index
├── IndexReplacedError          another index has taken the place of the one that is open
├── ItemNotFoundError           no item has that id
├── TrainingInterruptedError    a training was asked to stop, and left a checkpoint
├── UnavailableError            a server, or a worker of a cluster, does not answer
└── DeviceError                 the device asked for is not there

Each carries `hint`, one line on what to do about it, or None.
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
    """The root of the tree above. `str(error)` is one sentence that names the value at fault."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(SimsearchError):
    """An argument that cannot be used."""


class MissingExtraError(UsageError):
    """An optional package is not installed."""

    def __init__(self, what: str, extra: str, *, packages: str = "") -> None:
        """packages: what to install where the extra alone does not do it, as arguments of pip."""
        needed = f"the [{extra}] extra" if not packages else packages.removeprefix("--no-deps ")
        line = f"pip install {packages}" if packages else f"pip install 'simsearch[{extra}]'"
        super().__init__(f"{what} needs {needed}", hint=line)


class ImageError(SimsearchError):
    """An image that cannot be read or decoded."""


class ImageTooLargeError(ImageError):
    """An image of more pixels than are allowed."""


class WeightsError(SimsearchError):
    """A weights file that cannot be used."""


class ModelMismatchError(WeightsError):
    """The index was made by other weights than those at hand."""


class IndexNotFoundError(SimsearchError):
    """There is no index at the path."""


class IndexDamagedError(SimsearchError):
    """The files of the index contradict each other."""


class IndexLockedError(SimsearchError):
    """Another process holds the index's writer lock."""


class IndexReplacedError(SimsearchError):
    """The index that is open has been removed from its path, and perhaps replaced by another one."""


class ItemNotFoundError(SimsearchError):
    """The index has no item of that id."""


class DeviceError(SimsearchError):
    """A device that is not there or cannot be used."""


class TrainingInterruptedError(SimsearchError):
    """A training was asked to stop; its checkpoint continues it."""


class UnavailableError(SimsearchError):
    """A server, or the workers of a cluster, do not answer."""
