"""The options of a build, and the summary of its outcome."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

from simsearch.common import suggestions
from simsearch.common.progress import Progress, no_progress
from simsearch.errors import UsageError

if TYPE_CHECKING:
    from simsearch.indexing.load import LoadedImage
    from simsearch.storage.index import Index
    from simsearch.storage.model import IndexModel


class Extractor(Protocol):
    """Computes features on other machines; implemented by `simsearch.cluster.extractor.ClusterExtractor`."""

    def groups(
        self, index: Index, model: IndexModel, keys: Sequence[Any], known: Container[bytes], batch_size: int
    ) -> Iterator[list[tuple[Any, LoadedImage]]]:
        """Yields lists of (key, result), as `extract.extract` does. Together, they have one pair for each image.

        keys: for each image to read, a tuple (plan, entry, item); see `plan.Plan.fresh`.
        known: SHA-256 digests of files whose features the index has.
        batch_size: number of images whose features are computed at a time; 0 for the device's default.
        """
        ...

    def finished(self) -> None:
        """Cleans up; called once, after all results have been committed."""
        ...


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    exclude: patterns of images to leave out, as in a .gitignore; see `exclude.Exclusion`.
    labels: "folder" uses a source's own labels. If the source has none, the label of an image is the name of its
    folder, and images at the top of the source have no label. "none" uses no labels. "auto" uses the rule that the
    index has recorded for the source; for a new source, this is "folder".
    prune: remove items whose image is gone.
    keep_gone: set by `--watch`, to compare only sources that exist on this machine. The items of a source that is gone
    stay, even with `prune`, because its disk may be unmounted.
    dry_run: only count the differences.
    allow_outside: also index files that lie outside the folder of the .csv, .jsonl or .parquet file that lists them.
    For a symbolic link, the place of its target counts.
    batch_size, workers: as for `extract.extract`; None for defaults that suit the machine.
    progress: called with the number of images processed and their total.
    extractor: computes features on other machines; None computes them in this process.
    Raises UsageError for an invalid value.
    """

    exclude: tuple[str, ...] = ()
    labels: Literal["auto", "folder", "none"] = "auto"
    prune: bool = True
    keep_gone: bool = False
    dry_run: bool = False
    allow_outside: bool = False
    batch_size: int | None = None
    workers: int | None = None
    progress: Progress = no_progress
    extractor: Extractor | None = None

    def __post_init__(self) -> None:
        exclude: Any = self.exclude
        single = isinstance(exclude, str) or not isinstance(exclude, Iterable)
        exclude = (exclude,) if single else tuple(exclude)
        if not all(isinstance(pattern, str) for pattern in exclude):
            raise UsageError(f"exclude is {self.exclude!r}, but must be a list of text patterns")
        object.__setattr__(self, "exclude", exclude)
        if self.labels not in ("auto", "folder", "none"):
            raise UsageError(f"labels is {self.labels!r}, but must be auto, folder or none")
        for name, value in (("batch_size", self.batch_size), ("workers", self.workers)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} is {value!r}, but must be a whole number of at least 1")

    @classmethod
    def from_keywords(cls, given: Mapping[str, Any]) -> BuildOptions:
        """Makes options from keyword arguments. Raises UsageError for an unknown name or an invalid value."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(names)):
            raise UsageError(f"a build has no option {unknown[0]!r}", hint=suggestions.hint(unknown[0], names))
        return cls(**given)


class AddOptions(TypedDict, total=False):
    """The options of `Engine.add`; see `BuildOptions`."""

    exclude: str | Sequence[str]
    labels: Literal["auto", "folder", "none"]
    allow_outside: bool
    batch_size: int | None
    workers: int | None
    progress: Progress


class BuildKeywords(AddOptions, total=False):
    """The options of `simsearch.build`; see `BuildOptions`."""

    prune: bool
    extractor: Extractor | None


@dataclass
class Summary:
    """The outcome of a build. Counts without a description are numbers of images.

    items: number of items in the index after the build.
    computed: number of images whose features the model computed.
    to_read: number of images that are new or changed.
    skipped: number of files that were not taken as images, including those in `left_out`.
    left_out: for each reason, the number of files that are never read, such as videos.
    unread: (path, reason) of each folder that could not be listed, and of each file for which the request to a web
    server failed.
    missing_extras: for each reason that names a missing optional dependency, the number of images that failed.
    unmatched: patterns of `exclude` that match nothing.
    unlabelled: number of unchanged images that had a label and now have none.
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
    left_out: dict[str, int] = field(default_factory=dict)
    missing_extras: dict[str, int] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    unlabelled: int = 0
