"""Remote sources and queries on the command line: wrong uses and their messages."""

from __future__ import annotations

import functools
import shutil
import signal
import socket
import subprocess
import sys
import zipfile

import pytest

from simsearch.images.sources.remote import addresses
from tests.helpers.remote import SECRET, own_cache, s3, s3_process, upload
from tests.helpers.s3_server import BUCKET, client
from tests.helpers.web import folder_files, serving

__all__ = ["own_cache", "s3", "s3_process"]

PLACE = f"s3://{BUCKET}/pictures"


@pytest.fixture
def bucket(s3, pictures, index):
    upload(s3, pictures)
    return s3


def test_build_and_query(run, bucket, tmp_path):
    built = run("build", PLACE)
    assert built.code == 0 and "24 items; 12 added" in built.out
    found = run("query", f"{PLACE}/red/0.png", "-k", "2", "--format", "json")
    assert found.code == 0
    [answer] = found.json
    assert answer["query"] == f"{PLACE}/red/0.png"
    assert {match["path"].startswith(PLACE) for match in answer["matches"]} == {True, False}  # the same content twice
    assert {match["distance"] for match in answer["matches"]} == {0}
    assert SECRET not in built.out + built.err + found.out


def test_query_by_a_member_of_an_archive(run, s3, pictures, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(pictures / "red" / "0.png", "red/0.png")
    client(s3).put_object(Bucket=BUCKET, Key="a.zip", Body=(tmp_path / "a.zip").read_bytes())
    found = run("query", f"s3://{BUCKET}/a.zip!/red/0.png", "--format", "paths", "-k", "1")
    assert found.code == 0 and found.out.strip() == str(pictures / "red" / "0.png")
    with serving({"/a.zip": (tmp_path / "a.zip").read_bytes()}) as web:
        assert run("query", f"{web.url}/a.zip!/red/0.png", "-k", "1").code == 0
        lost = run("query", f"{web.url}/a.zip!/red/1.png")
    assert lost.code == 2 and "no such member in the archive" in lost.err


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("s3://nowhere/pictures", "s3://nowhere/pictures cannot be listed: there is no bucket nowhere", ""),
        (f"{PLACE}/none", f"nothing is stored below {PLACE}/none/", "is the address complete?"),
        (f"{PLACE}/none.png", f"there is no picture at {PLACE}/none.png", "is the address complete?"),
        (f"{PLACE}/none.zip", f"there is no archive at {PLACE}/none.zip", ""),
        ("ftp://host/pictures", "'ftp://host/pictures' has an unknown scheme", "s3://, gs://, https:// or http://"),
        ("s3://", "'s3://' names no bucket", "s3://BUCKET/PREFIX"),
        ("https://", "'https://' names no host", ""),
        (
            "https://me:pass@host/a",
            "with a user or password cannot be a source: https://host/a",
            "an index would store user and password",
        ),
        ("https://host/a?X-Amz-Signature=1", "with ? or # cannot be a source: https://host/a", "signature"),
        (
            "s3://bucket/list.csv",
            "a manifest on another machine cannot be a source",
            "copy the manifest to this machine",
        ),
    ],
)
def test_wrong_sources(run, bucket, name, message, hint):
    refused = run("build", name)
    assert refused.code == 2, refused.out
    [error, *rest] = refused.err.splitlines()
    assert error.startswith("error: ") and message in error
    assert hint in "".join(rest) and len(rest) <= 1
    assert "pass@" not in refused.err and "Signature" not in refused.err


@pytest.mark.parametrize(
    ("fault", "message"),
    [("denied", "cannot be listed: access denied"), ("bad-key", "refuses the credentials: InvalidAccessKeyId")],
)
def test_refused_by_the_server(run, bucket, fault, message):
    bucket.plan = lambda method, key, query: fault
    refused = run("build", PLACE)
    assert refused.code == 2 and message in refused.err and "hint: " in refused.err
    assert SECRET not in refused.err and "Traceback" not in refused.err


def test_no_credentials(run, bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    bucket.plan = lambda method, key, query: "denied"
    refused = run("build", PLACE)
    assert refused.code == 2 and "access denied; no credentials were found" in refused.err
    assert "hint: set AWS_ACCESS_KEY_ID" in refused.err


def test_half_of_the_credentials(run, bucket, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused = run("build", PLACE)
    assert refused.code == 2 and "Partial credentials" in refused.err and "Traceback" not in refused.err


def test_profile_that_does_not_exist(run, bucket, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    refused = run("build", PLACE)
    assert refused.code == 2 and "nobody" in refused.err and "Traceback" not in refused.err


@pytest.mark.parametrize("scheme", ["s3", "https"])
def test_server_that_is_away(run, bucket, monkeypatch, scheme):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    refused = run("build", PLACE if scheme == "s3" else f"http://127.0.0.1:{port}/pictures")
    assert refused.code == 2 and f"cannot be listed: no answer from 127.0.0.1:{port} (5 attempts)" in refused.err
    assert "hint: nothing was removed" in refused.err


@pytest.mark.parametrize(("name", "module"), [("s3://b/c", "s3fs"), ("gs://b/c", "gcsfs"), ("https://h/c", "aiohttp")])
def test_missing_extra(run, own_cache, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    refused = run("build", name)
    assert refused.code == 2
    assert f"error: reading {name} needs the [remote] extra" in refused.err and "[remote]'" in refused.err


def test_new_index_is_not_left_behind(run, bucket, tmp_path):
    assert run("build", f"{PLACE}/none", "-i", tmp_path / "new", "--model", "alexnet").code == 2
    bucket.plan = lambda method, key, query: "slow-down"
    assert run("build", PLACE, "-i", tmp_path / "new", "--model", "alexnet").code == 2
    assert not (tmp_path / "new").exists()


def test_watch_says_what_it_does_not_follow(run, bucket, tmp_path, tiny_weights):
    only = run("build", PLACE, "--watch", "-i", tmp_path / "only", "--model", tiny_weights)
    assert only.code == 2 and f"{PLACE} is on another machine and is not followed" in only.err
    assert "nothing to follow" in only.err and "following" not in only.err.replace("followed", "")


def test_watch_beside_a_remote_source(run, bucket, pictures, tmp_path, tiny_weights):
    """An update of the local folder asks the bucket for nothing."""
    place = tmp_path / "own"
    assert run("build", PLACE, pictures, "-i", place, "--model", tiny_weights).code == 0
    command = [sys.executable, "-m", "simsearch", "build", "-i", str(place), "--watch"]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heard
    ) as follower:
        try:
            assert follower.stdout is not None
            lines = iter(follower.stdout.readline, "")
            assert any("is not followed" in line for line in lines)
            bucket.forget()
            shutil.copy(pictures / "red" / "1.png", pictures / "red" / "new.png")
            assert any("1 added" in line for line in lines)
        finally:
            follower.send_signal(signal.SIGINT)
            follower.communicate(timeout=30)
    assert bucket.listings == 0 and not bucket.tries


def test_items_by_their_addresses(run, bucket, tmp_path, tiny_weights):
    place = tmp_path / "own"
    assert run("build", PLACE, "-i", place, "--model", tiny_weights).code == 0
    removed = run("remove", f"{PLACE}/red", f"{PLACE}/blue/0.png", f"{PLACE}/green/[01].png", "-i", place, "--yes")
    assert removed.code == 0 and "5 items; 7 removed" in removed.out
    assert "6 items; 1 added" in run("add", f"{PLACE}/red/0.png", "-i", place).out


def test_clean_up_leaves_remote_pictures(run, bucket, pictures, index):
    assert run("build", PLACE).code == 0
    done = run("duplicates", "--keep", "under:" + str(pictures), "--move-to", pictures.parent / "moved", "--yes")
    assert not (pictures.parent / "moved").exists(), done.out
    assert len(list(pictures.rglob("*.png"))) == 12


def test_place_that_has_moved(run, bucket, pictures, tmp_path, tiny_weights):
    place = tmp_path / "own"
    assert run("build", PLACE, "-i", place, "--model", tiny_weights).code == 0
    upload(bucket, pictures, "elsewhere")
    moved = run("build", "-i", place, "--root", f"s3://{BUCKET}/elsewhere")
    assert moved.code == 0 and "12 items; 12 unchanged" in moved.out
    assert not bucket.tries
    assert (
        f"s3://{BUCKET}/elsewhere/red/0.png" in run("query", "id:1", "-k", "12", "-i", place, "--format", "paths").out
    )
    wrong = run("build", "-i", place, "--root", str(tmp_path / "none"))
    assert wrong.code == 2 and "no file or folder" in wrong.err


def test_wrong_queries(run, bucket):
    gone = run("query", f"{PLACE}/none.png")
    assert gone.code == 2 and f"error: {PLACE}/none.png: No such file or directory" in gone.err
    folder = run("query", f"{PLACE}/red")
    assert folder.code == 2 and "is not the address of an image" in folder.err


def test_web_folder(run, pictures, own_cache):
    with serving(folder_files(pictures)) as web:
        assert run("build", f"{web.url}/pictures").code == 0
        found = run("query", f"{web.url}/pictures/red/0.png", "-k", "2", "--format", "json")
    assert f"{web.url}/pictures/red/0.png" in {match["path"] for match in found.json[0]["matches"]}


def test_addresses():
    assert addresses.normalized("S3://Bucket/a/b/") == "s3://Bucket/a/b"
    assert addresses.normalized("HTTPS://Host:8/a%20b/") == "https://host:8/a%20b"
    assert addresses.normalized("https://h/ü b/%C3%BC%20b") == "https://h/%C3%BC%20b/%C3%BC%20b"
    assert addresses.joined("https://h/a", "b c/d?.png") == "https://h/a/b%20c/d%3F.png"
    assert addresses.joined("s3://b", "c d?.png") == "s3://b/c d?.png"
    assert addresses.relative_to("https://h/a/b%20c", "https://h/a") == "b c"
    assert not addresses.is_remote("photos/a.png") and not addresses.is_remote("milvus://h/c")
