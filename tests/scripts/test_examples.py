"""The examples under scripts/examples/ do what they say."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import simsearch
from tests.helpers.client import Client
from tests.helpers.live import serving
from tests.helpers.pictures import draw
from tests.helpers.scripts import SCRIPTS

EXAMPLES = SCRIPTS / "examples"


@pytest.fixture
def index(tmp_path, photos, tiny_weights):
    simsearch.build(photos, tmp_path / "index", model=str(tiny_weights)).close()
    return tmp_path / "index"


def run(name, *arguments, **environment):
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


def test_mounted_in_an_app(index, photos, monkeypatch):
    monkeypatch.setenv("SIMSEARCH_INDEX", str(index))
    example = runpy.run_path(str(EXAMPLES / "mounted.py"))
    with example["engine"] as engine:
        client = Client(example["app"])
        found = client("GET", "/products/5/similar").json()
        assert [entry["product"] for entry in found] == [m.id for m in engine.search_by_id(5, 4, dedup=True)]
        assert client("GET", "/products/999/similar").status_code == 404
        picture = (photos / "blue" / "2.png").read_bytes()
        found = client("POST", "/lookalikes", files={"image": ("2.png", picture)}).json()
        assert [entry["product"] for entry in found] == [m.id for m in engine.search(picture, 4, dedup=True)]
        refused = client("POST", "/lookalikes", files={"image": ("2.png", b"no picture")})
        assert refused.status_code == 422 and refused.json()["detail"].startswith(
            "the image given as a file: not an image"
        )
        assert "<title>simsearch" in client("GET", "/similar/").text
        matches = client("POST", "/similar/v1/search", json={"id": 5}).json()["matches"]
        assert len(matches) == 6
        assert not any(match["path"].startswith("/") for match in matches)


def test_the_client(index, photos):
    assert len([line for line in (EXAMPLES / "client.py").read_text().splitlines() if line.strip()]) <= 22
    with simsearch.open(index) as engine, serving(simsearch.create_app(engine, api_keys="open-sesame")) as port:
        url, picture = f"http://127.0.0.1:{port}", photos / "blue" / "2.png"
        done = run("client.py", url, picture, SIMSEARCH_API_KEY="open-sesame")
        assert done.returncode == 0, done.stderr
        assert [line.split()[-1] for line in done.stdout.splitlines()] == [m.path for m in engine.search(picture)]
        refused = run("client.py", url, picture)
        assert (refused.returncode, refused.stderr) == (
            1,
            "error: this needs a valid API key, as Authorization: Bearer KEY\n",
        )
        assert "bad" not in run("client.py", url, __file__, SIMSEARCH_API_KEY="open-sesame").stdout


def test_a_pool_of_processes(index, photos, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    pictures = [*sorted(photos.rglob("*.png"))[:5], tmp_path / "broken.png"]
    done = run("pool.py", index, *pictures)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines[:5]] == [[str(path)] * 2 for path in pictures[:5]]
    assert lines[5][1].startswith("error:")


def test_replica_of_index_compacted_during_copy(index, tmp_path, monkeypatch):
    from simsearch.indexing.compact import compact

    replica = runpy.run_path(str(EXAMPLES / "replica.py"))
    copytree, copied = shutil.copytree, list[Path]()

    def late(source, target, **options):
        if Path(source).name == "features" and not copied:
            copied.append(Path(source))
            with simsearch.open(index) as engine:
                engine.remove([1, 5])
                compact(engine.index)
        return copytree(source, target, **options)

    monkeypatch.setattr(shutil, "copytree", late)
    monkeypatch.setattr(sys, "argv", ["replica.py", str(index), str(tmp_path / "replica")])
    with open(os.devnull) as closed:
        monkeypatch.setattr(sys, "stdin", closed)
        replica["main"]()
    with simsearch.open(tmp_path / "replica") as engine:
        assert len(engine) == 22
    assert len(list(tmp_path.glob("replica-*"))) == 1


def test_a_replica_of_an_index_that_grows(index, photos, tmp_path):
    command = [sys.executable, EXAMPLES / "replica.py", index, tmp_path / "replica"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as replica:
        assert replica.stdin is not None
        assert replica.stdout is not None
        assert replica.stdout.readline().startswith("generation")
        with simsearch.open(tmp_path / "replica") as engine:
            client = Client(simsearch.create_app(engine))
            for turn in range(2):
                draw(photos / "new" / f"{turn}.png", 500 + turn)
                simsearch.build(photos, index).close()
                assert replica.stdout.readline().startswith("generation")
                data = (photos / "new" / f"{turn}.png").read_bytes()
                found = client("POST", "/v1/search", files={"image": ("q.png", data)}, data={"k": "100"})
                matches = found.json()["matches"]
                assert len(matches) == 25 + turn
                assert matches[0]["distance"] == 0
        replica.stdin.close()
        assert replica.wait(30) == 0
    assert len(list(tmp_path.glob("replica-*"))) == 1
