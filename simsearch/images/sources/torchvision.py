"""torchvision's data sets as sources, such as `torchvision/CIFAR10` and `torchvision/Imagenette:val`."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import os
import threading
from typing import TYPE_CHECKING, Any

from simsearch.common import cache, suggestions
from simsearch.errors import ImageError, UsageError
from simsearch.images.sources.base import (
    DATASET_PREFIX,
    Entry,
    Listing,
    Source,
    file_identity,
    file_stamp,
    first_line,
    read_file,
)
from simsearch.images.sources.exclude import Exclusion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image


class TorchvisionSource(Source):
    """A data set of torchvision. Its root is `torchvision/NAME` or `torchvision/NAME:SPLIT`.

    NAME is the data set's name in `torchvision.datasets`.

    Files are kept in `$SIMSEARCH_DATASETS`, or in the cache folder if this is not set. Missing files are downloaded. An
    image's path is its number in the data set. Images that are not files are encoded as PNG, without loss.
    """

    kind = "dataset"
    labelled = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.name, _, self.split = root.removeprefix(DATASET_PREFIX).partition(":")
        self._opened: Any = None
        self._lock = threading.Lock()

    def _dataset(self) -> Any:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Any:
        import torchvision

        known = torchvision.datasets.__all__
        if self.name not in known:
            near = suggestions.nearest(self.name, known)
            hint = f"did you mean {DATASET_PREFIX}{near}?" if near else "see torchvision.datasets for the names"
            raise UsageError(f"torchvision has no data set {self.name!r}", hint=hint)
        kind = getattr(torchvision.datasets, self.name)
        accepted = _accepted(kind)
        if "root" not in accepted:
            raise UsageError(f"torchvision's {self.name} is not read from files, so it cannot be a source")
        folder = os.environ.get("SIMSEARCH_DATASETS") or str(cache.cache_dir() / "datasets")
        arguments = self._arguments(accepted)
        folder = os.path.join(folder, self.name)
        try:
            os.makedirs(folder, exist_ok=True)
            # Some data sets refuse to download files that exist, so try without downloading first.
            with contextlib.suppress(RuntimeError, OSError):
                return kind(folder, **{**arguments, **({"download": False} if "download" in arguments else {})})
            return kind(folder, **arguments)
        except Exception as error:  # a wrong split, a missing package, no network: the type depends on the data set
            missing = isinstance(error, RuntimeError | OSError)
            advice = f"without an internet connection, put its files into {folder}" if missing else None
            raise UsageError(f"the data set {self.root} cannot be opened: {first_line(error)}", hint=advice) from error

    def _arguments(self, accepted: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if "download" in accepted:
            arguments["download"] = self.download
        if self.name == "Imagenette":
            arguments["size"] = "160px"
        if not self.split:
            return arguments
        if "split" in accepted:
            return {**arguments, "split": self.split}
        if "train" in accepted and self.split in {"train", "test"}:
            return {**arguments, "train": self.split == "train"}
        raise UsageError(f"the data set {self.name} has no split {self.split!r}")

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        found, leave_out = Listing(), Exclusion(exclude, self.root)
        found.matched = leave_out.matched
        data = self._dataset()
        names = getattr(data, "classes", None) or getattr(data, "categories", None)
        files = _files(data)
        width = len(str(max(0, len(data) - 1)))
        label: str | None
        for number in range(len(data)):
            path = f"{number:0{width}d}"
            if leave_out(path):
                continue
            if files:
                file, target = files[number]
                with contextlib.suppress(OSError):
                    facts = os.stat(file)
                    label = _class_name(names, int(target))
                    found.entries.append(Entry(path, facts.st_size, file_stamp(facts), label))
                    continue
            try:
                image, target = data[number]
                pixels = image.tobytes()
            except (TypeError, ValueError, AttributeError):  # pairs of images, videos, tensors
                raise UsageError(
                    f"the data set {self.root} does not hold single images (but perhaps videos or pairs of images)"
                ) from None
            except Exception as error:
                found.entries.append(Entry(path, 0, 0, problem=first_line(error)))
                continue
            label = None
            if isinstance(target, int) or (hasattr(target, "ndim") and target.ndim == 0):
                label = _class_name(names, int(target))
            stamp = int.from_bytes(hashlib.sha256(pixels).digest()[:7], "little")
            found.entries.append(Entry(path, len(pixels), stamp, label))
        return found

    def identity(self, path: str) -> tuple[Any, ...] | None:
        with contextlib.suppress(UsageError, ValueError, IndexError):
            if files := _files(self._dataset()):
                return file_identity(files[int(path)][0])
        return self.root, path

    def is_link(self, path: str) -> bool:
        return False

    def read(self, path: str) -> bytes:
        try:
            data = self._dataset()
        except UsageError as error:
            raise ImageError(str(error), **error.hints) from error
        try:
            if files := _files(data):
                return read_file(files[int(path)][0])
            image: Image.Image = data[int(path)][0]
        except ImageError:
            raise
        except (ValueError, IndexError):
            raise ImageError(f"the data set has no image {path!r}") from None
        except Exception as error:
            raise ImageError(f"cannot be read from the data set: {first_line(error)}") from error
        out = io.BytesIO()
        (image if image.mode != "CMYK" else image.convert("RGB")).save(out, "PNG", compress_level=1)
        return out.getvalue()


def _files(data: Any) -> list[tuple[str, int]]:
    """Returns pairs (file, class number) for a data set that has such a list; an empty list for other data sets."""
    pairs = getattr(data, "_samples", None) or getattr(data, "samples", None)
    if not isinstance(pairs, list) or len(pairs) != len(data):
        return []
    fitting = isinstance(pairs[0], tuple) and len(pairs[0]) == 2 and isinstance(pairs[0][0], str | os.PathLike)
    return pairs if fitting and os.path.isfile(pairs[0][0]) and isinstance(pairs[0][1], int) else []


def _accepted(kind: Any) -> set[str]:
    """Returns the names of the arguments that a class accepts, including those that it passes to its base classes."""
    names: set[str] = set()
    for base in kind.__mro__ if inspect.isclass(kind) else ():
        parameters = inspect.signature(base).parameters if base is not object else {}
        names |= set(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def _class_name(names: Any, target: int) -> str:
    if not names or not 0 <= target < len(names):
        return str(target)
    name = names[target]
    return str(name[0] if isinstance(name, tuple | list) else name)
