"""Builds from a bucket of S3: what is read, how often, and what happens if the server fails."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from simsearch import api
from simsearch.errors import SimsearchError, UnavailableError, UsageError
from simsearch.images.sources.remote import store
from simsearch.images.sources.remote.kept import KeptObjects
from simsearch.images.sources.remote.s3 import S3Store
from simsearch.indexing.options import BuildOptions
from tests.helpers.data import ROOT
from tests.helpers.models import Colours
from tests.helpers.pictures import CLASSES, EACH, draw
from tests.helpers.remote import SECRET, own_cache, s3, s3_process, upload
from tests.helpers.s3_server import BUCKET, S3Server
from tests.helpers.sync import ALL, failures, ids, items, sources, told

__all__ = ["own_cache", "s3", "s3_process"]

PLACE = f"s3://{BUCKET}/pictures"


def test_a_bucket_like_a_folder(build: Any, s3: S3Server, photos: Path, index: Path, tmp_path: Path) -> None:
    upload(s3, photos)
    build(photos, place=tmp_path / "local")
    assert told(build(PLACE)) == {"added": ALL, "computed": ALL}
    assert set(s3.gets.values()) == {1} and len(s3.gets) == ALL
    here, there = items(tmp_path / "local"), items(index)
    assert {path: (item.digest, item.label) for path, item in here.items()} == {
        path: (item.digest, item.label) for path, item in there.items()
    }
    assert [(row.kind, row.root) for row in sources(index)] == [("remote", PLACE)]


def test_only_changes_are_read(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    client = upload(s3, photos)
    build(PLACE + "/")
    s3.forget()
    assert told(build(PLACE)) == {"unchanged": ALL}
    assert not s3.tries
    client.put_object(Bucket=BUCKET, Key="pictures/blue/0.png", Body=draw(photos / "new.png", 800).read_bytes())
    client.put_object(Bucket=BUCKET, Key="pictures/blue/7.png", Body=draw(photos / "new.png", 801).read_bytes())
    client.put_object(Bucket=BUCKET, Key="pictures/blue/1.png", Body=(photos / "blue/1.png").read_bytes())  # as it was
    client.delete_object(Bucket=BUCKET, Key="pictures/rose/0.png")
    assert told(build()) == {"added": 1, "updated": 1, "removed": 1, "unchanged": ALL - 2, "computed": 2}
    assert s3.gets == {"pictures/blue/0.png": 1, "pictures/blue/7.png": 1}
    assert "rose/0.png" not in ids(index)


def test_moved_object_is_read_but_not_computed(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    client = upload(s3, photos)
    build(PLACE)
    before = ids(index)["rose/0.png"]
    client.copy_object(Bucket=BUCKET, Key="pictures/rose/z.png", CopySource=f"{BUCKET}/pictures/rose/0.png")
    client.delete_object(Bucket=BUCKET, Key="pictures/rose/0.png")
    assert told(build()) == {"moved": 1, "unchanged": ALL - 1}
    assert ids(index)["rose/z.png"] == before


def test_beside_local_sources(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    upload(s3, photos / "rose", "pictures/rose")
    assert told(build(photos / "blue", PLACE)) == {"added": 2 * EACH, "computed": 2 * EACH}
    (photos / "blue" / "0.png").unlink()
    assert told(build()) == {"removed": 1, "unchanged": 2 * EACH - 1}


def test_prefixes_and_single_objects_nest(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    client = upload(s3, photos)
    assert told(build(f"{PLACE}/blue/0.png")) == {"added": 1, "computed": 1}
    assert told(build(f"{PLACE}/rose")) == {"added": EACH, "computed": EACH}
    assert told(build(PLACE))["unchanged"] == EACH + 1
    assert [row.root for row in sources(index)] == [PLACE]
    client.delete_object(Bucket=BUCKET, Key="pictures/rose/0.png")
    client.delete_object(Bucket=BUCKET, Key="pictures/blue/0.png")
    assert told(build(f"{PLACE}/rose")) == {"removed": 1, "unchanged": EACH - 1}
    assert told(build(f"s3://{BUCKET}", f"{PLACE}/rose"))["removed"] == 1
    assert [row.root for row in sources(index)] == [f"s3://{BUCKET}"]


def test_prefix_is_a_folder(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    upload(s3, photos / "rose", "pictures")
    upload(s3, photos / "blue", "pictures-of-others")
    assert told(build(PLACE))["added"] == EACH


def test_odd_names(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    names = ["a b+c.png", "ü/ü.png", "100%.png", "a?b=#c.png", "x//y.png", "quote\"'.png", "日本/%2F.png"]
    for number, name in enumerate(names):
        folder = photos / str(number)
        client = upload(s3, draw(folder / "one.png", 700 + number).parent, f"work/{number}")
        client.copy_object(Bucket=BUCKET, Key=f"odd/{name}", CopySource=f"{BUCKET}/work/{number}/one.png")
    assert told(build(f"s3://{BUCKET}/odd")) == {"added": len(names), "computed": len(names)}
    assert set(ids(index)) == set(names)


def test_exclude_and_skipped(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    client = upload(s3, photos)
    for name in ("notes.txt", "film.mp4", ".hidden/1.png", "folder/"):
        client.put_object(Bucket=BUCKET, Key=f"pictures/{name}", Body=b"")
    summary = build(PLACE, exclude=("blue/", f"{PLACE}/rose/0.png", "*.gif"))
    assert told(summary)["added"] == ALL - EACH - 1
    assert summary.skipped == 2 and summary.unmatched == ["*.gif"]
    assert told(build())["unchanged"] == ALL - EACH - 1
    assert not any(key.startswith("pictures/blue") for key in s3.tries)


def test_several_requests_at_once_in_order(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    upload(s3, photos)
    s3.delay = 0.05
    build(PLACE, workers=1)
    assert 8 <= s3.most_at_once <= store.REQUESTS
    assert list(ids(index)) == sorted(ids(index))


def test_requests_over_many_pages(build: Any, s3: S3Server, photos: Path, monkeypatch: Any) -> None:
    upload(s3, photos)
    request = S3Store._request
    monkeypatch.setattr(
        S3Store,
        "_request",
        lambda self, method, **rest: request(self, method, **({"MaxKeys": 5} | rest if "list" in method else rest)),
    )
    assert told(build(PLACE))["added"] == ALL
    assert s3.listings == 5


# -- a server that fails


def test_faults_that_pass(build: Any, s3: S3Server, photos: Path) -> None:
    upload(s3, photos)
    draws, lock = random.Random(7), threading.Lock()
    left: dict[tuple[str, str], list[str]] = {}

    def plan(method: str, key: str, query: str) -> str | None:
        with lock:  # each request fails up to three times
            faults = left.setdefault((key, query), draws.sample(["slow-down", "error", "reset", "short", "corrupt"], 3))
            return faults.pop() if faults and draws.random() < 0.8 else None

    s3.plan = plan
    assert told(build(PLACE)) == {"added": ALL, "computed": ALL}
    assert sum(s3.tries.values()) > ALL


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("slow-down", r"answered SlowDown \(5 attempts\)"),
        ("error", r"answered 500 \(5 attempts\)"),
        ("reset", r"broke off.* \(5 attempts\)"),
        ("short", r"bytes came in place of .* \(5 attempts\)"),
        ("corrupt", r"match its checksum \(5 attempts\)"),
        ("denied", "access denied"),
    ],
)
def test_fault_of_one_object(build: Any, s3: S3Server, photos: Path, index: Path, fault: str, reason: str) -> None:
    upload(s3, photos)
    s3.plan = lambda method, key, query: fault if key.endswith("rose/3.png") else None
    assert told(build(PLACE)) == {"added": ALL - 1, "failed": 1, "computed": ALL - 1}
    [(path, found)] = failures(index)
    assert path == "rose/3.png"
    assert re.search(reason, found), found
    s3.plan = lambda method, key, query: None
    s3.forget()
    assert told(build()) == {"added": 1, "unchanged": ALL - 1, "computed": 1}
    assert s3.gets == {"pictures/rose/3.png": 1} and failures(index) == []


def test_object_that_never_comes(build: Any, s3: S3Server, photos: Path, index: Path, monkeypatch: Any) -> None:
    upload(s3, photos)
    monkeypatch.setattr("simsearch.images.sources.remote.s3.READ_SECONDS", 0.5)
    monkeypatch.setattr(store, "ATTEMPTS", 2)
    s3.plan = lambda method, key, query: time.sleep(3) if key.endswith("rose/3.png") else None
    assert told(build(PLACE)) == {"added": ALL - 1, "failed": 1, "computed": ALL - 1}
    assert re.search(r"took too long \(2 attempts\)", failures(index)[0][1])


def test_recorded_items_survive_a_fault(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    client = upload(s3, photos)
    build(PLACE)
    client.put_object(Bucket=BUCKET, Key="pictures/blue/0.png", Body=draw(photos / "new.png", 800).read_bytes())
    s3.plan = lambda method, key, query: "error" if key else None
    assert told(build()) == {"failed": 1, "unchanged": ALL - 1}
    assert len(ids(index)) == ALL


@pytest.mark.parametrize("fault", ["slow-down", "reset", "denied", "bad-key"])
def test_listing_that_fails_removes_nothing(
    build: Any, s3: S3Server, photos: Path, index: Path, fault: str, monkeypatch: Any
) -> None:
    client = upload(s3, photos)
    build(PLACE)
    client.delete_object(Bucket=BUCKET, Key="pictures/rose/0.png")
    request = S3Store._request
    monkeypatch.setattr(S3Store, "_request", lambda self, method, **rest: request(self, method, MaxKeys=5, **rest))
    s3.plan = lambda method, key, query: fault if "continuation-token" in query else None  # from the second page on
    with pytest.raises(SimsearchError) as error:
        build()
    assert PLACE in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value, UnavailableError if fault in {"slow-down", "reset"} else UsageError)
    assert len(ids(index)) == ALL
    s3.plan = lambda method, key, query: None
    monkeypatch.setattr(S3Store, "_request", request)
    assert told(build()) == {"removed": 1, "unchanged": ALL - 1}


def test_listing_without_its_continuation(
    build: Any, s3: S3Server, photos: Path, index: Path, monkeypatch: Any
) -> None:
    upload(s3, photos)
    build(PLACE)
    page = S3Store._page

    def cut(self: S3Store, prefix: str, token: str | None) -> Any:
        found = page(self, prefix, token)
        return found | {"Contents": found["Contents"][:3], "IsTruncated": True}

    monkeypatch.setattr(S3Store, "_page", cut)
    with pytest.raises(UnavailableError, match="cut the listing short"):
        build()
    assert len(ids(index)) == ALL


def test_credentials_that_end_during_a_build_end_it(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    upload(s3, photos)
    s3.plan = lambda method, key, query: "bad-key" if "rose" in key else None
    with pytest.raises(UsageError, match="refuses the credentials: InvalidAccessKeyId"):
        build(PLACE)


def test_server_that_goes_away_ends_the_build(
    build: Any, s3: S3Server, photos: Path, index: Path, monkeypatch: Any
) -> None:
    """It does not become a failure of each object."""
    upload(s3, photos)
    monkeypatch.setattr(store, "LOST", 4)
    monkeypatch.setattr("simsearch.images.sources.remote.s3.S3Store._body", lambda *given, **rest: _refuse(given, rest))
    with pytest.raises(UnavailableError, match="cannot be read: no answer from"):
        build(PLACE)


async def _refuse(given: object, rest: object) -> bytes:
    raise ConnectionRefusedError


def test_object_replaced_after_the_listing(build: Any, s3: S3Server, photos: Path, index: Path) -> None:
    client = upload(s3, photos)
    new = draw(photos / "new.bmp", 900, "BMP").read_bytes()

    def plan(method: str, key: str, query: str) -> None:
        if key.endswith("rose/5.png") and method == "GET" and s3.tries[key] == 1:
            client.put_object(Bucket=BUCKET, Key=key, Body=new)

    s3.plan = plan
    assert told(build(PLACE))["added"] == ALL
    s3.forget()
    assert told(build()) == {"unchanged": ALL}  # read once more: it has another identity now
    assert s3.gets == {"pictures/rose/5.png": 1}


# -- interruptions

MORE = 200

BUILD = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
from simsearch import api
from simsearch.indexing.options import BuildOptions
from tests.helpers.models import Colours
api.build_with_summary([sys.argv[1]], sys.argv[2], Colours(), device="cpu", options=BuildOptions(batch_size=4))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_build_goes_on(
    build: Any, s3: S3Server, photos: Path, index: Path, own_cache: Path, how: signal.Signals
) -> None:
    """Nothing is read again but what was under way: what was read and not committed is kept in the cache."""
    for number in range(MORE):
        draw(photos / CLASSES[number % 4] / f"more-{number}.png", 1000 + number)
    total = ALL + MORE
    upload(s3, photos)
    late = sorted(f"pictures/{path.relative_to(photos)}" for path in photos.rglob("*.png"))[total // 4]
    ended = threading.Event()

    def hold(method: str, key: str, query: str) -> None:
        if key == late and method == "GET":  # items are committed in order, so that those after it cannot be
            ended.wait(60)

    s3.plan = hold
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = BUILD.replace("from tests", "from simsearch.indexing import sync\nsync.COMMIT_SECONDS = 0.0\nfrom tests")
    with subprocess.Popen([sys.executable, "-c", script, PLACE, str(index)], env=environment, cwd=ROOT) as process:
        for _ in range(1200):
            if any(key > late for key in list(s3.gets)) and (index / "meta.json").exists() and ids(index):
                break
            time.sleep(0.05)
        else:
            pytest.fail("nothing was committed")
        process.send_signal(how)
        time.sleep(0.5)
        ended.set()  # Python waits for threads that are reading
        process.wait(60)
    committed = {f"pictures/{path}" for path in ids(index)}
    assert 0 < len(committed) < total
    time.sleep(0.3)  # answers that nobody waits for
    kept = len(list((own_cache / "remote" / "kept").iterdir()))
    before = set(s3.gets)
    assert kept > 0
    s3.forget()
    summary = build(PLACE)
    assert summary.unchanged == len(committed) and summary.items == total
    assert set(s3.gets.values()) == {1}
    assert not committed & set(s3.tries)
    assert len(before & set(s3.gets)) <= store.REQUESTS
    last = 4  # a batch: committed, but maybe still kept when the process ended; they stay until they are old
    assert sum(s3.gets.values()) <= total - len(committed) - kept + last + 1  # one file may be incomplete
    assert len(list((own_cache / "remote" / "kept").iterdir())) <= last


def test_kept_object_that_is_damaged_is_read_again(own_cache: Path) -> None:
    kept = KeptObjects()
    place = ("s3://bucket", "a.png", 5, 1)
    assert kept.read(place, lambda: b"first") == b"first"
    assert kept.read(place, lambda: b"second") == b"first"
    [path] = (own_cache / "remote" / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert kept.read(place, lambda: b"third") == b"third"
    kept.forget([place, ("s3://bucket", "b.png", 5, 1)])
    assert not path.exists()


def test_little_is_kept(own_cache: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("simsearch.images.sources.remote.kept.KEPT_BYTES", 100)
    kept = KeptObjects()
    for number in range(5):
        kept.read(("s3://bucket", f"{number}", 30, 1), lambda: bytes(30))
    assert len(list((own_cache / "remote" / "kept").iterdir())) == 1
    stale = own_cache / "remote" / "kept" / "stale"
    stale.write_bytes(b"")
    os.utime(stale, (0, 0))
    KeptObjects().read(("s3://bucket", "x", 30, 1), lambda: bytes(30))
    assert not stale.exists()


# -- secrets


def test_credentials_are_not_kept(build: Any, s3: S3Server, photos: Path, index: Path, own_cache: Path) -> None:
    upload(s3, photos)
    build(PLACE)
    for folder in (index, own_cache):
        for path in folder.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_public_bucket_without_credentials(
    build: Any, s3: S3Server, photos: Path, index: Path, monkeypatch: Any
) -> None:
    client = upload(s3, photos)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    signed: set[str] = set()
    answer = s3._app

    def listen(environ: Any, start: Any) -> Any:
        signed.add(environ.get("HTTP_AUTHORIZATION", ""))
        return answer(environ, start)

    assert told(build(PLACE)) == {"failed": ALL}
    assert {reason for _, reason in failures(index)} == {"access denied; no credentials were found"}
    for path in photos.rglob("*.png"):
        key = f"pictures/{path.relative_to(photos).as_posix()}"
        client.put_object_acl(Bucket=BUCKET, Key=key, ACL="public-read")
    monkeypatch.setattr(s3, "_app", listen)
    assert told(build(PLACE)) == {"added": ALL, "computed": ALL}
    assert signed == {""}


def test_models_are_not_needed_for_a_dry_run(s3: S3Server, photos: Path, index: Path) -> None:
    upload(s3, photos)
    assert api.plan([PLACE], index, Colours(), BuildOptions()).to_read == ALL
    assert not s3.tries
