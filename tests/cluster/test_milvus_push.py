"""Addresses, refusals and the commands over a collection, by Milvus Lite where one is needed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import simsearch
from simsearch.cli.main import main
from simsearch.cluster.milvus import client
from simsearch.cluster.milvus.push import PushOptions, push
from simsearch.cluster.milvus.reader import PROPERTIES
from simsearch.common import milvus_address
from simsearch.common.milvus_address import parse_address
from simsearch.engine import Engine
from simsearch.errors import (
    IndexLockedError,
    IndexNotFoundError,
    MissingExtraError,
    ModelMismatchError,
    SimsearchError,
    UnavailableError,
    UsageError,
)
from simsearch.installation import install_line, install_packages_line
from simsearch.storage.filters import Condition
from tests.helpers.filler import Filler
from tests.helpers.models import Colours

pytest.importorskip("pymilvus", reason="pymilvus is not installed")
pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")


def simsearch_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def filler(tmp_path: Path) -> Iterator[Filler]:
    found = Filler(tmp_path / "index", 6)
    found.add(np.random.default_rng(0).normal(0, 3, (20, 6)))
    yield found
    found.engine.close()


def test_addresses() -> None:
    given = parse_address("milvus://host:19530/photos?consistency=strong&timeout=2.5&effort=64")
    assert (given.host, given.port, given.collection, given.consistency, given.timeout, given.effort) == (
        "host",
        19530,
        "photos",
        "strong",
        2.5,
        64,
    )
    assert (str(given), given.uri) == ("milvus://host:19530/photos", "http://host:19530")
    assert parse_address("milvus://h/c").port == milvus_address.PORT
    assert parse_address("milvus://[::1]:1/c").uri == "http://[::1]:1"
    file = parse_address("milvus:///a/b%20c.db")
    assert (file.file, file.collection, str(file)) == (Path("/a/b c.db"), "simsearch", "milvus:///a/b c.db")
    assert str(parse_address("milvus:///a/b.db/birds")) == "milvus:///a/b.db/birds"
    doubled = parse_address("milvus:////a/b.db")  # milvus:///$PWD/b.db
    assert (doubled.server, str(doubled)) == ("/a/b.db", "milvus:///a/b.db")


@pytest.mark.parametrize(
    "text",
    [
        "milvus://",
        "milvus://host",
        "milvus://host/",
        "milvus://host:port/c",
        "milvus://host:99999/c",
        "milvus://host/a/b",
        "milvus://host/a-b",
        "milvus:///a/b",
        "milvus:///a.db/x/y",
        "milvus://host/c?consistency=weak",
        "milvus://host/c?x=1",
        "milvus://host/c?timeout=0",
        "milvus://host/c?effort=-1",
        "milvus://u:p@host/c",
        "milvus://host/c#d",
        "http://host/c",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError, match="no file"):
        simsearch.open(f"milvus://{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "file.db").write_text("SQLite")
    with pytest.raises(UsageError, match="not made by Milvus Lite"):
        simsearch.open(f"milvus://{tmp_path}/file.db")


def test_a_server_that_is_away(tmp_path: Path) -> None:
    """One error line and exit code 2 in less than ten seconds, if nothing listens or a listener never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        for port in (9, silent.getsockname()[1]):
            command = [
                sys.executable,
                "-m",
                "simsearch",
                "query",
                "id:1",
                "-i",
                f"milvus://127.0.0.1:{port}/c?timeout=2",
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 2
            lines = done.stderr.splitlines()
            assert [line.partition(":")[0] for line in lines] == ["error", "hint"], done.stderr
            assert f"no answer from Milvus at 127.0.0.1:{port}" in lines[0]
    clock = time.monotonic()
    with pytest.raises(UnavailableError):
        simsearch.open("milvus://127.0.0.1:9/c")
    assert time.monotonic() - clock < 10


def test_without_the_extra_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "milvus_lite", None)
    with pytest.raises(MissingExtraError) as caught:
        simsearch.open(f"milvus://{tmp_path}/a.db")
    assert caught.value.hint == install_packages_line("--no-deps milvus-lite pyarrow")
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    result = simsearch_command("query", "id:1", "-i", "milvus://host/c")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == "hint: " + install_line("cluster")


def test_mismatches_are_refused(filler: Filler, tmp_path: Path) -> None:
    address = f"milvus://{tmp_path}/a.db"
    push(filler.engine.index, address)
    with pytest.raises(ModelMismatchError, match="c0c0") as caught:
        simsearch.open(address, model=Other(6))
    assert "d1d1" in str(caught.value)
    other = Filler(tmp_path / "other", 6)
    with Engine(other.path, model=other.model) as engine:
        replace(engine.meta, weights_sha256="d1" * 32).write(other.path)
    with Engine(other.path) as engine, pytest.raises(ModelMismatchError, match="d1d1"):
        push(engine.index, address)
    with Engine(other.path) as engine:
        replace(engine.meta, weights_sha256="c0" * 32, created="2001-01-01T00:00:00+00:00").write(other.path)
    with Engine(other.path) as engine:
        with pytest.raises(UsageError, match="holds another index"):
            push(engine.index, address)
        assert push(engine.index, address, PushOptions(replace=True)).items == 0
    other.engine.close()
    for options in (PushOptions(kind="HNSW"), PushOptions(storage="float16")):
        with pytest.raises(UsageError, match="not"):
            push(filler.engine.index, address, replace(options, replace=False))
    with pytest.raises(UsageError, match="is not a kind of index"):
        PushOptions(kind="TREE")


class Other(Colours):
    weights_sha256 = "d1" * 32

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension


def test_a_collection_of_others_is_left_alone(filler: Filler, tmp_path: Path) -> None:
    rows = client.MilvusClient(parse_address(f"milvus://{tmp_path}/a.db"), writing=True)
    rows.create(6, "float32", "FLAT", {}, {"theirs": "1"})
    with pytest.raises(UsageError, match="was not made by simsearch"):
        push(filler.engine.index, str(rows.address))
    with pytest.raises(IndexNotFoundError, match="was not made by simsearch"):
        simsearch.open(str(rows.address))
    with pytest.raises(IndexNotFoundError, match="there is no collection birds"):
        simsearch.open(f"{rows.address}/birds")
    rows.close()


def test_a_file_serves_one_process(filler: Filler, tmp_path: Path) -> None:
    address = f"milvus://{tmp_path}/a.db"
    push(filler.engine.index, address)
    with simsearch.open(address, model=filler.model), simsearch.open(address, model=filler.model):
        command = [sys.executable, "-m", "simsearch", "info", "-i", address]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert "another process has" in done.stderr
    with simsearch.open(address, model=filler.model) as engine:
        assert len(engine) == 20
        engine.close()
        with pytest.raises(UsageError, match="has been closed"):
            len(engine)
    assert issubclass(IndexLockedError, SimsearchError)


def test_what_milvus_cannot_hold(tmp_path: Path) -> None:
    from simsearch.storage.database import Changes

    filler = Filler(tmp_path / "index", 2)
    filler.add(np.zeros((2, 2)))
    long = replace(filler.engine.item(2), metadata={"text": "x" * 70_000})
    filler.engine.index.database.apply(Changes(updated=[long]))
    with pytest.raises(UsageError, match="the metadata of item 2 has 70,"):
        push(filler.engine.index, f"milvus://{tmp_path}/a.db")
    filler.engine.close()


def test_a_wrong_row_is_noticed(filler: Filler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at the end is one that can fail."""
    whole = client.MilvusClient.upsert

    def spoil(self: client.MilvusClient, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["features"] = row["features"] + (row["id"] == 7)
        whole(self, rows)

    monkeypatch.setattr(client.MilvusClient, "upsert", spoil)
    with pytest.raises(SimsearchError, match="item 7 is not as it was sent"):
        push(filler.engine.index, f"milvus://{tmp_path}/a.db")
    monkeypatch.setattr(client.MilvusClient, "upsert", lambda self, rows: whole(self, rows[1:]))
    with pytest.raises(SimsearchError, match="has 19 rows, but the index has 20 items"):
        push(filler.engine.index, f"milvus://{tmp_path}/b.db")


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("label=cat", 'labelled == true and label == "cat"'),
        ("n=7", 'metadata["n"] == "7" or metadata["n"] == 7'),
        ("id>=3", "id >= 3"),
        ("bytes<9", "size < 9"),
        ("path~a/*", 'path like "a/%"'),
        ("path=/r/a", 'path == "/r/a" or (source == 1 and path == "a")'),
        ("path~*a", None),
        ("n>3", None),
        ("label~a_*", None),
        ('label=a"', None),
        ("id>2.5", None),
    ],
)
def test_translation(condition: str, expected: str | None) -> None:
    from simsearch.cluster.milvus.filters import to_milvus_expression

    where, rest = to_milvus_expression([Condition.parse(condition)], {1: ("folder", "/r")})
    assert where == ("" if expected is None else f"(({expected}))")
    assert bool(rest) == (expected is None)


def test_translation_of_several_values() -> None:
    from simsearch.cluster.milvus.filters import to_milvus_expression

    where, _ = to_milvus_expression([Condition("id", "=", (1, 2)), Condition("bytes", "<", (9,))], {})
    assert where == "((id == 1) or (id == 2)) and ((size < 9))"
    with pytest.raises(UsageError, match="'x' is not a number"):
        to_milvus_expression([Condition("id", "=", ("x",))], {})


def test_property_names_are_a_format() -> None:
    """Collections that earlier versions pushed are found by these names."""
    assert PROPERTIES == ("simsearch.meta", "simsearch.sources", "simsearch.state")


def test_retries_with_a_deadline(filler: Filler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"milvus://{tmp_path}/a.db"
    push(filler.engine.index, address)
    rows = client.MilvusClient(parse_address(address))
    rows.patience = 2.0
    whole, calls = rows._client, [0]

    class Flaky:
        def __init__(self, failures: int, text: str) -> None:
            self.failures, self.text = failures, text

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(**arguments: Any) -> Any:
                calls[0] += 1
                if calls[0] <= self.failures:
                    raise RuntimeError(self.text)
                return getattr(whole, name)(**arguments)

            return call

    rows._client = Flaky(2, "collection not loaded")
    assert rows.count() == 20
    assert calls == [3]
    for text, kind, limit in (("syntax", SimsearchError, 1), ("node is offline", UnavailableError, 99)):
        rows._client, calls[0] = Flaky(99, text), 0
        with pytest.raises(kind, match=text):
            rows.count()
        assert 1 <= calls[0] <= limit
    rows._client = whole
    rows.close()


def test_commands(photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    """push, query, info, serve's index and the refusals, as a user types them."""
    index, address = tmp_path / "index", f"milvus://{tmp_path}/a.db"
    built = simsearch_command("build", photos, "-i", index, "--model", tiny_weights, "--push", address)
    assert built.exit_code == 0, built.output
    assert f"{address}: 24 items, FLAT; 24 sent; counted, 24 compared" in built.output
    again = simsearch_command("push", address, "-i", index, "--format", "json")
    assert json.loads(again.stdout)["unchanged"] == 24
    picture = photos / "rose" / "1.png"
    answers = []
    for place in (index, address):
        found = simsearch_command("query", picture, "id:3", "-i", place, "--format", "json", "--filter", "label!=blue")
        assert found.exit_code == 0, found.output
        answers.append(json.loads(found.stdout))
        for answer in answers[-1]:
            answer.pop("took_ms")
            for match in answer["matches"]:
                match["distance"] = pytest.approx(match["distance"], rel=1e-9)
    assert answers[0] == answers[1]
    assert simsearch_command("query", "id:1", "-i", address, "--filter", "label=none").exit_code == 1
    facts = json.loads(simsearch_command("info", "-i", address, "--format", "json").stdout)
    assert (facts["items"], facts["search"]["kind"], facts["milvus"], facts["complete"]) == (24, "FLAT", "lite", True)
    assert "search    FLAT, recall 1.000" in simsearch_command("info", "-i", address).output
    for command in (
        ["remove", "id:1", "-y"],
        ["add", photos],
        ["tune"],
        ["build", photos],
        ["merge", index],
        ["verify"],
        ["info", "--failures"],
        ["serve", "--writable"],
    ):
        refused = simsearch_command(*command, "-i", address)
        assert refused.exit_code == 2, (command, refused.output)
        assert refused.output.startswith("error: "), refused.output


def test_an_interrupted_push_is_told(
    filler: Filler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"milvus://{tmp_path}/a.db"
    with monkeypatch.context() as patch:
        patch.setattr(
            "simsearch.cluster.milvus.push._Push.finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            push(filler.engine.index, address)
    told = f"the push into {address} has not ended, so items may be missing or old; push again to complete it"
    assert any(
        line.split(maxsplit=1) == ["push", told]
        for line in simsearch_command("info", "-i", address).output.splitlines()
    )
    assert json.loads(simsearch_command("info", "-i", address, "--format", "json").stdout)["complete"] is False
    for command in (
        ["query", "id:1", "--format", "json"],
        ["export", "-o", tmp_path / "out"],
        ["duplicates", "--max-distance", 1],
    ):
        found = simsearch_command(*command, "-i", address)
        assert f"note: {told}\n" in found.stderr, command
        assert told not in found.stdout
    with simsearch.open(address) as engine:
        assert not engine.complete
    push(filler.engine.index, address)
    with simsearch.open(address) as engine:
        assert engine.complete
    assert filler.engine.complete
    assert "has not ended" not in simsearch_command("query", "id:1", "-i", address).stderr
    assert "has not ended" not in simsearch_command("info", "-i", address).output


def test_the_service_over_a_collection(photos: Path, tmp_path: Path, colours: Colours) -> None:
    from tests.helpers.client import Client

    here = simsearch.build(photos, tmp_path / "index", colours)
    push(here.index, f"milvus://{tmp_path}/a.db")
    with here, simsearch.open(f"milvus://{tmp_path}/a.db", model=colours) as there:
        client = Client(simsearch.create_app({"here": here, "there": there}))
        data = (photos / "amber" / "3.png").read_bytes()
        bodies = []
        for name in ("here", "there"):
            answer = client("POST", f"/v1/search?index={name}", files={"image": data}, data={"filter": "label=rose"})
            assert answer.status_code == 200, answer.text
            bodies.append([(m["id"], m["path"], m["label"]) for m in answer.json()["matches"]])
            assert client("GET", f"/v1/items/4?index={name}").json() == client("GET", "/v1/items/4?index=here").json()
            assert client("GET", f"/v1/items/4/thumbnail?index={name}").status_code == 200
            assert client("GET", f"/v1/items/99?index={name}").status_code == 404
        assert bodies[0] == bodies[1]
        assert len(bodies[0]) == 6
        assert client("GET", "/ready").status_code == 200
        assert {entry["items"] for entry in client("GET", "/v1/indexes").json()["indexes"]} == {24}
