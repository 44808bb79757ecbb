"""A remote folder as a source: all pictures below an address, or single pictures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any

from simsearch.common.lazy import LazyModule
from simsearch.errors import ImageError, UsageError
from simsearch.images.decode import LARGEST_BYTES
from simsearch.images.sources.base import GONE, Entry, Listing, Source
from simsearch.images.sources.exclude import Exclusion
from simsearch.images.sources.remote import addresses
from simsearch.images.sources.remote.store import REQUESTS, RemoteObject, Store, StoreStoppedError, is_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simsearch.images.sources.remote import gcs, http, public_web, s3
else:  # their libraries take seconds to import
    gcs = LazyModule("simsearch.images.sources.remote.gcs")
    http = LazyModule("simsearch.images.sources.remote.http")
    public_web = LazyModule("simsearch.images.sources.remote.public_web")
    s3 = LazyModule("simsearch.images.sources.remote.s3")

STORES: dict[str, Callable[..., Store]] = {
    "s3": lambda root, **options: s3.S3Store(root, **options),
    "gs": lambda root, **options: gcs.GcsStore(root, **options),
    "https": lambda root, **options: http.HttpStore(root, **options),
    "http": lambda root, **options: http.HttpStore(root, **options),
}
"""Maps the scheme of an address to the function that makes a store from the address."""


def open_store(root: str, *, public_only: bool = False, quick: bool = False) -> Store:
    """Returns the store of an address, which lists and reads objects. Raises MissingExtraError if a library is missing.

    public_only: refuse web servers that are not on the public Internet. quick: as for `Store`.
    """
    scheme = addresses.scheme_of(root) or ""
    if scheme in addresses.WEB and public_only:
        return public_web.PublicWebStore(root, quick=quick)
    return STORES[scheme](root, quick=quick)


class RemoteStoreMixin:
    """Base of remote sources. Opens the store of an address when it is first needed."""

    root: str
    quick: bool
    public_only: bool
    _store: Store | None = None

    def _opened(self, place: str) -> Store:
        """Returns the store of the address `place`, opened at the first call.

        Raises MissingExtraError if a library is missing, StoreStoppedError if the source has been closed.
        """
        with self._store_lock:
            if self._closed:  # a read was waiting for its turn
                raise StoreStoppedError("the source was closed while it was being read")
            if self._store is None:
                self._store = open_store(place, public_only=self.public_only, quick=self.quick)
            return self._store

    def _init_store(self) -> None:
        self._store_lock, self._closed = threading.Lock(), False

    def _close_store(self) -> None:
        with self._store_lock:
            store, self._store, self._closed = self._store, None, True
        if store is not None:
            store.close()


class RemoteSource(RemoteStoreMixin, Source):
    """The objects below an address such as `s3://bucket/prefix` or `https://host/folder`.

    Pictures are recognised by the extensions of their names, because looking at the content would take a request for
    each object.
    """

    kind = addresses.KIND
    nests = remote = True

    def __init__(self, root: str, within: str = "") -> None:
        super().__init__(root, within)
        self._init_store()
        self._sizes: dict[str, int] = {}

    @property
    def store(self) -> Store:
        """The connection to the server. Raises MissingExtraError if a library is missing."""
        return self._opened(self.root)

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        """Lists the objects. Raises the errors of `Store.objects`, and UsageError if there are no objects."""
        found, leave_out = Listing(), Exclusion(exclude, self.root)
        if self.only is not None:
            self._ask_for(sorted(self.only), found)
        elif not (self.within and is_picture(self.within) and self._ask_for([self.within], found)):
            self._list(leave_out, found)
        found.matched = leave_out.matched
        self._sizes = {entry.path: entry.size for entry in found.entries if entry.size}
        return found

    def _list(self, leave_out: Exclusion, found: Listing) -> None:
        empty = True
        for item in self.store.objects(self.within):
            empty = False
            if item.path.endswith("/") or any(part.startswith(".") for part in item.path.split("/")):
                continue
            if leave_out(item.path):
                continue
            if is_picture(item.path):
                found.entries.append(_entry(item))
            else:
                found.skip(item.path)
        found.unread = list(self.store.unread)
        if empty and not found.unread:
            place = self.display(self.within) if self.within else self.root
            what = f"there is no picture at {place}" if is_picture(self.within) else f"nothing is stored below {place}/"
            raise UsageError(what, hint="is the address complete?")
        found.entries.sort(key=lambda entry: entry.path)

    def _ask_for(self, paths: Sequence[str], found: Listing) -> bool:
        """Adds an entry to `found` for each of `paths` that exists, after asking the server for its size and identity.

        If a request fails, the entry has the reason as its `problem`. Returns True if `found` has entries afterwards.
        """
        for path, item in zip(paths, self._infos(paths), strict=True):
            if isinstance(item, str):
                found.entries.append(Entry(path, 0, 0, problem=item))
            elif item is not None:
                found.entries.append(_entry(item))
        return bool(found.entries)

    def _infos(self, paths: Sequence[str]) -> Iterator[RemoteObject | str | None]:
        """Yields for each path: the object, or None if it does not exist, or the reason that the request failed."""

        def ask(path: str) -> RemoteObject | str | None:
            try:
                return self.store.info(path)
            except ImageError as error:
                return str(error)

        pool = ThreadPoolExecutor(REQUESTS, "remote")
        try:
            yield from pool.map(ask, paths)
        finally:  # if interrupted, drop the requests that have not started
            pool.shutdown(wait=False, cancel_futures=True)

    def size_and_stamp(self, path: str) -> tuple[int, int] | None:
        found = self.store.info(path)
        return None if found is None else (found.size or 0, found.stamp)

    def identity(self, path: str) -> tuple[Any, ...] | None:
        return (self.display(path),)

    def is_link(self, path: str) -> bool:
        return False

    def read(self, path: str) -> bytes:
        return self.store.read(path, size=self._sizes.get(path))

    def stream(self, path: str) -> IO[bytes]:
        size = self._sizes.get(path)
        if size is None:  # recorded by an index: it may be large
            found = self.store.info(path)
            if found is None:
                raise ImageError(GONE)
            size = found.size
        return self.store.stream(path, size)

    def close(self) -> None:
        self._close_store()


def _entry(item: RemoteObject) -> Entry:
    """Converts an object to an `Entry`.

    If the server gives the object no identity, the entry gets a stamp from the clock. The image then counts as changed
    in each build, and is read again.
    """
    size, stamp = item.size or 0, item.stamp if item.identity else time.time_ns() & (2**63 - 1)
    problem = f"too large: {size:,} bytes, the limit is {LARGEST_BYTES:,}" if size > LARGEST_BYTES else None
    return Entry(item.path, size, stamp, problem=problem)
