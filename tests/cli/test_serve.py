"""`serve` and `completion` on the command line: where it listens, who may call, what its log says, and how it stops."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from click.testing import CliRunner

import simsearch
from simsearch.cli import serve
from simsearch.cli.main import main
from simsearch.errors import UsageError
from simsearch.server.run import shown_address
from tests.helpers.live import process

KEY = "a-key-that-no-log-may-show"


@pytest.fixture(scope="module")
def index(tmp_path_factory, tiny_weights):
    from tests.helpers.pictures import draw

    folder = tmp_path_factory.mktemp("serve")
    for number in range(4):
        draw(folder / "photos" / "kind" / f"{number}.png", number)
    simsearch.build(folder / "photos", folder / "index", model=str(tiny_weights)).close()
    return folder / "index"


@pytest.fixture
def fails(capsys, monkeypatch, index):
    """Runs `serve` with arguments that it must not accept; what it says."""
    monkeypatch.setenv("SIMSEARCH_INDEX", str(index))

    def call(*arguments):
        with pytest.raises(SystemExit) as exit:
            main(["serve", *map(str, arguments)])
        assert exit.value.code == 2
        return capsys.readouterr().err

    return call


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_beyond_this_machine_only_with_a_key(fails, host):
    said = fails("--host", host)
    assert f"listening on {host} without a key" in said
    assert "--insecure" in said


def test_what_cannot_be_used(fails, index, tmp_path, monkeypatch):
    assert "cannot be read" in fails("--api-key", f"@{tmp_path}/nothing")
    (tmp_path / "empty").write_text("\n \n")
    assert "is empty" in fails("--api-key", f"@{tmp_path}/empty")
    assert "an API key is empty" in fails("--api-key", " ")
    assert "two indexes are called 'index'" in fails("-i", index, "-i", index)
    assert "no index at" in fails("-i", tmp_path / "none")
    assert "cannot listen on" in fails("--host", "192.0.2.1", "--insecure", "--port", "0")


def test_clean_ups_that_cannot_be_allowed(fails, index, tmp_path):
    allowed = ("--writable", "--allow-cleanup")
    assert "--allow-cleanup needs --writable" in fails("--allow-cleanup")
    assert "--move-to needs --allow-cleanup" in fails("--writable", "--move-to", tmp_path)
    assert "--journals needs --allow-cleanup" in fails("--journals", tmp_path)
    assert "--move-to '' names no folder" in fails(*allowed, "--move-to", "")
    assert "inside the source" in fails(*allowed, "--move-to", index.parent / "photos" / "away")
    (tmp_path / "file").touch()
    assert "it is not a folder" in fails(*allowed, "--move-to", tmp_path / "file")
    assert "choose another folder with --journals DIR" in fails(*allowed, "--journals", tmp_path / "file")


def test_clean_up_by_a_process(index, tmp_path, tiny_weights):
    """The flags reach the service; where it may clean up, the journals are beside the index."""
    shutil.copytree(index.parent / "photos", tmp_path / "photos")
    index, moved = tmp_path / "index", tmp_path / "moved"
    simsearch.build(tmp_path / "photos", index, model=str(tiny_weights)).close()
    with process("-i", index, "--writable", "--allow-cleanup", "--move-to", moved) as (server, url, _):
        facts = httpx.get(url + "v1/indexes").json()
        assert (facts["cleanup"], facts["move_to"]) == ("move", str(moved))
        groups = httpx.get(url + "v1/duplicates?max_distance=1000").json()["groups"]
        ids = [item["id"] for item in groups[0]["items"]]
        choice = {"group": groups[0]["group"], "keep": ids[1:], "go": ids[:1]}
        body = {"groups": [choice], "dry_run": False, "max_distance": 1000}
        done = httpx.post(url + "v1/duplicates/clean-up", json=body).json()
        assert (done["files"], done["removed"]) == (1, 1)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert (tmp_path / "index.journals" / done["journal"]).is_file()
    subprocess.run([sys.executable, "-m", *done["command"].split()], check=True)
    assert len(list((tmp_path / "photos").rglob("*.png"))) == 4
    assert not list(moved.rglob("*.png"))


def test_index_of_environment_is_one_path(fails, monkeypatch, tmp_path):
    monkeypatch.setenv("SIMSEARCH_INDEX", str(tmp_path / "my photos"))
    assert f"no index at {tmp_path}/my photos" in fails()


def lines(log):
    """The entries of a log after the line that names the URL: each is a JSON object."""
    return [json.loads(line) for line in log[1:]]


def test_loopback_its_log_and_its_stop(index):
    with process("-i", f"photos={index}") as (server, url, log):
        assert "serving photos at http://127.0.0.1:" in log[0]
        assert httpx.get(url + "ready").json() == {"status": "ready"}
        assert httpx.get(url + "v1/indexes").json()["indexes"][0]["name"] == "photos"
        asked = httpx.post(
            url + "v1/search?index=photos", json={"id": 1, "filter": ["path~*secret*"]}, headers={"x-request-id": "r-1"}
        )
        assert asked.json()["matches"] == []
        assert httpx.get(url + "health", headers={"host": "rebound.example"}).status_code == 400
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    entry = next(entry for entry in lines(log) if entry.get("id") == "r-1")
    expected = {
        "event": "request",
        "method": "POST",
        "path": "/v1/search",
        "status": 200,
        "index": "photos",
        "matches": 0,
    }
    assert expected.items() <= entry.items()
    assert entry["ms"] > 0
    assert "secret" not in "".join(log)


def test_key_from_environment_and_file(index, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n\nanother\n")
    ways = [
        (("--host", "0.0.0.0"), {"SIMSEARCH_API_KEY": KEY}),
        (("--api-key", f"@{file}"), {}),
        (("--api-key", KEY), {}),
    ]
    for options, environment in ways:
        with process("-i", index, *options, env={**os.environ, **environment}) as (server, url, log):
            assert httpx.get(url + "v1/items/1").status_code == 401
            wrong = {"authorization": f"Bearer {KEY}x"}
            assert httpx.get(url + "v1/items/1", headers=wrong).status_code == 401
            right = {"authorization": f"Bearer {KEY}"}
            assert httpx.get(url + "v1/items/1", headers=right).status_code == 200
            assert httpx.get(url + "metrics", headers=right).status_code == 200
            assert "security" in httpx.get(url + "openapi.json").json()["paths"]["/v1/search"]["post"]
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        assert KEY not in "".join(log)


def test_insecure_serves_without_key(index):
    with process("-i", index, "--host", "0.0.0.0", "--insecure") as (server, url, log):
        assert httpx.get(url + "v1/items/1").status_code == 200
        assert f"for other machines, at http://{socket.gethostname()}:" in log[0]
        assert "0.0.0.0" not in log[0]
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130


@pytest.mark.parametrize(
    ("host", "bound", "shown"),
    [
        ("127.0.0.1", ("127.0.0.1", 80), "http://127.0.0.1:80/"),
        ("pictures.example", ("192.0.2.7", 80), "http://pictures.example:80/"),
        ("::1", ("::1", 80, 0, 0), "http://[::1]:80/"),
        ("[::1]", ("::1", 80, 0, 0), "http://[::1]:80/"),
        ("0.0.0.0", ("0.0.0.0", 80), "http://127.0.0.1:80/ and, for other machines, at http://"),
        ("0", ("0.0.0.0", 80), "http://127.0.0.1:80/ and, for other machines, at http://"),
        ("::", ("::", 80, 0, 0), "http://[::1]:80/ and, for other machines, at http://"),
    ],
)
def test_address_shown_can_be_opened(host, bound, shown):
    """Not 0.0.0.0 or [::], which name no machine."""
    text = shown_address(host, bound)
    assert text.startswith(shown)
    assert ("other machines" in text) == ("other machines" in shown)


@pytest.mark.parametrize("arguments", [["demo"], ["serve", "-i", "none"]], ids=lambda given: given[0])
def test_threads_of_faiss_sleep_in_a_service(arguments, monkeypatch):
    """Also in the demonstration. Both are ended once they have said so."""

    def said():
        raise UsageError("said")

    monkeypatch.setattr(serve, "let_openmp_sleep", said)
    monkeypatch.setattr("simsearch.cli.serve.api.open", lambda *_, **__: pytest.fail("an index was opened first"))
    monkeypatch.setattr(
        "simsearch.cli.serve.generate.generate", lambda *_, **__: pytest.fail("pictures were drawn first")
    )
    result = CliRunner().invoke(serve.demo_command if arguments[0] == "demo" else serve.serve_command, arguments[1:])
    assert isinstance(result.exception, UsageError)


def test_demo_serves_and_leaves_nothing(tmp_path):
    with process("-n", 30, verb="demo", env={**os.environ, "TMPDIR": str(tmp_path)}) as (server, url, _):
        assert httpx.get(url + "v1/indexes").json()["indexes"][0]["items"] == 30
        assert len(list(tmp_path.glob("simsearch-demo-*"))) == 1
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
    assert list(tmp_path.glob("simsearch-demo-*")) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    done = subprocess.run(
        [sys.executable, "-m", "simsearch", "completion", shell], capture_output=True, text=True, check=True
    )
    assert "_SIMSEARCH_COMPLETE" in done.stdout
    if executable := shutil.which(shell):
        checked = subprocess.run([executable, "-n"], input=done.stdout, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("simsearch qu", {"query"}),
        ("simsearch serve --wri", {"--writable"}),
        ("simsearch eval r", {"recall", "robustness"}),
        ("simsearch query --format js", {"json", "jsonl"}),
    ],
)
def test_completion_completes(words, found):
    """As the script for bash asks."""
    asked = {"_SIMSEARCH_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [sys.executable, "-c", "from simsearch.cli.main import main; main(prog_name='simsearch')"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **asked})
    assert {line.split(",")[1] for line in done.stdout.splitlines()} == found
