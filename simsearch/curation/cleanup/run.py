"""Carries out the plan of a clean-up and reports the outcome."""

from __future__ import annotations

import datetime
import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.cleanup import trash
from simsearch.curation.cleanup.acts import act
from simsearch.curation.cleanup.files import UnusableError
from simsearch.curation.cleanup.journal import Journal
from simsearch.curation.cleanup.plan import Plan
from simsearch.errors import UsageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Errors that would also occur for all further files, such as a full disk."""


@dataclass
class Report:
    """The outcome of a clean-up. After a dry run, only `plan` is set.

    files, bytes: number and total size of the files acted on.
    problems: (path, reason) of each file that could not be acted on.
    journal: the file to pass to `restore`; None if there was nothing to do.
    """

    plan: Plan
    files: int = 0
    bytes: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    journal: Path | None = None


def journal_path() -> Path:
    """Returns the path of a new journal in the current folder, with the date and time in its name."""
    return Path(f"simsearch-cleanup-{datetime.datetime.now():%Y%m%d-%H%M%S}.jsonl")


def carry_out(plan: Plan, index: str, journal: Path | None = None, progress: Progress = no_progress) -> Report:
    """Carries out the planned action on each file, one file after the other.

    A file that cannot be acted on is left where it is, and the next file follows. If the disk is full or read-only, no
    further file is acted on, and the report is returned.
    index: the name of the index, for the journal. journal: the path of the new journal; None for `journal_path()`.
    Raises UsageError if the plan needs a trash and this system has none, if the path to move files to is not a folder,
    or if the journal cannot be written. Actions carried out before that error are in the journal.
    """
    report = Report(plan)
    if plan.action == "trash":
        trash.check_available()
    if plan.action == "move" and os.path.lexists(plan.into) and not os.path.isdir(plan.into):
        raise UsageError(f"files cannot be moved to {plan.into}: it is not a folder")
    if not plan.count:
        return report
    report.journal = (journal or journal_path()).absolute()
    with Journal(report.journal, plan.action, index) as log:
        for number, task in enumerate(plan.tasks(), 1):
            try:
                report.bytes += act(task, plan.action, log)
                report.files += 1
            except UnusableError as error:
                report.problems.append((task.path, str(error)))
            except OSError as error:
                report.problems.append((task.path, error.strerror or str(error)))
                if error.errno in _FULL:
                    break
            progress(number, plan.count)
    return report
