"""A replica that only reads, of an index that another process keeps building.

    python scripts/examples/replica.py INDEX COPY

It copies INDEX to COPY, and again after each change. The copy is made beside COPY and takes its place in one step;
whoever serves COPY (`simsearch serve -i COPY`) changes over without a failed request. Ends with its standard input.

On one machine there is no need for it: a reader of INDEX itself sees each commit. It is for a disk of one's own, which
this script stands for: put `rsync` to another machine in place of `copy`.
"""

import os
import select
import shutil
import sqlite3
import sys
from pathlib import Path

import simsearch
from simsearch.storage.verify import verify


def generation(index: Path) -> int:
    """How many changes the index has seen."""
    with simsearch.open(index) as engine, engine.reading() as reader:
        return reader.state("generation")


def copy(index: Path, target: Path) -> None:
    """A copy as of one commit: first the database, then the features, which only ever grow behind what it knows."""
    shutil.copytree(index, target, ignore=shutil.ignore_patterns("items.sqlite*", "features", "*.lock", "derived"))
    source, taken = sqlite3.connect(index / "items.sqlite"), sqlite3.connect(target / "items.sqlite")
    source.backup(taken)
    source.close()
    taken.close()
    shutil.copytree(index / "features", target / "features")
    with simsearch.open(target) as engine:
        if problems := verify(engine.index).problems:
            raise OSError(f"the copy is damaged: {problems[0]}")


def main() -> None:
    index, place = map(Path, sys.argv[1:])
    seen = None
    while True:
        if (now := generation(index)) != seen:
            fresh = place.with_name(f"{place.name}-{now}")
            shutil.rmtree(fresh, ignore_errors=True)
            try:
                copy(index, fresh)
            except OSError as error:  # `compact` may have written the features anew meanwhile: once more
                shutil.rmtree(fresh, ignore_errors=True)
                if generation(index) == now:
                    raise SystemExit(f"error: {error}") from None
                continue
            link, old = place.with_name(f"{place.name}.new"), place.resolve() if place.is_symlink() else None
            link.unlink(missing_ok=True)
            link.symlink_to(fresh.name)
            os.replace(link, place)  # one step: there always is an index at `place`
            if old is not None and old != fresh.resolve():
                shutil.rmtree(old)
            seen = generation(place)
            print(f"generation {seen}", flush=True)
        if select.select([sys.stdin], [], [], 1.0)[0] and not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
