"""The works of kill.py: all that writes an index, each with a dictionary of what the index has to hold afterwards.

A new kind of work is a function here, from a world to a `Task`, and an entry of `WORKS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from simsearch import api
from simsearch.common.float16 import to_float16
from simsearch.common.machine import MemoryBudget
from simsearch.common.pca import fit_pca
from simsearch.engine import Engine
from simsearch.errors import ItemNotFoundError
from simsearch.images.preprocessing import Preprocessing
from simsearch.indexing import compact, merge, sketches, tune
from simsearch.search import tuning
from simsearch.search.ann import AnnSettings
from simsearch.server.uploads import Uploads

DIMENSION = 48


class Cells:
    """The model: the mean red, green and blue of 16 cells of a picture."""

    name, weights_sha256, engine, dimension = "cells", "ce" * 32, "numpy", DIMENSION
    recipe = Preprocessing(resize=16, crop=16)
    distances: tuple[float, ...] = ()

    def __init__(self) -> None:
        self.computed = 0

    def features(self, pixels: np.ndarray) -> np.ndarray:
        self.computed += len(pixels)
        cells = pixels.reshape(-1, 4, 4, 4, 4, 3).mean((2, 4), dtype=np.float32)
        return cells.reshape(len(cells), DIMENSION) / np.float32(255)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Thing:
    """Facts about an item that an index must have. picture: the number of its drawing. id: None until it is known."""

    picture: int
    label: str | None
    id: int | None = None


Key = tuple[str, str]
"""The root of a source, and a path in it."""


@dataclass
class World:
    """The pictures and the expected items. items: as of the last work that ended well."""

    folder: Path
    chance: random.Random
    size: int
    items: dict[Key, Thing] = field(default_factory=dict)
    pictures: int = 0
    others: int = 0

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    def new_picture(self) -> int:
        self.pictures += 1
        return self.pictures

    def draw_new(self, path: Path) -> int:
        """Draws a new picture at a path; returns its number."""
        number = self.new_picture()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(number))
        return number


def drawn(number: int) -> bytes:
    """Returns a small picture, another one for each number, as a PPM file."""
    cells = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    return b"P6 16 16 255\n" + np.kron(cells, np.ones((4, 4, 1), np.uint8)).tobytes()


def expected_features(number: int) -> np.ndarray:
    """Returns the (D,) features of a picture as the index stores them."""
    pixels = np.frombuffer(drawn(number)[13:], np.uint8).reshape(1, 16, 16, 3)
    return to_float16(Cells().features(pixels))[0]


@dataclass
class Task:
    """A work on the index.

    act: does it, in another process; called with the index's path and a function that acknowledges a key.
    after: the expected items. acknowledged: what must be true of a key once `act` acknowledged it, True: it is there.
    computes: True if the number of computed pictures is checked. uploads: True if no file may be left without a line.
    """

    act: Callable[[Path, Callable[[str], None]], None]
    after: dict[Key, Thing]
    acknowledged: dict[str, bool] = field(default_factory=dict)
    computes: bool = False
    uploads: bool = False


model = Cells()
"""Of this process; its children count on."""


def engine_of(index: Path) -> Engine:
    return Engine(index, model=model)  # type: ignore[arg-type]


def build(world: World) -> Task:
    """A build after new, changed, moved, relabelled, copied and deleted files."""
    chance, root = world.chance, str(world.photos)
    after = {key: thing for key, thing in world.items.items() if key[0] != root}
    files: dict[str, int] = {}
    for path in sorted(world.photos.rglob("*.ppm")) if world.photos.exists() else ():
        name, known = str(path.relative_to(world.photos)), int(path.stem.split("-")[-1])
        what = chance.random()
        if what < 0.06:
            path.unlink()
            continue
        if what < 0.12:  # changed: the name says which picture it is
            known = world.draw_new(path)
            path.rename(path.with_stem(f"{path.stem.split('-')[0]}-{known}"))
            name = str(path.with_stem(f"{path.stem.split('-')[0]}-{known}").relative_to(world.photos))
        elif what < 0.18:  # moved, and so labelled otherwise
            target = world.photos / chance.choice("abc") / f"m{world.new_picture()}-{known}.ppm"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
            name = str(target.relative_to(world.photos))
        elif what < 0.20:
            copy = path.with_stem(f"c{world.new_picture()}-{known}")
            shutil.copy(path, copy)
            files[str(copy.relative_to(world.photos))] = known
        files[name] = known
    while len(files) < world.size or chance.random() < 0.7:
        number = world.new_picture()
        path = world.photos / chance.choice("abc") / f"p-{number}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(number))
        files[str(path.relative_to(world.photos))] = number
    before = {key[1]: thing for key, thing in world.items.items() if key[0] == root}
    for name, number in files.items():
        known_id = before[name].id if name in before and before[name].picture == number else None
        after[root, name] = Thing(number, name.split("/")[0], known_id)

    def act(index: Path, acknowledge: Callable[[str], None]) -> None:
        api.build(world.photos, index, model, workers=1, batch_size=chance.choice([1, 4, 16])).close()  # type: ignore[arg-type]

    return Task(act, after, computes=True)


def add(world: World) -> Task:
    """Adds a folder of new pictures and some that are known."""
    world.others += 1
    folder = world.folder / f"more{world.others}"
    after = dict(world.items)
    for _ in range(world.chance.randrange(1, 9)):
        number = world.new_picture()
        if world.chance.random() < 0.2 and world.items:
            number = world.chance.choice(list(world.items.values())).picture
        path = folder / f"{world.new_picture()}.ppm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(drawn(number))
        after[str(folder), path.name] = Thing(number, None)

    def act(index: Path, acknowledge: Callable[[str], None]) -> None:
        with engine_of(index) as engine:
            engine.add(folder, workers=1, batch_size=3)

    return Task(act, after, computes=True)


def remove(world: World) -> Task:
    """Removes items by id, one after the other."""
    chosen = world.chance.sample(sorted(world.items), min(len(world.items), world.chance.randrange(1, 9)))
    ids = [(key, world.items[key].id) for key in chosen]

    def act(index: Path, acknowledge: Callable[[str], None]) -> None:
        with engine_of(index) as engine:
            for key, number in ids:
                with engine.reading() as reader:
                    there = number in reader.ids_and_rows()[0]
                if there:  # not removed by the first run
                    engine.remove([f"id:{number}"])
                acknowledge("\n".join(key))

    after = {key: thing for key, thing in world.items.items() if key not in chosen}
    return Task(act, after, {"\n".join(key): False for key in chosen})


def tune_index(world: World) -> Task:
    """Makes a search structure of a random kind."""
    kind = world.chance.choice(["hnsw", "ivf", "sq8", "exact"])

    def act(index: Path, acknowledge: Callable[[str], None]) -> None:
        with engine_of(index) as engine:
            flat, rows = tune.open_flat(engine.index)
            made = None
            if kind != "exact" and len(rows) > 20:
                features = flat.read(rows)
                onto = fit_pca(features, 16)
                made = tuning.build(AnnSettings(kind, 16, 100, 64), onto, onto(features), rows, flat.rows)
                made.compactions = flat.shards.compactions
            choice = tuning.Choice(kind if made else "exact", 1.0, 0.9, 1.0, 9, 0.0, 0.0, 0, {})
            tune.record_choice(engine.index, made, choice, 0.9)

    return Task(act, dict(world.items))


def compact_index(world: World) -> Task:
    """Compacts, after items were removed."""

    def act(index: Path, acknowledge: Callable[[str], None]) -> None:
        with engine_of(index) as engine:
            compact.compact(engine.index)

    return Task(act, dict(world.items))


def merge_index(world: World) -> Task:
    """Merges another index, which has pictures of its own and some of this one's."""
    world.others += 1
    folder = world.folder / f"other{world.others}"
    after = dict(world.items)
    for _ in range(world.chance.randrange(1, 9)):
        number = world.new_picture()
        if world.chance.random() < 0.2 and world.items:
            number = world.chance.choice(list(world.items.values())).picture
        path = folder / "photos" / f"{world.new_picture()}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(number))
        after[str(folder / "photos"), path.name] = Thing(number, None)

    def act(index: Path, acknowledge: Callable[[str], None]) -> None:
        other = folder / "index"
        if not other.exists():  # outside the index: no fault strikes it
            api.build(folder / "photos", folder / "made", model, workers=1).close()  # type: ignore[arg-type]
            (folder / "made").rename(other)
        with engine_of(index) as engine, engine_of(other) as given:
            merge.merge_indexes(engine.index, given.index)

    return Task(act, after)


def upload(world: World) -> Task:
    """Adds pictures as a service does, and removes uploaded ones."""
    chance, root = world.chance, str(world.index / "uploads" / "items.jsonl")
    old = [key for key in sorted(world.items) if key[0] == root]
    gone = chance.sample(old, min(len(old), chance.randrange(3)))
    after = {key: thing for key, thing in world.items.items() if key not in gone}
    ids = [(key, world.items[key].id) for key in gone]
    sent = []
    for _ in range(chance.randrange(1, 5)):
        number = world.new_picture()
        label = chance.choice([None, "x", "y"])
        key = root, upload_name(number)
        sent.append((key, number, label))
        after[key] = Thing(number, label)

    def act(index: Path, acknowledge: Callable[[str], None]) -> None:
        uploads = Uploads()
        with engine_of(index) as engine:
            for key, number, label in sent:
                query = {"image": drawn(number), **({"label": label} if label else {})}
                uploads.add(engine, query, 1 << 24, MemoryBudget(1 << 24))
                acknowledge("\n".join(key))
            for key, known in ids:
                with contextlib.suppress(ItemNotFoundError):
                    uploads.remove(engine, known)  # type: ignore[arg-type]
                acknowledge("\n".join(key))

    acknowledged = {"\n".join(key): True for key, *_ in sent} | {"\n".join(key): False for key in gone}
    return Task(act, after, acknowledged, uploads=True)


def upload_name(number: int) -> str:
    """Returns the SHA-256 of a picture's file, which is the name of its upload."""
    return hashlib.sha256(drawn(number)).hexdigest()


def sketch(world: World) -> Task:
    """Makes the sketch of exact searches again."""

    def act(index: Path, acknowledge: Callable[[str], None]) -> None:
        with engine_of(index) as engine, engine.index.writing():
            engine.index.refresh()
            engine.index.write_meta(dataclasses.replace(engine.index.meta, sketch={}))
            sketches.update(engine.index)

    return Task(act, dict(world.items))


WORKS: dict[str, tuple[Callable[[World], Task], int]] = {
    "build": (build, 6),
    "add": (add, 3),
    "remove": (remove, 2),
    "tune": (tune_index, 2),
    "compact": (compact_index, 3),
    "merge": (merge_index, 2),
    "upload": (upload, 3),
    "sketch": (sketch, 2),
}
"""Each work by name, and how often it is drawn."""
