#!/usr/bin/env python3
"""The claim: whatever an index is doing when it is killed or the disk fails, nothing that was committed is lost.

    scripts/bench/kill.py [--kills 1000] [--seed 0] [--works build,add,...] [--world 60] [--keep FOLDER]

Works on small indexes of drawn pictures, by all that writes them (kill_works.py): builds, additions, removals, search
structures, compactions, merges, uploads, sketches. Each work runs in a forked process that is armed with a fault
at a random one of its calls that change a file of the index: SIGKILL before or after it, a torn write and SIGKILL, a
short write, one failing call (EIO), or a disk that is full from there on (ENOSPC). The calls are counted and struck by
a preloaded library (`kill_shim.c`, compiled by cc when this starts), also those of SQLite. Without a compiler, calls
of Python's `os` are struck instead, and others are not. Some works are also killed after a random time.

A dictionary says what the index has to hold before and after each work. After a fault:

- `verify` finds the index in order (or there is none yet);
- each item is as it was before the work, or as the work makes it; none is lost, doubled or wrong; ids stay;
- each item's features are those of its content, exact searches give the true neighbours, others true distances;
- a work that was acknowledged (a removal, an upload) is there;
- the same work, run again, gives the whole result, and computes nothing that was committed.

The page cache of the system survives SIGKILL: torn writes are a part of a power failure, not all of it. Exit code 1
for any fault found.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the processes are forked

import faiss  # noqa: F401, imported once, before the children
import numpy as np
from kill_faults import FAULTS, Faults, Outcome, in_child, with_shim
from kill_works import WORKS, Key, Task, Thing, World, engine_of, expected_features, model, upload_name

import simsearch
from simsearch.engine import Engine
from simsearch.errors import SimsearchError
from simsearch.indexing import compact, merge, sync
from simsearch.search import sketch_making
from simsearch.storage.verify import verify

ROUNDS = 60
"""Works on one index, before a new one is begun."""


def held(index: Path) -> dict[str, Any]:
    """Reads an index, in a child: the items by key, and the problems found."""
    if not (index / "meta.json").exists():
        return {"items": [], "problems": [], "unlisted": []}
    problems: list[str] = []
    found = []
    with engine_of(index) as engine:
        problems += verify(engine.index).problems
        with engine.reading() as reader:
            roots = {source.id: engine.index.root_of(source) for source in reader.sources()}
            items = list(reader.items())
            rows = reader.shards.read(np.array([item.row for item in items], np.int64)) if items else np.zeros((0, 0))
        for item, row in zip(items, rows, strict=True):
            found.append([roots[item.source], item.path, item.id, item.digest.hex(), item.label, row.tobytes().hex()])
        if items:
            problems += searched(engine, [item.id for item in items], rows)
        for root, path, number, *_ in found:
            if root.endswith("items.jsonl") and not engine.read(number):
                problems.append(f"the upload {path} is gone")
    uploads = index / "uploads"
    lines = (uploads / "items.jsonl").read_text().splitlines() if (uploads / "items.jsonl").exists() else []
    listed = {"items.jsonl", *(json.loads(line)["path"] for line in lines if line.endswith("}"))}
    unlisted = sorted(set(os.listdir(uploads)) - listed) if uploads.exists() else []
    return {"items": found, "problems": problems, "unlisted": unlisted}


def searched(engine: Engine, ids: list[int], rows: np.ndarray) -> list[str]:
    """Searches by a few items and compares with the true distances."""
    problems = []
    features = rows.astype(np.float64)
    place = {number: n for n, number in enumerate(ids)}
    for n in np.random.default_rng(len(ids)).choice(len(ids), min(3, len(ids)), replace=False):
        true = np.sqrt(((features - features[n]) ** 2).sum(1))
        nearest = np.sort(true)[:5]
        for exact in (True, False):
            matches = engine.search_by_vector(rows[n].astype(np.float32), 5, exact=exact)
            if any(abs(match.distance - true[place[match.id]]) > 1e-3 for match in matches):
                problems.append(f"a distance is wrong (exact={exact})")
            if exact and not np.allclose([match.distance for match in matches], nearest, atol=1e-3):
                problems.append("exact search does not find the nearest")
    return problems


class Checker:
    """Compares what an index holds with what is expected."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[str, str]] = {}  # digest and features by picture

    def facts(self, number: int) -> tuple[str, str]:
        if number not in self.known:
            self.known[number] = upload_name(number), expected_features(number).tobytes().hex()
        return self.known[number]

    def compare(
        self, found: dict[str, Any], before: dict[Key, Thing], after: dict[Key, Thing]
    ) -> tuple[dict[Key, int], list[str]]:
        """Returns the ids by key, and the problems. before, after: either is right for an item, unless both agree."""
        problems = list(found["problems"])
        ids: dict[Key, int] = {}
        pictures = collections.Counter[str]()
        for root, path, number, digest, label, features in found["items"]:
            key = root, path
            if key in ids:
                problems.append(f"doubled: {path}")
            ids[key] = number
            pictures[digest] += 1
            expected = [things[key] for things in (before, after) if key in things]
            right = [each for each in expected if (self.facts(each.picture)[0], each.label) == (digest, label)]
            if not right:
                problems.append(f"wrong: {path} has label {label!r}, expected {expected}")
                continue
            if self.facts(right[0].picture)[1] != features:
                problems.append(f"wrong: {path} has features of another picture")
            if any(each.id not in (None, number) for each in right):
                problems.append(f"wrong: {path} has id {number}, expected {right}")
        problems += [f"lost: {key[1]}" for key in before.keys() & after.keys() if key not in ids]
        least = collections.Counter(self.facts(thing.picture)[0] for thing in before.values())
        least &= collections.Counter(self.facts(thing.picture)[0] for thing in after.values())
        problems += [f"lost: a picture {digest[:8]}" for digest, count in least.items() if pictures[digest] < count]
        return ids, problems


class Storm:
    """The rounds of one run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.chance = options, random.Random(options.seed)
        self.faults, self.checker = Faults(), Checker()
        self.calls: dict[str, list[int]] = {}  # of the last whole runs, by work
        self.seconds: dict[str, float] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.strikes: collections.Counter[tuple[str, str]] = collections.Counter()
        self.found: list[str] = []

    def run(self) -> None:
        self.number = 0
        while self.counts["kills"] < self.options.kills:
            with tempfile.TemporaryDirectory(dir=memory_folder(), prefix="simsearch-storm-") as folder:
                world = World(Path(folder).resolve(), self.chance, self.options.world)
                for number in range(ROUNDS):
                    if self.counts["kills"] >= self.options.kills or not self.round(world, number):
                        break

    def round(self, world: World, number: int) -> bool:
        """Runs one work with a fault; returns False if the index cannot be used further."""
        chance = self.chance
        names = [name for name in WORKS if name in self.options.works]
        name = "build" if not world.items else chance.choices(names, [WORKS[each][1] for each in names])[0]
        task = WORKS[name][0](world)
        fault = chance.choice(list(FAULTS))
        how, error = FAULTS[fault]
        estimate = max(self.calls.get(name, [60]))
        at, share = chance.randrange(1, estimate + 2), chance.random()
        moment = chance.uniform(0, self.seconds.get(name, 0.1)) if not how else 0.0
        self.number += 1

        def attacked(send: Callable[[Any], None]) -> Any:
            hurry()
            self.faults.arm(world.index, at if how else 0, how, error, share)
            try:
                task.act(world.index, send)
            except SimsearchError as refused:
                if "should not happen" in str(refused):
                    raise
                return {"refused": f"{type(refused).__name__}: {refused}"}
            except OSError as refused:
                if refused.errno != error:
                    raise
                return {"refused": f"OSError: {refused}"}
            return {"done": True}

        first = in_child(attacked, kill_after=moment)
        problems = []
        self.counts["works"] += 1
        if first.killed:
            self.counts["kills"] += 1
        self.strikes[name, fault] += 1
        if first.result and "raw" in first.result:
            problems.append(f"raw: {first.result['raw']}")
        if first.result and "refused" in first.result:
            self.counts["refused"] += 1

        def again(send: Callable[[Any], None]) -> Any:
            hurry()
            between = held(world.index)
            self.faults.arm(world.index, 0, 0, 0, 0.0)
            start, before = time.perf_counter(), model.computed
            task.act(world.index, lambda _: None)
            computed, seconds, calls = model.computed - before, time.perf_counter() - start, self.faults.calls()
            return {
                "between": between,
                "after": held(world.index),
                "computed": computed,
                "seconds": seconds,
                "calls": calls,
            }

        second = in_child(again)
        if not second.result or "raw" in second.result:
            problems.append(f"after the fault: {second.result and second.result['raw']}")
        else:
            problems += self.check(world, task, first, second.result)
            self.calls[name] = [*self.calls.get(name, [])[-4:], second.result["calls"]]
            self.seconds[name] = second.result["seconds"]
        if problems:
            shown = "; ".join(dict.fromkeys(problems))
            ended = "killed" if first.killed else str(first.result)[:200]
            self.found.append(f"{self.number}: {name}, {fault} at {at} ({ended}): {shown}")
            print(self.found[-1], flush=True)
            if self.options.keep:
                print(sorted(os.listdir(world.index)), flush=True)
                shutil.copytree(world.folder, self.options.keep / str(self.number), dirs_exist_ok=True)
        return not problems

    def check(self, world: World, task: Task, first: Outcome, result: dict[str, Any]) -> list[str]:
        ids, problems = self.checker.compare(result["between"], world.items, task.after)
        problems = [f"between: {each}" for each in problems]
        for line in first.lines:
            key = tuple(line.split("\n"))
            if (key in ids) != task.acknowledged[line]:
                problems.append(f"acknowledged, but not so: {key[1]}")
        # what was there between must keep its id
        kept = {key: dataclasses.replace(task.after[key], id=ids[key]) for key in task.after.keys() & ids.keys()}
        same = {key: thing for key, thing in kept.items() if world.items.get(key) in (None, thing)}
        expected = {**task.after, **same}
        final, more = self.checker.compare(result["after"], expected, expected)
        problems += [f"at the end: {each}" for each in more]
        if missing := expected.keys() - final.keys():
            problems.append(f"at the end: lost {sorted(missing)[:3]}")
        if result["after"]["unlisted"] and task.uploads:
            problems.append(f"at the end: files in uploads/ that are not listed: {result['after']['unlisted'][:3]}")
        if task.computes:
            present = {digest for _, _, _, digest, *_ in result["between"]["items"]}
            needed = {self.checker.facts(thing.picture)[0] for thing in task.after.values()} - present
            if result["computed"] > len(needed):
                problems.append(f"{result['computed']} pictures were computed, {len(needed)} were missing")
        world.items = {key: dataclasses.replace(thing, id=final.get(key)) for key, thing in task.after.items()}
        return problems


def hurry() -> None:
    """Makes small works take many steps: commits after every batch, sketches and merges of few rows."""
    sync.COMMIT_IMAGES, sync.COMMIT_SECONDS = 1, 0.0
    merge._ITEMS, compact.ROWS = 3, 8
    sketch_making.LEAST, sketch_making.LAG, sketch_making.SCAN, sketch_making.QUERIES = 40, 4, 1.0, 8


def memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, metavar="N", help="Processes to kill (default: 1000).")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--works", type=lambda text: text.split(","), default=list(WORKS), metavar="NAMES")
    parser.add_argument("--world", type=int, default=60, metavar="N", help="Pictures to begin with (default: 60).")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="Keep the indexes of faults here.")
    options = parser.parse_args()
    with_shim()
    storm, begun = Storm(options), time.monotonic()
    print(
        f"simsearch {simsearch.__version__}, Python {platform.python_version()}, {platform.system()};"
        f" calls of {'Python only' if storm.faults.library is None else 'all libraries'}; seed {options.seed}"
    )
    storm.run()
    print(f"\n{'work':10}" + "".join(f"{fault:>22}" for fault in FAULTS))
    for name in WORKS:
        print(f"{name:10}" + "".join(f"{storm.strikes[name, fault]:22,}" for fault in FAULTS))
    print(
        f"{storm.counts['kills']:,} kills in {storm.counts['works']:,} works, {storm.counts['refused']:,} ended with an"
        f" error message; {time.monotonic() - begun:,.0f} s; {len(storm.found)} not as claimed"
    )
    sys.exit(1 if storm.found else 0)


if __name__ == "__main__":
    main()
