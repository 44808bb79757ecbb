"""Damaged indexes: `verify` finds it, searching says so or is right, and nothing but SimsearchError ever comes out."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click.testing
import numpy as np
import pytest

from simsearch import api
from simsearch.cli.main import main
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, IndexNotFoundError, SimsearchError, UsageError
from simsearch.indexing import meta_update
from simsearch.storage.creation import create
from simsearch.storage.export import export_npy
from simsearch.storage.feature_files import PREAMBLE
from simsearch.storage.verify import verify
from tests.helpers.data import ROOT
from tests.helpers.filler import Filler, Wide
from tests.helpers.models import Colours
from tests.helpers.pictures import draw

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIMENSION, ROWS, PER_SHARD = 8, 150, 64
MODEL = Wide(DIMENSION)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of 150 items in three shards."""
    filler = Filler(tmp_path / "index", DIMENSION, PER_SHARD)
    random = np.random.default_rng(0)
    for count in (60, 60, 30):
        filler.add(random.normal(size=(count, DIMENSION)))
    filler.engine.close()
    with Engine(filler.path, model=MODEL) as engine:
        meta_update.refresh_meta(engine.index)
        assert verify(engine.index).problems == ()
    return filler.path


def shard(index: Path, number: int = 1) -> Path:
    return index / "features" / f"{number:06d}.f16"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


def sql(index: Path, statement: str) -> None:
    connection = sqlite3.connect(index / "items.sqlite")
    with connection:
        connection.executescript(statement)
    connection.close()


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def edit_meta(index: Path, **values: Any) -> None:
    """Sets keys of meta.json, or removes those that are None."""
    facts = json.loads((index / "meta.json").read_text()) | values
    (index / "meta.json").write_text(json.dumps({key: value for key, value in facts.items() if value is not None}))


def problems(index: Path) -> str:
    with Engine(index, model=MODEL) as engine:
        return "\n".join(verify(engine.index).problems)


def search_everything(index: Path, folder: Path) -> None:
    """All kinds of reading."""
    with Engine(index, model=MODEL) as engine:
        engine.search_by_vector(np.zeros(DIMENSION), 200)
        engine.search_by_vector(np.zeros(DIMENSION), 3, where=["label=one", "n>5"])
        engine.search_by_id(70, 5)
        engine.find(["0001*", "id:3"])
        engine.failures()
        engine.info()
        export_npy(engine.opened_index, folder)


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    result = click.testing.CliRunner().invoke(main, arguments)
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr


# -- verify finds

FOUND: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit of a row": (lambda i: flip(shard(i), PREAMBLE + 100), "rows 60 to 119 have checksum"),
    "flipped last bit": (
        lambda i: flip(shard(i, 2), PREAMBLE + (ROWS - 128) * 16 - 1),
        "rows 120 to 149 have checksum",
    ),
    "flipped bit of a preamble": (lambda i: flip(shard(i), 5), "does not begin like feature file 1 of dimension 8"),
    "flipped bit of the padding": (lambda i: flip(shard(i), PREAMBLE - 1), "does not begin like feature file 1"),
    "shard cut short": (lambda i: truncate(shard(i, 2), PREAMBLE + 7), "too few for 22 rows"),
    "shard cut to nothing": (lambda i: truncate(shard(i, 0), 0), "has 0 bytes"),
    "missing shard": (lambda i: shard(i).unlink(), "000001.f16: No such file"),
    "shards exchanged": (
        lambda i: (shard(i, 0).rename(i / "x"), shard(i, 1).rename(shard(i, 0)), (i / "x").rename(shard(i, 1))),
        "does not begin like feature file 0",
    ),
    "all shards missing": (lambda i: shutil.rmtree(i / "features"), "000000.f16: No such file"),
    "impossible row": (lambda i: sql(i, "UPDATE items SET row = 5000 WHERE id = 70"), "owns row 5000 of the features"),
    "negative row": (lambda i: sql(i, "UPDATE items SET row = -1 WHERE id = 70"), "an item owns row -1"),
    "lost block": (lambda i: sql(i, "DELETE FROM blocks WHERE first = 60"), "rows 60 to 119 have no checksum"),
    "overlapping blocks": (
        lambda i: sql(i, "UPDATE blocks SET rows = 65 WHERE first = 0"),
        "rows 60 to 64 have several checksums",
    ),
    "wrong count of rows": (
        lambda i: sql(i, "UPDATE state SET value = 151 WHERE key = 'rows'"),
        "151 rows are recorded",
    ),
    "impossible count of rows": (lambda i: sql(i, "UPDATE state SET value = 1 << 60 WHERE key = 'rows'"), "000003.f16"),
    "no count of rows": (lambda i: sql(i, "DELETE FROM state WHERE key = 'rows'"), "the state 'rows' is missing"),
    "lost source": (lambda i: sql(i, "DELETE FROM sources"), "150 items belong to no source"),
    "checksum that is no number": (lambda i: sql(i, "UPDATE blocks SET crc32 = 'x'"), "a checksum cannot be read"),
    "failure without a path": (lambda i: sql(i, "INSERT INTO failures VALUES (1, 7, 'x')"), "a failure cannot be read"),
    "another label": (
        lambda i: sql(i, "UPDATE items SET label = 'x' WHERE id = 7"),
        "items and failures have checksum",
    ),
    "another path": (
        lambda i: sql(i, "UPDATE items SET path = x'61' WHERE id = 7"),
        "items and failures have checksum",
    ),
    "another id": (lambda i: sql(i, "UPDATE items SET id = 1000 WHERE id = 150"), "items and failures have checksum"),
    "rows exchanged": (
        lambda i: sql(
            i,
            "UPDATE items SET row = 999 WHERE id = 7; UPDATE items SET row = 6 WHERE id = 8;"
            "UPDATE items SET row = 7 WHERE id = 7",
        ),
        "items and failures have checksum",
    ),
    "another reason": (
        lambda i: sql(i, "INSERT INTO failures VALUES (1, x'61', 'x')"),
        "items and failures have checksum",
    ),
    "another root": (lambda i: sql(i, "UPDATE sources SET root = x'2f'"), "the sources have checksum"),
    "later checksums": (
        lambda i: sql(i, "UPDATE state SET value = value + 1 WHERE key = 'sums_of'"),
        "but the checksums are of generation",
    ),
    "another calibration": (lambda i: edit_meta(i, distances=[1.0, 2.0]), "meta.json: its values have checksum"),
    "lost item": (lambda i: sql(i, "DELETE FROM items WHERE id = 7"), "meta.json counts 150 items"),
    "metadata that is no JSON": (
        lambda i: sql(i, "UPDATE items SET metadata = '{' WHERE id = 7"),
        "item 7 cannot be read",
    ),
    "options that are no JSON": (lambda i: sql(i, "UPDATE sources SET options = '{'"), "a source cannot be read"),
    "wrong count in meta.json": (lambda i: edit_meta(i, items=149), "meta.json counts 149 items"),
    "other dimension": (lambda i: edit_meta(i, dimension=4), "of dimension 4"),
    "other rows per shard": (lambda i: edit_meta(i, rows_per_shard=63), "checksum"),
}


@pytest.mark.parametrize("damage", FOUND)
def test_verify_finds(index: Path, tmp_path: Path, damage: str) -> None:
    act, message = FOUND[damage]
    act(index)
    try:
        found = problems(index)
    except IndexDamagedError as error:  # so bad that it does not even open
        found = str(error)
    assert message in found
    code, stderr = run("verify", "-i", str(index))
    assert code == 3
    assert message in stderr
    assert stderr.startswith("error: ")


UNOPENED: dict[str, Callable[[Path], object]] = {
    "missing items.sqlite": lambda i: (i / "items.sqlite").unlink(),
    "items.sqlite a folder": lambda i: replace_by_folder(i / "items.sqlite"),
    "empty items.sqlite": lambda i: (i / "items.sqlite").write_bytes(b""),
    "garbage items.sqlite": lambda i: (i / "items.sqlite").write_bytes(b"garbage" * 1000),
    "items.sqlite cut short": lambda i: truncate(i / "items.sqlite", 5000),
    "garbage header": lambda i: (i / "items.sqlite").write_bytes(
        b"\xff" * 4096 + (i / "items.sqlite").read_bytes()[4096:]
    ),
    "no tables": lambda i: sql(i, "DROP TABLE state; DROP TABLE items; DROP TABLE sources"),
    "missing meta.json": lambda i: (i / "meta.json").unlink(),
    "empty meta.json": lambda i: (i / "meta.json").write_text(""),
    "garbage meta.json": lambda i: (i / "meta.json").write_bytes(b"\xff\xfe{"),
    "meta.json a list": lambda i: (i / "meta.json").write_text("[1]"),
    "meta.json a folder": lambda i: replace_by_folder(i / "meta.json"),
    "meta.json without format": lambda i: edit_meta(i, format=None),
    "meta.json without model": lambda i: edit_meta(i, model=None),
    "meta.json without dimension": lambda i: edit_meta(i, dimension=None),
    "meta.json without recipe": lambda i: edit_meta(i, recipe=None),
    "dimension of no number": lambda i: edit_meta(i, dimension="8"),
    "dimension 0": lambda i: edit_meta(i, dimension=0),
    "no rows per shard": lambda i: edit_meta(i, rows_per_shard=0),
    "recipe of no object": lambda i: edit_meta(i, recipe=[]),
    "recipe of no numbers": lambda i: edit_meta(i, recipe={"resize": "256", "crop": "224"}),
    "distances of no numbers": lambda i: edit_meta(i, distances=["near", "far"]),
    "search of nothing": lambda i: edit_meta(i, search={}),
    "storage of the future": lambda i: edit_meta(i, storage="float8"),
}


@pytest.mark.parametrize("damage", UNOPENED)
def test_opening_says_damaged(index: Path, damage: str) -> None:
    UNOPENED[damage](index)
    with pytest.raises(IndexDamagedError) as caught:
        Engine(index, model=MODEL)
    assert str(index) in str(caught.value)
    for command in (["verify"], ["query", "id:1"], ["info"], ["remove", "id:1", "--yes"]):
        code, stderr = run(*command, "-i", str(index))
        assert code == 3, command
        assert len([line for line in stderr.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "missing shard",
        "all shards missing",
        "shard cut short",
        "shard cut to nothing",
        "impossible row",
        "negative row",
        "lost source",
    ],
)
@pytest.mark.parametrize("direct", [0, 2048])
def test_searching_says_damaged(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, direct: int
) -> None:
    monkeypatch.setattr("simsearch.search.exact.DIRECT", direct)
    FOUND[damage][0](index)
    with Engine(index, model=MODEL) as engine:
        for where in (None, "label!=x", "n>=10"):
            with pytest.raises(IndexDamagedError):
                engine.search_by_vector(np.zeros(DIMENSION), 150, where=where)
        with pytest.raises(IndexDamagedError):
            export_npy(engine.opened_index, tmp_path / "out")
        with pytest.raises(IndexDamagedError):
            engine.search_by_id(70, 150)
    assert run("query", "id:70", "-k", "150", "-i", str(index))[0] == 3
    assert run("export", "-o", str(tmp_path / "out"), "-i", str(index))[0] == 3


@pytest.mark.parametrize("name", ["items.sqlite", "meta.json", "features/000001.f16"])
def test_random_damage_gives_only_our_errors(index: Path, tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(20)
    whole = (index / name).read_bytes()
    found = 0
    for _ in range(40):
        data = bytearray(whole)
        for place in random.integers(0, len(data), random.choice([1, 3, 30])):
            data[place] = random.choice([0, 255, data[place] ^ 1, data[place] ^ 128])
        if random.random() < 0.2:
            del data[int(random.integers(len(data))) :]
        (index / name).write_bytes(data)
        try:
            search_everything(index, tmp_path / "out")
        except SimsearchError:
            found += 1
        try:
            found += bool(problems(index))
        except SimsearchError:
            found += 1
    assert found > 10


# -- no damage


def test_bytes_after_committed_rows_are_harmless(tmp_path: Path) -> None:
    """A writer that died left part of its rows behind; the next one writes over them."""
    path, model = tmp_path / "index", Colours()
    for n in range(10):
        draw(tmp_path / "photos" / f"{n}.png", n)
    api.build(tmp_path / "photos", path, model).close()
    with shard(path, 0).open("ab") as file:
        file.write(b"\xff" * 1001)
    shard(path, 1).write_bytes(b"half a file that was never committed")
    with Engine(path, model=model) as engine:
        assert verify(engine.index).problems == ()
        before = [(match.id, match.distance) for match in engine.search_by_vector(np.zeros(12), 20)]
        for n in range(10, 15):
            draw(tmp_path / "photos" / f"{n}.png", n)
        engine.add([tmp_path / "photos"])
        assert verify(engine.index).problems == ()
        after = [(match.id, match.distance) for match in engine.search_by_vector(np.zeros(12), 20)]
        assert [pair for pair in after if pair[0] <= 10] == before
        assert len(after) == 15
        features = engine.features([tmp_path / "photos" / "12.png"])
        assert engine.search_by_vector(features[0], 1)[0].distance == 0


def test_table_of_another_length_will_do(index: Path) -> None:
    edit_meta(index, distances=[1.0, 2.0, 5.0])
    with Engine(index, model=MODEL) as engine:
        found = engine.search_by_vector(np.zeros(DIMENSION), ROWS)
    similarities = [match.similarity for match in found]
    assert similarities == sorted(similarities, reverse=True)
    assert 1 > similarities[0] > 0


def test_half_written_meta_is_ignored(index: Path) -> None:
    (index / ".meta.json.partial").write_text('{"model": "al')
    assert problems(index) == ""


def test_lagging_meta_is_no_damage(index: Path) -> None:
    """A writer that died after its commit left meta.json behind the database."""
    sql(index, "DELETE FROM items WHERE id = 7")
    sql(index, "UPDATE state SET value = value + 1 WHERE key = 'generation'")
    assert problems(index) == ""
    with Engine(index, model=MODEL) as engine:
        meta_update.refresh_meta(engine.index)
    assert json.loads((index / "meta.json").read_text())["items"] == ROWS - 1


def test_missing_index_and_future_format_exit_2(index: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError) as caught:
        Engine(tmp_path / "nowhere")
    make = f'make one: simsearch.build(SOURCE, index="{tmp_path}/nowhere")'
    assert caught.value.hint == f'there is an index "{tmp_path}/index"; or {make}'  # not the shell's, as below
    with pytest.raises(IndexNotFoundError) as caught:
        Engine(tmp_path / "idnex")
    assert str(caught.value.hint).startswith(f'did you mean "{tmp_path}/index"? or make one: ')
    for command in (["verify"], ["query", "id:1"], ["info"]):
        code, stderr = run(*command, "-i", str(tmp_path / "nowhere"))
        assert code == 2
        assert "there is no index at" in stderr
        assert "make one: simsearch build" in stderr
    edit_meta(index, format=2)
    with pytest.raises(UsageError, match="format 2"):
        Engine(index, model=MODEL)
    code, stderr = run("verify", "-i", str(index))
    assert code == 2
    assert "hint: upgrade" in stderr


def test_half_made_index_is_completed(tmp_path: Path) -> None:
    model = Colours()
    draw(tmp_path / "photos" / "0.png", 0)
    api.build(tmp_path / "photos", tmp_path / "index", model).close()
    shutil.rmtree(tmp_path / "index" / "features")
    (tmp_path / "index" / "features").mkdir()
    (tmp_path / "index" / "items.sqlite").unlink()
    (tmp_path / "index" / "meta.json").unlink()
    with pytest.raises(IndexNotFoundError):
        Engine(tmp_path / "index", model=model)
    with api.build(tmp_path / "photos", tmp_path / "index", model) as engine:
        assert verify(engine.index).problems == ()
        assert len(engine) == 1


# -- the disk

READER = """
import os, shutil, sys
from pathlib import Path
from simsearch.engine import Engine
from simsearch.errors import SimsearchError
from simsearch.storage.verify import verify
from tests.storage.test_damage import MODEL, search_everything

index, out = Path(sys.argv[1]), Path(sys.argv[2])
search_everything(index, out)  # imports what will be out of reach
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
search_everything(index, out)
with Engine(index, model=MODEL) as engine:
    assert verify(engine.index).problems == ()
    print(len(engine), flush=True)
    for action in (lambda: engine.remove([1]), lambda: engine.relocate({'': '/'})):
        try:
            action()
        except SimsearchError as error:
            print(error, flush=True)
    sys.stdin.readline()
    print(len(engine), engine.search_by_id(70, 1)[0].id, flush=True)
"""


def test_read_only_folder_is_read(index: Path, public: Path) -> None:
    """By somebody without the right to write, who also sees what its owner adds meanwhile."""
    place = public / "index"
    shutil.copytree(index, place)
    (public / "out").mkdir()
    (public / "out").chmod(0o777)
    paths = [place, *place.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    command = [sys.executable, "-c", READER, str(place), str(public / "out")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
        sql(place, "DELETE FROM items WHERE id < 70")
        sql(place, "UPDATE state SET value = value + 1 WHERE key = 'generation'")
        out, err = process.communicate("\n", timeout=60)
    assert process.returncode == 0, err
    assert lines[0] == "150\n"
    assert all("cannot be written: Permission denied" in line for line in lines[1:])
    assert out.startswith("81 ")
    assert int(out.split()[1]) > 70


class Large(Colours):
    """Features of 2000 bytes, so that shards are the largest files of an index."""

    dimension = 1000

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.tile(super().features(pixels)[:, :10], 100)


@pytest.mark.parametrize(("limit", "name"), [(6_000, "items.sqlite"), (40_000, "000000.f16")])
def test_full_disk_is_no_damage(photos: Path, tmp_path: Path, limit: int, name: str) -> None:
    """Files that may not grow behave like a full disk: the build fails in one line and can be gone on with."""
    path, colours = tmp_path / "index", Large()
    create(path, colours)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(SimsearchError, match=f"{name} cannot be") as caught:
            api.build(photos, path, colours)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not isinstance(caught.value, IndexDamagedError | UsageError)
    with Engine(path, model=colours) as engine:
        assert verify(engine.index).problems == ()
    with api.build(photos, path, colours) as engine:
        assert len(engine) == 24
        assert verify(engine.index).problems == ()


@pytest.mark.parametrize("row", [5000, -1])
def test_row_that_does_not_exist_is_damage(index: Path, row: int) -> None:
    sql(index, f"UPDATE items SET row = {row} WHERE id = 70; DELETE FROM items WHERE id = 1")
    with Engine(index, model=MODEL) as engine:
        for options in ({}, {"exact": True}, {"where": ["id>60"]}):
            with pytest.raises(IndexDamagedError, match=f"an item owns row {row}"):
                engine.search_by_vector(np.zeros(8, np.float32), 3, **options)
