"""`--watch` of `build` and `serve`: updates an index whenever its sources change, while the command runs."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from simsearch.cli.console import echo, format_counts, note, pluralize
from simsearch.common.lazy import LazyModule
from simsearch.engine import Engine
from simsearch.errors import SimsearchError
from simsearch.images.sources.remote import addresses
from simsearch.indexing import options as indexing_options
from simsearch.indexing import watch
from simsearch.storage.index import on_disk

if TYPE_CHECKING:
    from simsearch.indexing import sync
else:  # `--help` does not need it
    sync = LazyModule("simsearch.indexing.sync")

STOPPING = 5.0
"""Seconds to wait for a running update when a service ends.

An update that takes longer may be cut off; the next update completes it.
"""

check_available = watch.check_available


def follow_index(engine: Engine, options: Mapping[str, Any], prune: bool = True, form: str = "text") -> None:
    """Updates an index whenever its sources change, until the command is interrupted.

    options: the options of each update, as in `BuildOptions`. prune: True to remove items whose image is gone.
    form: "text" or "json", the format of the line printed for each update.
    Raises MissingExtraError, UsageError, IndexReplacedError.
    """
    if count := _count_sources(engine):
        note(f"following {pluralize(count, 'source')}; Ctrl-C ends it")
    _follow(engine, threading.Event(), form, prune=prune, **options)


@contextlib.contextmanager
def following(engines: Mapping[str, Engine]) -> Iterator[None]:
    """Updates several indexes in threads whenever their sources change, until the end of the block.

    engines: the indexes, with their names as keys. Raises MissingExtraError, and UsageError for a Milvus collection.
    """
    check_available()
    for engine in engines.values():
        on_disk(engine.opened_index)
    stop = threading.Event()

    def run(name: str, engine: Engine) -> None:
        try:
            _follow(engine, stop)
        except SimsearchError as error:
            note(f"{name} is not followed any more: {error}")

    threads = [
        threading.Thread(target=run, args=each, name=f"watch-{each[0]}", daemon=True) for each in engines.items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(STOPPING)


def _follow(engine: Engine, stop: threading.Event, form: str = "text", **options: Any) -> None:
    chosen = indexing_options.BuildOptions(keep_gone=True, **options)
    update = functools.partial(sync.sync, engine.index, engine.model, [], chosen)
    watch.follow(engine.index, update, functools.partial(_say, form), stop)


def _say(form: str, news: indexing_options.Summary | str) -> None:
    if isinstance(news, str):
        note(news)
        return
    if form == "json":
        echo(json.dumps(dataclasses.asdict(news)))
        return
    counts = {name: getattr(news, name) for name in ("added", "updated", "moved", "removed", "failed")}
    now = datetime.datetime.now().strftime("%H:%M:%S")
    echo(f"{now} {pluralize(news.items, 'item')}; {format_counts(counts)}; {news.seconds:.1f} s")


def _count_sources(engine: Engine) -> int:
    """Returns the number of the index's sources that are on this machine; only these can be followed."""
    with engine.reading() as reader:
        return sum(not addresses.is_kind(row.kind) for row in reader.sources())
