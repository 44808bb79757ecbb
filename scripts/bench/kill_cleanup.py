#!/usr/bin/env python3
"""The claim: `kill -9` at any moment of a clean-up loses no picture, and `restore` brings all files back.

    scripts/bench/kill_cleanup.py [--times 300] [--files 12] [--seed 0] [--folder DIR] [--other DIR] [--full DIR]
        [--two-steps]

Each time, groups of equal files are made in a new folder, and a process that moves them, moves them to another file
system, puts them into the trash or replaces them by hard links is killed by SIGKILL before a random line of the code of
`simsearch/curation/cleanup`. Then

- every content must still be there, and the file to keep of each group must be untouched;
- `restore`, which is killed in the same way in every second round and then run again, must bring back every file with
  its content, mtime and permissions, each as a file of its own, and leave nothing else behind;
- another `restore` must find nothing to do.

Where --folder does not tell names of different case apart, each group also has the file to keep in capitals, which must
be seen as the same file and left. Where it refuses renames that replace nothing, every action must be refused.

With --full, a folder in a file system of a few MB, files are moved there while it has room for some of them only, in
every second round with the journal there too. The run must end when it is full. The space is free again before the last
`restore`.

Moves between file systems are real with `--other` in another one than `--folder`; else the rename is made to fail as it
would. SIGKILL ends the process, not the machine: this says nothing about a power failure. Exits 1 if anything was not
as claimed.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

from simsearch.curation import cleanup
from simsearch.curation.cleanup import acts, files, journal, restore
from simsearch.curation.cleanup.acts import Task, act
from simsearch.curation.cleanup.files import Original, UnusableError

CODE = str(Path(cleanup.__file__).parent)
ACTIONS = ("move", "across", "trash", "hardlink")

ROOM = 150_000
"""Bytes that are free in a full file system when a clean-up begins."""

FULL = (errno.ENOSPC, errno.EDQUOT)


def in_child(work: Callable[[], None], fatal: int) -> tuple[bool, int]:
    """Runs work in a new process, which dies before line number `fatal` (0: never). True if it died; lines executed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal count
            if event == "line":
                count += 1
                if count == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
            return local

        sys.settrace(lambda frame, *_: local if frame.f_code.co_filename.startswith(CODE) else None)
        try:
            work()
            sys.settrace(None)
            os.write(writing, str(count).encode())
            os._exit(0)
        except BaseException as error:
            sys.settrace(None)
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as file:
        count = int(file.read() or 0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("the clean-up failed without being killed")
    return os.WIFSIGNALED(status), count


def files_in(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, mtime and permissions of each file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def draw(folder: Path, files: int, moments: random.Random) -> list[tuple[Path, list[Path]]]:
    """Makes groups of two or three equal files; returns the one to keep and the others of each."""
    groups = []
    for number in range(files // 3):
        content = moments.randbytes(moments.choice([0, 100, 5000, 200_000]) + 1)
        names = [folder / "a" / f"{number}.jpg", folder / "b" / f"{number}.jpg", folder / "b" / f"{number} Ü\udcff.jpg"]
        for copy, name in enumerate(names):
            name.parent.mkdir(parents=True, exist_ok=True)
            try:
                name.write_bytes(content)
            except OSError:  # a file system whose names are Unicode
                names[copy] = name = name.with_name(f"{number} Ü.jpg")
                name.write_bytes(content)
            os.utime(name, ns=(10**18, 10**18 + 100_000 * (10 * copy + number)))
        groups.append((names[0], names[1:]))
        capitals = names[0].with_name(names[0].name.upper())
        if capitals.exists():
            groups[-1][1].append(capitals)
    return groups


def fill(folder: Path) -> Path:
    """Fills the file system of a folder up to ROOM bytes; returns the file that does."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    os.truncate(filler, max(0, filler.stat().st_size - ROOM))
    return filler


def fail_between(one: Path, other: Path) -> None:
    """Has renames between two folders fail as they do between file systems."""
    rename = acts.rename_new

    def failing(old: str, new: str) -> None:
        if Path(old).is_relative_to(one) != Path(new).is_relative_to(one):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), old)
        rename(old, new)

    acts.rename_new = restore.rename_new = failing


def clean_up(
    groups: list[tuple[Path, list[Path]]], photos: Path, out: Path, do: str, log: Path, full: bool = False
) -> None:
    if do == "across":
        fail_between(photos, out)
    kind = "move" if do == "across" else do
    with contextlib.suppress(*(journal.JournalError,) if full else ()), journal.Journal(log, kind, "index") as opened:
        for kept, others in groups:
            original = Original(str(kept), hashlib.sha256(kept.read_bytes()).digest())
            for path in others:
                target = str(out / path.relative_to(photos))
                task = Task(str(path), original.digest, original, target, str(out))
                alias = path.parent == kept.parent
                try:
                    act(task, kind, opened)
                except UnusableError as error:
                    if not alias:
                        raise SystemExit(f"{path}: {error}") from error
                except OSError as error:
                    if full and error.errno in FULL:
                        return
                    if "this file system" not in str(error):
                        raise
                else:
                    if alias:
                        raise SystemExit(f"{path} is another name of {kept.name} and was acted on")


def restore_all(log: Path, do: str, photos: Path, out: Path) -> None:
    if do == "across":
        fail_between(photos, out)
    if log.exists() and log.read_bytes().count(b"\n"):
        done = restore.restore(log)
        if done.problems:
            raise SystemExit(f"restore: {done.problems[0]}")


def one_round(do: str, folder: Path, other: Path, options: argparse.Namespace, moments: random.Random) -> list[str]:
    """Kills one clean-up; returns what was not as claimed, and prints what happened."""
    photos, out, log = folder / "photos", other / "out", folder / "journal.jsonl"
    full = bool(options.full)
    if full and moments.random() < 0.5:
        log = other / "journal.jsonl"
    for part in (photos, out, folder / "share", log):
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
    photos.mkdir()
    out.mkdir(parents=True)
    os.environ["XDG_DATA_HOME"] = str(folder / "share")
    groups = draw(photos, options.files, moments)
    before = files_in(photos)
    filler = fill(other) if full else None
    last = options.lines[do] // (2 if full else 1)  # a full disk ends a run early
    died, _ = in_child(lambda: clean_up(groups, photos, out, do, log, full), moments.randint(1, last))
    if filler:
        filler.unlink()
    problems = []
    everywhere = files_in(folder) | {f"other/{name}": each for name, each in files_in(other).items()}
    contents = {content for content, *_ in everywhere.values()}
    lost = sum(content not in contents for content, *_ in before.values())
    for kept, _ in groups:
        name = str(kept.relative_to(photos))
        lost += everywhere.get(f"photos/{name}", (b"",))[0] != before[name][0]
    if lost:
        problems.append(f"{lost} pictures lost")
    again = False
    if moments.random() < 0.5:
        again, _ = in_child(lambda: restore_all(log, do, photos, out), moments.randint(1, max(1, options.back[do])))
    in_child(lambda: restore_all(log, do, photos, out), 0)
    after = files_in(photos)
    if after != before:
        wrong = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        problems.append(f"not as before: {wrong[:3]}")
    linked = sum(path.stat().st_nlink > 1 for path in photos.rglob("*") if path.is_file())
    left = [*files_in(out), *files_in(folder / "share")]
    if linked or left:
        problems.append(f"{linked} linked files, left behind: {left[:3]}")
    options.outcomes[do, "killed" if died else "was done", "restore killed too" if again else ""] += 1
    return problems


def lines_of(do: str, folder: Path, other: Path, options: argparse.Namespace) -> tuple[int, int]:
    """The number of lines that a whole clean-up executes, and a whole restore."""
    photos, out, log = folder / "photos", other / "out", folder / "journal.jsonl"
    for part in (photos, out):
        part.mkdir(parents=True)
    os.environ["XDG_DATA_HOME"] = str(folder / "share")
    groups = draw(photos, options.files, random.Random(0))
    _, lines = in_child(lambda: clean_up(groups, photos, out, do, log), 0)
    _, back = in_child(lambda: restore_all(log, do, photos, out), 0)
    return lines, back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=300, metavar="N", help="kills (default: 300)")
    parser.add_argument("--files", type=int, default=12, metavar="N", help="of each round (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the files and the moments (default: 0)")
    parser.add_argument("--folder", metavar="DIR", help="where to work (default: the system's temporary folder)")
    parser.add_argument("--other", metavar="DIR", help="a folder in another file system")
    parser.add_argument(
        "--two-steps", action="store_true", help="rename in two steps, as where no system call does it in one"
    )
    parser.add_argument("--full", metavar="DIR", help="a folder in a file system of a few MB, which gets full")
    options = parser.parse_args()
    if options.two_steps:
        vars(files)["_renameat2"] = None
    moments = random.Random(options.seed)
    options.outcomes, options.lines, options.back = Counter(), {}, {}
    wrong = 0
    actions = ("across",) if options.full else ACTIONS
    for do in actions:
        with (
            tempfile.TemporaryDirectory(dir=options.folder) as folder,
            tempfile.TemporaryDirectory(dir=None if options.full else options.other or options.folder) as other,
        ):
            options.lines[do], options.back[do] = lines_of(do, Path(folder), Path(other), options)
    for number in range(options.times):
        do = actions[number % len(actions)]
        with (
            tempfile.TemporaryDirectory(dir=options.folder) as folder,
            tempfile.TemporaryDirectory(dir=options.full or options.other or options.folder) as other,
        ):
            problems = one_round(do, Path(folder), Path(other), options, moments)
        wrong += bool(problems)
        for problem in problems:
            print(f"round {number + 1}, {do}: {problem}")
    for outcome, count in sorted(options.outcomes.items()):
        print(f"{count:5,}  {', '.join(filter(None, outcome))}")
    print(f"{options.times:,} clean-ups: {wrong} not as claimed")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
