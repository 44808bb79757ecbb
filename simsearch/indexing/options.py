"""Options and results of a build."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from simsearch.errors import UsageError

if TYPE_CHECKING:
    from simsearch.indexing.load import LoadedImage
    from simsearch.storage.index import Index
    from simsearch.storage.model import IndexModel
from simsearch.common.progress import Progress


class Extractor(Protocol):
    """What computes features elsewhere; `ray.RayCluster` is one."""

    def groups(
        self, index: Index, model: IndexModel, keys: Sequence[Any], known: Container[bytes], batch_size: int
    ) -> Iterator[list[tuple[Any, LoadedImage]]]:
        """See `extract.extract`: the results of all images in their order. batch_size: 0 chooses for the device."""
        ...

    def finished(self) -> None:
        """Called when all of it is committed."""
        ...


@dataclass(frozen=True)
class BuildOptions:
    """How to synchronise.

    exclude: globs over relative paths or names. labels: "auto" takes folder names if every image sits in a folder,
    "folder" wherever one does, "none" never. prune: remove items whose image is gone. batch_size, workers: None
    chooses for the machine. progress: see `Progress`. extractor: computes elsewhere; None computes here.
    """

    exclude: tuple[str, ...] = ()
    labels: Literal["auto", "folder", "none"] = "auto"
    prune: bool = True
    dry_run: bool = False
    batch_size: int | None = None
    workers: int | None = None
    progress: Progress = lambda done, total: None
    extractor: Extractor | None = None

    def __post_init__(self) -> None:
        exclude: Any = self.exclude
        if isinstance(exclude, str):
            object.__setattr__(self, "exclude", (exclude,))
        if self.labels not in ("auto", "folder", "none"):
            raise UsageError(f"labels is {self.labels!r}", hint="auto, folder or none")
        for name, value in (("batch_size", self.batch_size), ("workers", self.workers)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, but must be at least 1")


@dataclass
class Summary:
    """What a synchronisation did, in images. computed: how many went through the model.

    to_read: in a dry run, the images that are new or changed. unread: folders that could not be listed, with reasons.
    """

    items: int = 0
    added: int = 0
    updated: int = 0
    moved: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: int = 0
    skipped: int = 0
    computed: int = 0
    to_read: int = 0
    seconds: float = 0.0
    unread: list[tuple[str, str]] = field(default_factory=list)
