"""Moves duplicates away for clients of the service, and brings them back; uses `simsearch.curation.cleanup`.

Only one clean-up runs at a time. It holds the writer lock of the index, so that the groups of duplicates
cannot change meanwhile. Each action is written to a journal before it begins. Clients name a journal by a file name
from `listing`, never by a path. The place that files are moved to is set when the service is started, not by clients.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simsearch.curation.cleanup import restore as restoring
from simsearch.curation.cleanup import run as cleaning
from simsearch.curation.cleanup import trash
from simsearch.curation.cleanup.journal import ACTIONS, Record, read_head, read_journal
from simsearch.curation.cleanup.plan import Plan, check_not_listed
from simsearch.engine import Engine
from simsearch.errors import IndexLockedError, IndexReplacedError, SimsearchError, UsageError
from simsearch.indexing import sync
from simsearch.server.errors import draining
from simsearch.server.middleware import ApiError
from simsearch.server.settings import Settings
from simsearch.storage.reader import Item

WAITING = 4
"""The most clean-ups that run or wait; a request for a further one gets status 429."""

LOCK_PATIENCE = 5.0
"""Seconds to wait for another process that writes to the index."""

LISTED = 20
"""Maximum number of journals in a list (the newest ones), and of clean-ups whose removed items stay in memory."""

_NAME = re.compile(r"simsearch-cleanup-\d{8}-\d{6}-[0-9a-f]{8}\.jsonl")

log = logging.getLogger("simsearch.serve")


@dataclass
class Run:
    """A clean-up, or the undoing of a clean-up. It waits, runs or has ended.

    journal: the file name of the journal. done: files handled so far. total: number of all files.
    """

    journal: str
    done: int = 0
    total: int = 0
    result: Future[dict[str, Any]] = field(default_factory=Future)


@dataclass(frozen=True)
class _Removed:
    """The items that a clean-up removed from an index.

    identity: `Index.identity`; it differs if another index is later put at the same path.
    compactions: how often the index had been compacted before the items were removed. After another compaction, the
    items cannot be put back, because their features are gone.
    """

    identity: tuple[int, ...]
    compactions: int
    items: list[Item]


class CleanUps:
    """Runs clean-ups and undoes them; safe for several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(1, "clean-up")
        self._lock = threading.Lock()
        self._runs: list[Run] = []
        self._removed: OrderedDict[Path, _Removed] = OrderedDict()
        self._stopped = False

    def prepare(self, engine: Engine) -> None:
        """Checks that an index's duplicates can be moved to the folder in the settings, or to the trash if none is set.

        Also creates the folder for journals. Does nothing if clean-ups are not allowed. Raises UsageError if files
        cannot be moved there, or if journals cannot be written.
        """
        into = self._settings.move_to
        if self._settings.cleanup is None:
            return
        if into is None:
            trash.check_available()
        else:
            if os.path.lexists(into) and not os.path.isdir(into):
                raise UsageError(f"files cannot be moved to {into}: it is not a folder")
            with engine.index.reading() as reader:
                folders = [s.folder for s in engine.index.sources(reader).values() if s.kind == "folder" and s.folder]
            check_not_listed(os.path.join(into, "picture"), folders)
        folder = self._folder(engine)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(0, "Permission denied")
        except OSError as error:
            message = f"journals cannot be written to {folder}: {error.strerror}"
            raise UsageError(message, hint="choose another folder with --journals DIR") from error

    def stop(self) -> None:
        """Ends the present run after its current file."""
        self._stopped = True

    def close(self) -> None:
        """Ends the present run after its current file, drops the runs that wait, and waits for the thread to end."""
        self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, work: Callable[[Run], dict[str, Any]], journal: str) -> Run:
        """Starts `work` in the thread of clean-ups and returns its run. Raises ApiError if too many runs wait.

        journal: the file name of the run's journal.
        """
        run = Run(journal)

        def call() -> None:
            result, problem = None, None
            try:
                result = work(run)
            except BaseException as error:
                problem = error
            with self._lock:  # before the result is set, so that no later list shows the run as running
                self._runs.remove(run)
            if problem is not None:
                run.result.set_exception(problem)
            else:
                run.result.set_result(result or {})

        with self._lock:
            if len(self._runs) >= WAITING:
                raise ApiError(429, "too_many_requests", "too many clean-ups at once", {"retry-after": "2"})
            self._runs.append(run)
            try:
                self._pool.submit(call)
            except RuntimeError:  # the pool was shut down
                self._runs.remove(run)
                raise draining() from None
        return run

    def new_name(self) -> str:
        """Returns an unused file name for a journal."""
        stem = cleaning.journal_path().stem
        return f"{stem}-{secrets.token_hex(4)}.jsonl"

    def act(self, engine: Engine, make: Callable[[], Plan], run: Run) -> tuple[cleaning.Report, set[str], int]:
        """Moves the files of a plan away and removes their items from the index.

        make: returns the plan; called when the index is locked, so that the index cannot change any more.
        Returns the report, the absolute paths of the moved files, and the number of removed items.
        Raises IndexLockedError, before any change, if another process writes to the index. Raises ApiError if the
        clean-up stops early.
        """
        with engine.index.writing(LOCK_PATIENCE):
            plan = make()
            run.total = plan.count
            journal = self._folder(engine) / run.journal
            gone: set[str] = set()
            removed = 0
            try:
                report = cleaning.carry_out(plan, str(engine.path.absolute()), journal, self._progress(run))
            except (UsageError, OSError) as error:
                log.error("a clean-up stopped", exc_info=error)
                raise _stopped(run.done, journal.exists()) from error
            finally:
                if journal.exists():
                    gone = {record.entry.path for record in read_journal(journal) if record.done}
                    removed = self._take_out(engine, plan, journal, gone)
        return report, gone, removed

    def _progress(self, run: Run) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            run.done, run.total = done, total
            if self._stopped and done < total:
                raise draining()

        return progress

    def _take_out(self, engine: Engine, plan: Plan, journal: Path, gone: set[str]) -> int:
        """Removes the items of the moved files from the index; returns the number of these items.

        Items that reach a moved file by another path, such as a link, are removed too. gone: absolute paths of the
        moved files.
        """
        went = [
            decision.member.item
            for group in plan.groups
            for decision in group
            if decision.action in ACTIONS and os.path.abspath(decision.member.path) in gone
        ]
        if not went:
            return 0
        places = {os.path.realpath(path) for path in gone}
        with engine.index.reading() as reader:
            sources = engine.index.sources(reader)
            known = {item.id for item in went}
            for item in list(went):
                for number in reader.ids_of(item.digest):
                    other = reader.item(number)
                    if number not in known and os.path.realpath(sources[other.source].display(other.path)) in places:
                        known.add(number)
                        went.append(other)
            removed = _Removed(engine.index.identity, reader.compactions(), went)
        sync.remove_while_writing(engine.index, went)
        with self._lock:
            self._removed[journal] = removed
            while len(self._removed) > LISTED:
                self._removed.popitem(last=False)
        return len(went)

    def restore(self, engine: Engine, name: str, run: Run) -> tuple[restoring.Restored, int]:
        """Undoes a clean-up; returns the outcome and the number of items put back into the index.

        Only the process that removed the items can put them back, because it keeps them in memory. Items that it does
        not put back are added by the next build.
        name: the file name of the journal. Raises ApiError if this index has no such journal.
        """
        journal = self.path(engine, name)
        result = restoring.restore(journal, self._progress(run))
        with self._lock:
            removed = self._removed.get(journal)
        if removed is None or removed.identity != engine.index.identity:
            return result, 0
        with engine.index.reading() as reader:
            sources = engine.index.sources(reader)
            places = {item.id: sources[item.source].display(item.path) for item in removed.items}
        back = [item for item in removed.items if os.path.exists(places[item.id])]
        try:
            count = sync.put_back(engine.index, back, removed.compactions)
        except (IndexLockedError, IndexReplacedError):  # the next build adds the items
            return result, 0
        return result, count

    def path(self, engine: Engine, name: str) -> Path:
        """Returns the path of the journal with this file name. Raises ApiError if this index has no such journal."""
        path = self._folder(engine) / name
        if not _NAME.fullmatch(name) or not self._is_own(engine, path):
            raise ApiError(404, "no_such_journal", f"this index has no clean-up with the journal {name[:80]}")
        return path

    def listing(self, engine: Engine) -> list[dict[str, Any]]:
        """Returns the JSON fields of the last clean-ups of this index, the newest first."""
        folder = self._folder(engine)
        if self._settings.cleanup is None or not folder.is_dir():
            return []
        names = sorted((name for name in os.listdir(folder) if _NAME.fullmatch(name)), reverse=True)
        own = (name for name in names if self._is_own(engine, folder / name))
        return [self._entry(folder / name) for name, _ in zip(own, range(LISTED), strict=False)]

    def command(self, engine: Engine, name: str) -> str:
        """Returns the shell command that undoes a clean-up. name: the file name of its journal."""
        place = name if self._settings.relative else str(self._folder(engine) / name)
        return f"simsearch restore {_quoted(place)}"

    def _entry(self, path: Path) -> dict[str, Any]:
        head = read_head(path)
        try:
            records = [record for record in read_journal(path) if not record.failed]
        except UsageError:  # damaged
            records = []
        with self._lock:
            running = any(run.journal == path.name for run in self._runs)
        return {
            "journal": path.name,
            "at": head["at"],
            "action": head["action"],
            "files": len(records),
            "away": sum(_is_away(record) for record in records),
            "running": running,
        }

    def _is_own(self, engine: Engine, path: Path) -> bool:
        """Returns True if a path is a journal of this index: a regular file that contains the path of the index."""
        try:
            return path.is_file() and not path.is_symlink() and read_head(path)["index"] == str(engine.path.absolute())
        except (SimsearchError, OSError):
            return False

    def _folder(self, engine: Engine) -> Path:
        if self._settings.journals is not None:
            return Path(self._settings.journals)
        return Path(f"{engine.path.absolute()}.journals")


def _is_away(record: Record) -> bool:
    return not os.path.lexists(record.entry.path)


def _quoted(path: str) -> str:
    return path if re.fullmatch(r"[\w./-]+", path) else "'" + path.replace("'", "'\\''") + "'"


def _stopped(done: int, has_journal: bool) -> ApiError:
    text = f"the clean-up stopped after {done} files; the service's log says why"
    return ApiError(503, "clean_up_stopped", text + ("; undoing it brings them back" if has_journal else ""))
