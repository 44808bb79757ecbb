"""Every error that simsearch raises on purpose.

SimsearchError                  the root: `except simsearch.errors.SimsearchError` catches all of them
├── UsageError                  a wrong argument: a bad filter, an unknown model, a missing source (a ValueError)
│   └── MissingExtraError       an optional package is needed; the hint is the line that installs it (an ImportError)
├── ImageError                  an image that cannot be read or decoded (a ValueError)
│   └── ImageTooLargeError      it has more pixels than are allowed
├── WeightsError                a file that holds no weights, or weights that do not fit (a ValueError)
│   └── ModelMismatchError      the index was made with a different model
├── IndexNotFoundError          there is no index at this path (a FileNotFoundError)
├── IndexDamagedError           the index's files contradict each other
├── IndexLockedError            another process is writing to the index
├── IndexReplacedError          the open index was removed or replaced on disk
├── ItemNotFoundError           no item has this id (a LookupError)
├── TrainingInterruptedError    training was interrupted after writing a checkpoint
├── UnavailableError            a server or a cluster worker does not respond (a ConnectionError)
└── DeviceError                 the requested device is not available

Each error has a `hint`: one line on how to fix the problem, or None. The built-in exception in brackets is a base class
too, so that `except ValueError` catches a UsageError.
"""

from __future__ import annotations

from simsearch.installation import install_line, install_packages_line

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


HINT = "hint: "
"""The beginning of the note that shows the hint of an error in its traceback."""


class SimsearchError(Exception):
    """The base class of all errors of simsearch. `str(error)` is one sentence that names the invalid value."""

    def __init__(self, message: str, *, hint: str | None = None, shell_hint: str | None = None) -> None:
        """Takes the error's message, and hints on how to fix the problem.

        hint: the hint in Python. shell_hint: the hint on the command line; None if it is the same.
        """
        super().__init__(message)
        self.hint, self.shell_hint = hint, shell_hint or hint
        if hint and hint not in message:
            self.add_note(f"{HINT}{hint}")

    @property
    def hints(self) -> dict[str, str | None]:
        """The two hints as keyword arguments, for an error that is raised in place of this one."""
        return {"hint": self.hint, "shell_hint": self.shell_hint}


class UsageError(SimsearchError, ValueError):
    """An argument that cannot be used."""


class MissingExtraError(UsageError, ImportError):
    """An optional package is not installed."""

    def __init__(self, what: str, extra: str, *, packages: str = "") -> None:
        """Makes the message "WHAT needs the [EXTRA] extra", with the command that installs the extra as the hint.

        packages: arguments for `pip install`, if the extra does not contain the missing packages. The message and the
        hint then name these packages, and `extra` is not used.
        """
        needed = f"the [{extra}] extra" if not packages else packages.removeprefix("--no-deps ")
        line = install_packages_line(packages) if packages else install_line(extra)
        super().__init__(f"{what} needs {needed}", hint=line)


class ImageError(SimsearchError, ValueError):
    """An image that cannot be read or decoded."""


class ImageTooLargeError(ImageError):
    """An image with more pixels than the limit."""


class WeightsError(SimsearchError, ValueError):
    """A weights file that cannot be used."""


class ModelMismatchError(WeightsError):
    """The index was made with different weights."""


class IndexNotFoundError(SimsearchError, FileNotFoundError):
    """There is no index at the path."""


class IndexDamagedError(SimsearchError):
    """The files of the index contradict each other."""


class IndexLockedError(SimsearchError):
    """Another process holds the index's writer lock."""


class IndexReplacedError(SimsearchError):
    """The open index has been removed from its path or replaced by another one."""


class ItemNotFoundError(SimsearchError, LookupError):
    """The index has no item with this id."""


class DeviceError(SimsearchError):
    """A device that does not exist or cannot be used."""


class TrainingInterruptedError(SimsearchError):
    """Training was interrupted; it can be resumed from its checkpoint."""


class UnavailableError(SimsearchError, ConnectionError):
    """A server or the workers of a cluster do not respond."""
