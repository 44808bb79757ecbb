#!/usr/bin/env python3
"""Damaged and malicious files of an index, weights, tables and archives: none may crash, stall or mislead a reader.

    scripts/bench/fuzz.py index|weights|tables|archives [--count 5000] [--seed 0] [--minutes M] [--keep FOLDER]

Makes good files, damages one of them by a seeded generator (bits, runs of bytes, ends, parts of other files, values in
JSON and SQLite), and reads them in a child process with a limit on its time and memory. An index is searched and
verified; its answers are compared with those of the undamaged one. Half of the damaged files in `derived/` are sealed
again, as somebody would who means harm.

crash: the child was ended by a signal. stall: it took more than `SECONDS` of the processor, or `WALL` in all. raw: an
exception but SimsearchError, which the command line calls a bug. wrong: other neighbours, labels, paths, ids or
similarities than before, and `verify` finds nothing. misled: a structure that was sealed again finds other neighbours,
at true distances. Exits with 1 if there is any crash, stall, raw error or wrong answer.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import dataclasses
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

os.environ["OMP_NUM_THREADS"] = "1"  # children are forked

import faiss  # noqa: F401, imported once, before the children
import numpy as np
from PIL import Image

from simsearch.common.pca import fit_pca
from simsearch.engine import Engine
from simsearch.errors import SimsearchError
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import resolve
from simsearch.indexing import tune
from simsearch.indexing.compact import compact
from simsearch.models import load
from simsearch.models.hashing.encoder import HashEncoder
from simsearch.models.networks.configs import ConvNet4Config
from simsearch.models.safetensors_header import pack_header, read_header
from simsearch.models.weights import ModelCard, read_card, write
from simsearch.search import tuning
from simsearch.search.ann import AnnIndex, AnnSettings
from simsearch.search.binary_codes import BinaryCodeIndex
from simsearch.storage import derived
from simsearch.storage.creation import create
from simsearch.storage.database import Changes
from simsearch.storage.folder import Folder
from simsearch.storage.meta import Meta
from simsearch.storage.reader import Item
from simsearch.storage.verify import verify

SECONDS, WALL = 10, 120
"""Limits of a child: seconds of the processor, and in all."""

MEMORY = 4 << 30
"""Bytes of addresses that a child may use beyond those of its parent."""

ITEMS, DIMENSION = 300, 32

ODD = (0, -1, 1, 2**31, 2**63 - 1, 2**70, 1.5, 1e308, True, None, "", "x", "\x1b[2J", "/etc/passwd", "..", [], {}, [[]])


class Cells:
    """The model of the indexes, which computes nothing."""

    name, weights_sha256, engine, dimension = "cells", "ce" * 32, "numpy", DIMENSION
    recipe = Preprocessing(resize=16, crop=16)
    distances: tuple[float, ...] = (1.0, 2.0, 3.0)


# -- good files


def make_index(path: Path, kind: str, compacted: bool) -> None:
    """Makes an index with a search structure of a kind, and removed items."""
    features = np.random.default_rng(0).normal(0, 1, (ITEMS, DIMENSION)).astype(np.float16)
    create(path, Cells())  # type: ignore[arg-type]
    dataclasses.replace(Meta.read(path), rows_per_shard=128).write(path)
    with Engine(path, model=Cells()) as engine:  # type: ignore[arg-type]
        index = engine.index
        source = index.database.add_source("folder", "/nowhere", Path("/index"), {}).id
        items = [
            Item(0, source, f"{n:03}.png", f"label {n % 3}", {"n": n}, n.to_bytes(32, "big"), n, 0, 1, 1, n)
            for n in range(ITEMS)
        ]
        block = 0, ITEMS, index.feature_files.write(0, features)
        index.database.apply(Changes(inserted=items, blocks=[block]))
        if kind != "exact":
            choice = tuning.Choice(kind, 1.0, 0.9, 1.0, 9, 0.0, 0.0, 0, {})
            tune.record_choice(index, structure(kind, features), choice, 0.9)
        index.database.apply(Changes(deleted=[5, 6, 7]))
        if compacted:
            compact(index)


def structure(kind: str, features: np.ndarray) -> AnnIndex:
    rows = np.arange(len(features))
    if kind == "codes":
        weight = np.random.default_rng(1).standard_normal((DIMENSION, 64)).astype(np.float32)
        codes = HashEncoder(np.zeros(DIMENSION, np.float32), 2.0, (weight,), (np.zeros(64, np.float32),))
        return BinaryCodeIndex(AnnSettings("codes", 64, 100, 0), codes, codes(features), rows, len(rows))
    onto = fit_pca(features, 16)
    return tuning.build(AnnSettings(kind, 16, 100, 64), onto, onto(features), rows, len(rows))


def make_weights(path: Path) -> None:
    """Makes the weights of a small network."""
    from simsearch.models.networks.build import build_network

    arguments = {"num_classes": 5, "image_size": 32, "channels": (8, 8, 8)}
    network = build_network("convnet4", ConvNet4Config(**arguments))  # type: ignore[arg-type]
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    bits = {name: 4 for name, tensor in tensors.items() if tensor.ndim > 1}
    write(path, ModelCard("convnet4", arguments, Preprocessing(32, 32), tuple("abcde"), "A card."), tensors, bits)


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (number % 256, 99, 7)).save(out, "PNG")
    return out.getvalue()


def make_tables(folder: Path) -> None:
    (folder / "p.png").write_bytes(png(1))
    rows: list[dict[str, Any]] = [
        {"path": "p.png", "label": f"l{n}", "year": n, "x": [1, {"y": 2.5}]} for n in range(9)
    ]
    (folder / "m.jsonl").write_text(
        "".join(json.dumps({**row, "path": f"./p{n}.png"}) + "\n" for n, row in enumerate(rows))
    )
    with (folder / "m.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["path", "label", "year", "x"])
        table.writeheader()
        table.writerows(rows)
    with contextlib.suppress(ImportError):
        import pyarrow
        import pyarrow.parquet

        columns = {"image": [png(n) for n in range(9)], "label": ["a"] * 9, "year": list(range(9))}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "m.parquet")


def make_archives(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(5):
            archive.writestr(f"kind/{n}.png", png(n))
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz")):
        with tarfile.open(folder / name, mode, format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            for n in range(5):
                member = tarfile.TarInfo(f"kind/{n}.png")
                member.size, member.pax_headers = len(png(n)), {"mtime": "1.5", "comment": "x"}
                tar.addfile(member, io.BytesIO(png(n)))


# -- damage


def damaged(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Returns the bytes of a file, damaged in one of several ways. other: another file, for its parts."""
    out = bytearray(data)
    size = len(out)
    place = chance.randrange(size + 1)
    length = min(chance.choice([1, 2, 4, 8, 64, 1000]), max(size - place, 0))
    way = chance.randrange(9)
    if way <= 2:
        for _ in range(chance.choice([1, 1, 3, 30])):
            if size:
                out[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif way == 3:
        out[place : place + length] = bytes([chance.choice([0, 255, 128, 127])]) * length
    elif way == 4:
        out[place : place + length] = chance.randbytes(length)
    elif way == 5:
        del out[place:]
    elif way == 6:
        del out[place : place + length]
    elif way == 7:
        out[place:place] = chance.randbytes(chance.choice([1, 8, 5000]))
    else:
        start = chance.randrange(len(other) + 1)
        out[place : place + length] = other[start : start + length]
    return bytes(out)


def odd_json(value: Any, chance: random.Random) -> Any:
    """Returns JSON values with one of them replaced."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        return {**value, key: odd_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], odd_json(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD)


def odd_sql(path: Path, chance: random.Random) -> None:
    """Replaces a value in a database, or adds something to its schema."""
    connection = sqlite3.connect(path)
    tables = {
        "items": "id source path label metadata digest size stamp width height row",
        "state": "value key",
        "sources": "kind root relative options id",
        "blocks": "first rows crc32",
    }
    table = chance.choice(list(tables))
    column = chance.choice(tables[table].split())
    value = chance.choice(
        ["'x'", "x'ff00'", "-1", "1.5", str(2**62), "NULL", "''", "zeroblob(100000)", "'[' || zeroblob(9)", "'{}'", "7"]
    )
    scripts = [
        f"UPDATE {table} SET {column} = {value} WHERE rowid = {chance.randrange(1, 9)}",
        f"UPDATE {table} SET {column} = {value}",
        "CREATE TRIGGER t AFTER UPDATE ON state BEGIN DELETE FROM items; END",
        "CREATE VIEW v AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT * FROM n",
        f"DELETE FROM {table} WHERE rowid < {chance.randrange(9)}",
    ]
    with contextlib.suppress(sqlite3.Error):
        connection.execute(chance.choice([*scripts[:2], *scripts]))
        connection.commit()
    connection.close()


def damage_index(folder: Path, chance: random.Random) -> str:
    """Damages a file of an index and returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "writer.lock")
    in_derived = [path for path in files if "derived" in path.parts]
    path = chance.choice(in_derived) if in_derived and chance.random() < 0.5 else chance.choice(files)
    name, data, other = path.name, path.read_bytes(), chance.choice(files).read_bytes()
    if name == "meta.json" and chance.random() < 0.7:
        path.write_text(json.dumps(odd_json(json.loads(data), chance)))
        return f"{name}, value"
    if name == "items.sqlite" and chance.random() < 0.5:
        odd_sql(path, chance)
        return f"{name}, value"
    if path in in_derived and chance.random() < 0.5:
        content = damaged(data[: -derived.SEAL], other, chance)
        derived.write(Folder.at(path.parent), name, content)
        return f"{name}, sealed"
    path.write_bytes(damaged(data, other, chance))
    return name


def damage_weights(path: Path, chance: random.Random) -> str:
    data = path.read_bytes()
    if chance.random() < 0.4:
        path.write_bytes(damaged(data, data, chance))
        return "bytes"
    header = read_header(path)
    values = header.values()
    if chance.random() < 0.5:
        entry = odd_json(json.loads(values["__metadata__"]["simsearch"]), chance)
        values["__metadata__"]["simsearch"] = json.dumps(entry)
    else:
        values = odd_json(values, chance)
    path.write_bytes(pack_header(json.dumps(values)) + data[header.start :])
    return "header"


# -- reading in a child


def answers(path: Path) -> tuple[list[Any], list[Any], list[str]]:
    """Returns the neighbours, the items' texts, and the problems that `verify` finds."""
    near, texts = [], []
    queries = np.random.default_rng(9).normal(0, 1, (3, DIMENSION)).astype(np.float32)
    with Engine(path, model=Cells()) as engine:  # type: ignore[arg-type]
        for options in ({}, {"exact": True}, {"where": ["label=label 1"]}, {"where": ["n>=20"]}):
            for query in queries:
                found = engine.search_by_vector(query, 7, **options)  # type: ignore[arg-type]
                near.append([(match.id, round(match.distance, 4)) for match in found])
                texts.append([(match.path, match.label, match.metadata, round(match.similarity, 4)) for match in found])
        engine.info()
        engine.failures()
        return near, texts, list(verify(engine.index).problems)


def read_index(path: Path, expected: Any) -> str:
    near, texts, problems = answers(path)
    if problems:
        return "found by verify"
    allowed_near, allowed_texts, what = expected
    if near not in allowed_near:
        if "sealed" in what:
            return "misled"
        return f"wrong {next(pair for pair in zip(near, allowed_near[0], strict=True) if pair[0] != pair[1])}"
    return "same" if texts in allowed_texts else f"wrong {texts}"


def read_weights(path: Path, expected: Any) -> str:
    read_card(path)
    model = load.load_model(str(path), "cpu", images=1)
    features = model.features(np.zeros((1, 32, 32, 3), np.uint8))
    return "read" if features.shape == (1, model.dimension) else f"wrong shape {features.shape}"


def read_source(path: Path, expected: Any) -> str:
    source = resolve.resolve(str(path))
    listing = source.listing()
    for entry in listing.entries:
        with contextlib.suppress(SimsearchError):
            if not entry.problem:
                source.read(entry.path)
        json.dumps(entry.metadata, allow_nan=False)
        int(entry.stamp).to_bytes(8, "little", signed=True)
    source.close()
    return "read"


def in_child(read: Callable[[Path, Any], str], path: Path, expected: Any) -> str:
    """Reads a file in a child process and returns the outcome."""
    end, start = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        signal.alarm(WALL)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        logging.disable()
        try:
            outcome = read(path, expected)
        except SimsearchError as error:
            outcome = f"refused: {type(error).__name__}"
            if "should not happen" in str(error):
                outcome = f"raw {error}"
        except BaseException as error:
            outcome = f"raw {type(error).__name__}: {error}"
        os.write(start, outcome[:500].encode("utf-8", "replace"))
        os._exit(0)
    os.close(start)
    with open(end, "rb") as file:
        text = file.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in {signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL}:
        return f"stall ({signal.Signals(number).name})"
    return f"crash ({signal.Signals(number).name})" if number else text


def isolated(make: Callable[[], Any]) -> Any:
    """Calls a function in a child, so that this process starts no threads, and returns its JSON result."""

    def act(path: Path, expected: Any) -> str:
        Path(path).write_text(json.dumps(make()))
        return "made"

    with tempfile.NamedTemporaryFile() as file:
        outcome = in_child_without_limits(act, Path(file.name))
        if outcome != "made":
            raise RuntimeError(outcome)
        return json.loads(Path(file.name).read_text())


def in_child_without_limits(act: Callable[[Path, Any], str], path: Path) -> str:
    global SECONDS, MEMORY
    kept = SECONDS, MEMORY
    SECONDS, MEMORY = 600, 1 << 40
    try:
        return in_child(act, path, None)
    finally:
        SECONDS, MEMORY = kept


# -- modes


def cases(mode: str, work: Path, chance: random.Random) -> Iterator[tuple[str, Path, Callable[[Path, Any], str], Any]]:
    """Yields without end: what was damaged, the damaged file or folder, its reader, and the expected answers."""
    good = work / "good"
    good.mkdir()
    bad = work / "bad"
    if mode == "index":
        kinds = [(kind, c) for kind in ("exact", "hnsw", "ivf", "pq", "sq8", "rabitq", "codes") for c in (False, True)]
        expected = {}
        for kind, compacted in kinds:
            path = good / f"{kind}{compacted:d}"
            isolated(lambda path=path, kind=kind, compacted=compacted: make_index(path, kind, compacted))  # type: ignore[misc]
            found = []
            for without in (False, True):  # where its structure is damaged, a search is exact
                shutil.copytree(path, bad, ignore=shutil.ignore_patterns("derived") if without else None)
                near, texts, problems = isolated(lambda: answers(bad))
                assert not problems, problems
                found.append(([[tuple(pair) for pair in each] for each in near], tupled(texts)))
                shutil.rmtree(bad)
            expected[path] = found
        while True:
            path = chance.choice(list(expected))
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(path, bad, ignore=shutil.ignore_patterns("writer.lock"))
            what = damage_index(bad, chance)
            near, texts = zip(*expected[path], strict=True)
            yield f"{path.name[:-1]}: {what}", bad, read_index, (near, texts, what)
    if mode == "weights":
        file = good / "w.safetensors"
        isolated(lambda: make_weights(file))
        while True:
            shutil.copy(file, bad.with_suffix(".safetensors"))
            what = damage_weights(bad.with_suffix(".safetensors"), chance)
            yield what, bad.with_suffix(".safetensors"), read_weights, None
    isolated(lambda: {"tables": make_tables, "archives": make_archives}[mode](good))
    files = sorted(path for path in good.iterdir() if path.suffix != ".png")
    while True:
        path = chance.choice(files)
        data, place = path.read_bytes(), work / f"bad{''.join(path.suffixes)}"
        if path.suffix == ".jsonl" and chance.random() < 0.5:
            lines = data.splitlines()
            number = chance.randrange(len(lines))
            lines[number] = json.dumps(odd_json(json.loads(lines[number]), chance)).encode()
            place.write_bytes(b"\n".join(lines))
        else:
            place.write_bytes(damaged(data, chance.choice(files).read_bytes(), chance))
        yield path.name, place, read_source, None


def tupled(texts: list[Any]) -> list[Any]:
    return [[tuple(match) for match in found] for found in texts]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["index", "weights", "tables", "archives"])
    parser.add_argument("--count", type=int, default=5000, help="Damaged files.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="Stop after this time.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="Keep what failed in this folder.")
    options = parser.parse_args(arguments)
    counts: collections.Counter[str] = collections.Counter()
    faults = collections.Counter[str]()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        os.environ["SIMSEARCH_CACHE"] = f"{folder}/cache"
        made = cases(options.mode, Path(folder), random.Random(options.seed))
        for number, (what, path, read, expected) in zip(range(options.count), made, strict=False):
            if time.monotonic() - begun > 60 * options.minutes:
                break
            outcome = in_child(read, path, expected)
            kind = outcome.split(" ")[0].rstrip(":")
            counts[outcome if kind in {"refused", "found"} else kind] += 1
            if kind in {"crash", "stall", "raw", "wrong"} or not outcome:
                faults[kind or "crash"] += 1
                print(f"{number}: {what}: {outcome}", flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, options.keep / f"{number}-{path.name}")
    print(f"{options.mode}: {counts.total():,} damaged, seed {options.seed}, {time.monotonic() - begun:,.0f} s")
    for outcome, count in counts.most_common():
        print(f"{count:8,}  {outcome}")
    shown = ", ".join(f"{faults[kind]} {kind}" for kind in ("crash", "stall", "raw", "wrong"))
    print(f"faults: {shown}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
