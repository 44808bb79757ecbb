"""Indexes that somebody sent: odd files are refused in bounded time, and nothing outside the folder is touched."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest

from simsearch import api
from simsearch.cli.main import main
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, SimsearchError, UsageError
from simsearch.indexing.compact import compact
from simsearch.storage import protection
from simsearch.storage.folder import Folder, NotRegularError
from simsearch.storage.lock import writer_lock
from simsearch.storage.meta import Meta
from simsearch.storage.verify import verify
from tests.helpers.filler import Filler
from tests.helpers.models import Colours
from tests.helpers.pictures import draw

PRECIOUS = b"precious " * 1000


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    result = click.testing.CliRunner().invoke(main, arguments)
    assert "Traceback" not in result.output
    assert "this is a bug" not in result.stderr
    return result.exit_code, result.stderr


def sql(index: Path, script: str) -> None:
    connection = sqlite3.connect(index / "items.sqlite")
    connection.executescript(script)
    connection.close()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        draw(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def index(tmp_path: Path, photos: Path) -> Path:
    api.build(photos, tmp_path / "index", Colours()).close()
    return tmp_path / "index"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    (tmp_path / "precious").write_bytes(PRECIOUS)
    return tmp_path / "precious"


# -- links

NAMES = (
    "writer.lock",
    ".meta.json.partial",
    "meta.json",
    "items.sqlite",
    "items.sqlite-wal",
    "items.sqlite-shm",
    "items.sqlite-journal",
    "components.safetensors",
    "features/000000.f16",
    "features/000001.f16",
    "features/000000.1.f16",
    "features",
    "derived",
    "uploads",
)


def use_everything(index: Path, photos: Path) -> None:
    """All verbs that write, each of which may be refused."""
    draw(photos / "new.png", 77)
    actions: tuple[Callable[[Engine], object], ...] = (
        lambda engine: engine.add([photos]),
        lambda engine: engine.remove([1]),
        lambda engine: compact(engine.index),
        lambda engine: engine.relocate({"": str(photos)}),
        lambda engine: verify(engine.index),
        lambda engine: engine.search_by_vector(np.zeros(12), 3),
        lambda engine: engine.info(),
    )
    for action in actions:
        try:
            with Engine(index, model=Colours()) as engine:
                action(engine)
        except SimsearchError:
            continue
    with contextlib.suppress(SimsearchError):
        api.build(photos, index, Colours()).close()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_links_are_not_written_through(index: Path, photos: Path, precious: Path, name: str, hard: bool) -> None:
    place, outside = index / name, precious
    if name in {"features", "derived", "uploads"}:
        if hard:
            return  # folders have none
        outside = precious.with_name("outside")
        outside.mkdir()
        (outside / "000000.f16").write_bytes(PRECIOUS)
        (outside / "000007.f16").write_bytes(PRECIOUS)
    if place.exists():
        place.rename(index.with_name("before"))
    os.link(outside, place) if hard else place.symlink_to(outside)
    use_everything(index, photos)
    assert precious.read_bytes() == PRECIOUS
    if outside.is_dir():
        assert {path.name: path.read_bytes() for path in outside.iterdir()} == {
            "000000.f16": PRECIOUS,
            "000007.f16": PRECIOUS,
        }


def test_dangling_links_create_nothing(index: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("writer.lock", ".meta.json.partial", "features/000001.f16", "items.sqlite-journal"):
        (index / name).unlink(missing_ok=True)
        (index / name).symlink_to(tmp_path / "made")
    use_everything(index, photos)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["writer.lock", "meta.json", "items.sqlite", "features/000000.f16", "features"])
def test_links_are_named(index: Path, tmp_path: Path, name: str) -> None:
    (index / name).rename(tmp_path / "elsewhere")
    (index / name).symlink_to(tmp_path / "elsewhere")
    code, stderr = run("remove", "id:1", "--yes", "-i", str(index))
    if name.startswith("features"):
        code, stderr = run("verify", "-i", str(index))
    assert code == (2 if name == "writer.lock" else 3)
    assert "symbolic link" in stderr
    assert Path(name).name in stderr


def test_foreign_lock_file_is_kept(index: Path) -> None:
    (index / "writer.lock").write_bytes(PRECIOUS)
    with pytest.raises(UsageError, match=r"writer\.lock is not a lock file"), writer_lock(index):
        pass
    assert (index / "writer.lock").read_bytes() == PRECIOUS


# -- pipes, sockets, devices, folders


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the address is limited to 100 characters
        server.bind(path.name)
        os.chdir(here)


ODD: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": put_socket,
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize(
    "name", ["meta.json", "items.sqlite", "items.sqlite-wal", "items.sqlite-shm", "features/000000.f16", "writer.lock"]
)
def test_no_waiting_for_odd_files(index: Path, photos: Path, name: str, kind: str) -> None:
    (index / name).unlink(missing_ok=True)
    ODD[kind](index / name)
    begun = time.monotonic()
    use_everything(index, photos)
    code, stderr = run("verify", "-i", str(index))
    assert time.monotonic() - begun < 60  # a pipe would be waited for without end
    assert code == (0 if name == "writer.lock" else 3), stderr


def test_folder_opens_regular_files_only(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_text("x")
    for name, kind in (("pipe", "a named pipe"), ("link", "a symbolic link"), (".", "a folder")):
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT):
            with pytest.raises(NotRegularError, match=kind):
                folder.open(name, flags)
    with pytest.raises(OSError, match="more than 0 bytes"):
        folder.read("file", limit=0)
    folder.write("link", b"new")
    assert (tmp_path / "file").read_text() == "x"
    assert not (tmp_path / "link").is_symlink()
    assert sorted(folder.names()) == ["file", "link", "pipe"]


# -- meta.json

META: dict[str, Callable[[str], str]] = {
    "deep": lambda text: text.replace('"recipe": {', '"recipe": ' + "[" * 5000 + "]" * 5000 + ', "x": {', 1),
    "deep object": lambda text: text.replace(
        '"search": {', '"search": ' + '{"a":' * 3000 + "1" + "}" * 3000 + ', "x": {', 1
    ),
    "key twice": lambda text: text.replace('"dimension"', '"dimension": 5, "dimension"', 1),
    "NaN": lambda text: text.replace('"items": 6', '"items": NaN', 1),
    "infinite": lambda text: text.replace('"items": 6', '"items": 1e999', 1),
    "digits": lambda text: text.replace('"items": 6', '"items": ' + "9" * 5000, 1),
    "long": lambda text: text.replace("{", "{" + " " * (5 << 20), 1),
    "boolean": lambda text: text.replace('"items": 6', '"items": true', 1),
    "negative": lambda text: text.replace('"items": 6', '"items": -6', 1),
    "large dimension": lambda text: text.replace('"dimension": 12', '"dimension": 99999999999', 1),
    "large shards": lambda text: text.replace('"rows_per_shard": 8192', f'"rows_per_shard": {1 << 60}', 1),
    "large crop": lambda text: text.replace('"crop": 16', '"crop": 1000000', 1).replace(
        '"resize": 16', '"resize": 1000000', 1
    ),
    "mean of text": lambda text: text.replace('"mean": [', '"mean": ["a", ', 1),
    "search": lambda text: text.replace('"kind": "exact"', '"kind": 7', 1),
    "recall": lambda text: text.replace('"recall": 1.0', '"recall": "\\u001b[31m"', 1),
    "not UTF-8": lambda text: text.replace("colours", "\udcff", 1),
}


@pytest.mark.parametrize("damage", META)
def test_odd_meta_is_damage(index: Path, damage: str) -> None:
    text = (index / "meta.json").read_text()
    changed = META[damage](text)
    assert changed != text
    (index / "meta.json").write_bytes(changed.encode("utf-8", "surrogateescape"))
    for command in ("info", "verify"):
        code, stderr = run(command, "-i", str(index))
        assert code == 3
        assert len(stderr.splitlines()) == 1
        assert "\x1b" not in stderr


@pytest.mark.parametrize(
    "search",
    [
        {"kind": "exact", "recall": 1.0, "parameters": []},
        {"kind": "exact", "recall": 1.0, "parameters": {"folder": 5}},
        {"kind": "exact", "recall": 1.0, "parameters": {}, "since": 3},
        {"kind": "exact", "recall": 1.0, "parameters": {}, "since": {"high": "x"}},
        {"kind": "hnsw", "recall": 1.0, "parameters": {}, "low": 0.5},
        {"kind": "codes", "recall": 1.0, "parameters": {}, "low": 0.5, "high": 1, "queries": 3},
        {"kind": "hnsw", "recall": 1.0, "parameters": {"folder": "ab" * 8}},
    ],
)
def test_odd_search_entry_is_damage(index: Path, search: dict[str, Any]) -> None:
    facts = json.loads((index / "meta.json").read_text())
    (index / "meta.json").write_text(json.dumps({**facts, "search": search}))
    with pytest.raises(IndexDamagedError, match="search"):
        Meta.read(index)


# -- SQLite

SCHEMAS = {
    "trigger": "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM items; END",
    "view": "CREATE VIEW v AS SELECT 1",
    "view for items": "ALTER TABLE items RENAME TO kept; CREATE VIEW items AS SELECT * FROM kept",
    "recursion": (
        "DROP TABLE failures; CREATE VIEW failures AS WITH RECURSIVE"
        " n(source, path, reason) AS (SELECT 1, x'61', 'x' UNION ALL SELECT source + 1, path, reason FROM n) SELECT * FROM n"
    ),
    "table": "CREATE TABLE more (x)",
    "index": "CREATE INDEX more ON items (hex(path))",
    "virtual table": "CREATE VIRTUAL TABLE more USING fts5(x)",
    "generated column": "ALTER TABLE items ADD COLUMN more AS (hex(path))",
    "missing index": "DROP INDEX items_by_label",
    "other column": "DROP TABLE failures; CREATE TABLE failures (source INTEGER, path BLOB, reason TEXT)",
}


@pytest.mark.parametrize("change", SCHEMAS)
def test_other_schema_is_damage(index: Path, photos: Path, change: str) -> None:
    sql(index, SCHEMAS[change])
    before = (index / "items.sqlite").read_bytes()
    for command in (["info"], ["verify"], ["query", "id:1"], ["remove", "id:1", "--yes"]):
        code, stderr = run(*command, "-i", str(index))
        assert code == 3
        assert "simsearch does not make" in stderr or "as simsearch makes it" in stderr or "has no" in stderr
    use_everything(index, photos)
    assert (index / "items.sqlite").read_bytes() == before


VALUES = {
    "text for a row": "UPDATE items SET row = 'x' WHERE id = 2",
    "part of a row": "UPDATE items SET row = 1.5 WHERE id = 2",
    "blob for a row": "UPDATE items SET row = x'00' WHERE id = 2",
    "text for a path": "UPDATE items SET path = 'a' WHERE id = 2",
    "number for a path": "UPDATE items SET path = 7 WHERE id = 2",
    "blob for a label": "UPDATE items SET label = x'ff' WHERE id = 2",
    "blob for metadata": "UPDATE items SET metadata = x'ff' WHERE id = 2",
    "list for metadata": "UPDATE items SET metadata = '[1]' WHERE id = 2",
    "deep metadata": f"UPDATE items SET metadata = '{'[' * 9000}{']' * 9000}' WHERE id = 2",
    "text for a size": "UPDATE items SET size = 'large' WHERE id = 2",
    "text for a source": "UPDATE items SET source = 'x' WHERE id = 2",
    "text for a digest": "UPDATE items SET digest = 'x' WHERE id = 2",
    "label that is not UTF-8": "UPDATE items SET label = CAST(x'ff41' AS TEXT) WHERE id = 2",
    "text for the state": "UPDATE state SET value = 'x' WHERE key = 'rows'",
    "negative state": "UPDATE state SET value = -5 WHERE key = 'rows'",
    "text for a generation": "UPDATE state SET value = 'x' WHERE key = 'generation'",
    "text for an epoch": "INSERT INTO state VALUES ('epoch', 'x')",
    "kind of a source": "UPDATE sources SET kind = x'00'",
    "root of a source": "UPDATE sources SET root = 7",
    "options of a source": "UPDATE sources SET options = '[1]'",
    "deep options": f"UPDATE sources SET options = '{'[' * 9000}{']' * 9000}'",
    "reason of a failure": "INSERT INTO failures VALUES (1, x'61', x'00')",
    "length of a block": "UPDATE blocks SET rows = 'x'",
    "negative block": "UPDATE blocks SET rows = -6",
}


@pytest.mark.parametrize("change", VALUES)
def test_odd_values_are_damage(index: Path, photos: Path, tmp_path: Path, change: str) -> None:
    sql(index, VALUES[change])
    code, stderr = run("verify", "-i", str(index))
    assert code == 3, stderr
    assert all(line.startswith("error: ") for line in stderr.splitlines())
    for command in (["info"], ["info", "--failures"], ["export", "-o", str(tmp_path / "out")]):
        assert run(*command, "-i", str(index))[0] in {0, 3}
    with pytest.raises(IndexDamagedError), Engine(index, model=Colours()) as engine:
        assert engine.search_by_vector(np.zeros(12), 6, where=["label!=x"])
        assert engine.failures() is not None
        assert not verify(engine.index).problems
        raise IndexDamagedError("found by verify")


def test_huge_values_are_not_read(index: Path) -> None:
    sql(index, "UPDATE items SET metadata = CAST(zeroblob(70000000) AS TEXT) WHERE id = 2")
    with pytest.raises(IndexDamagedError, match="too big"), Engine(index, model=Colours()) as engine:
        engine.search_by_vector(np.zeros(12), 6)


def test_endless_statement_is_stopped(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection, "STEPS", 3)
    with (
        pytest.raises(IndexDamagedError, match="far longer than the size of the file explains"),
        Engine(index, model=Colours()) as engine,
        engine.reading() as reader,
    ):
        query = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
        reader._connection.execute(query).fetchone()


def test_large_databases_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that take as long as the number of items explains are never stopped."""
    monkeypatch.setattr(protection, "STEPS", 0)
    monkeypatch.setattr(protection, "STEP", 1000)
    monkeypatch.setattr(protection, "STEP_BYTES", 200)
    filler = Filler(tmp_path / "index", 4)
    filler.add(np.random.default_rng(0).normal(size=(20_000, 4)))
    where = [f"n>={n}" for n in range(12)]
    with Engine(filler.path, model=filler.model) as engine:
        assert len(engine.search_by_vector(np.zeros(4), 5, where=[*where, "label!=x", "path~*1*"])) == 5
        assert verify(engine.index).problems == ()
        assert len(list(engine.find(["*"]))) == 20_000


def test_journal_of_a_stranger_is_not_rolled_back(index: Path, precious: Path) -> None:
    """A rollback journal can name another file, which SQLite deletes."""
    (index / "items.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))
    for command in (["info"], ["verify"], ["remove", "id:1", "--yes"]):
        code, stderr = run(*command, "-i", str(index))
        assert code == 3
        assert "items.sqlite-journal is not part of an index" in stderr
    assert (index / "items.sqlite-journal").exists()


def test_killed_creation_with_journal_is_redone(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "items.sqlite").write_bytes(b"")
    (tmp_path / "index" / "items.sqlite-journal").write_bytes(bytes(512))
    with api.build(photos, tmp_path / "index", Colours()) as engine:
        assert len(engine) == 6


# -- feature files


def test_absurd_sizes_take_no_memory(index: Path) -> None:
    """A sparse file of a terabyte, and a database that says that it is full."""
    os.truncate(index / "features" / "000000.f16", 1 << 40)
    rows = (1 << 40) // 24
    facts = json.loads((index / "meta.json").read_text())
    (index / "meta.json").write_text(json.dumps({**facts, "rows_per_shard": 1 << 31}))
    sql(index, f"UPDATE state SET value = {min(rows, 1 << 31)} WHERE key = 'rows'")
    for command in (["verify"], ["query", "id:1"], ["info"]):
        code, stderr = run(*command, "-i", str(index))
        assert code == 3
        assert "has holes" in stderr


@pytest.mark.parametrize("rows", [1 << 33, 1 << 62])
def test_impossible_rows_are_damage(index: Path, rows: int) -> None:
    sql(index, f"UPDATE state SET value = {rows} WHERE key = 'rows'")
    with Engine(index, model=Colours()) as engine:
        assert verify(engine.index).problems
        with pytest.raises(IndexDamagedError):
            engine.search_by_vector(np.zeros(12), 3, where=["label!=x"], exact=True)
            engine.search_by_vector(np.zeros(12), 3)


@pytest.mark.parametrize("name", ["items.sqlite-shm", "items.sqlite-wal"])
def test_file_cut_short_by_a_kill(index: Path, name: str) -> None:
    """SQLite makes both with fewer than four bytes at first."""
    (index / name).write_bytes({"items.sqlite-shm": bytes(3), "items.sqlite-wal": b"\x37\x7f"}[name])
    assert run("verify", "-i", str(index))[0] == 0
    (index / name).write_bytes(b"abc")
    assert run("verify", "-i", str(index))[0] == 3
