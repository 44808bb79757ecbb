"""`--watch` of `build` and `serve`: an index that follows its sources while the command runs."""

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
"""Seconds to wait for a running update when a service ends; the next update completes an interrupted one."""

check_available = watch.check_available


def follow_index(engine: Engine, options: Mapping[str, Any], prune: bool = True, form: str = "text") -> None:
    """Follows the sources of an index until the command is interrupted.

    options: keyword options of the build. form: format of the line printed for each update, "text" or "json".
    Raises MissingExtraError, UsageError, IndexReplacedError.
    """
    if count := _count_sources(engine):
        note(f"following {pluralize(count, 'source')}; Ctrl-C ends it")
    _follow(engine, threading.Event(), form, prune=prune, **options)


@contextlib.contextmanager
def following(engines: Mapping[str, Engine]) -> Iterator[None]:
    """Follows the sources of several indexes in threads for the duration of the block.

    Raises MissingExtraError, UsageError for a Milvus collection.
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
    """Returns the number of sources on this machine."""
    with engine.reading() as reader:
        return sum(not addresses.is_kind(row.kind) for row in reader.sources())
