"""Builds from folders on web servers."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simsearch.errors import UnavailableError, UsageError
from simsearch.images.sources.remote import http as remote_http
from tests.helpers.pictures import EACH, draw
from tests.helpers.remote import own_cache
from tests.helpers.sync import ALL, failures, ids, items, labels, told
from tests.helpers.web import Web, folder_files, serving

__all__ = ["own_cache"]

pytest.importorskip("aiohttp", reason="the extra [remote] is not installed")
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def web(photos: Path) -> Iterator[Web]:
    with serving(folder_files(photos)) as server:
        yield server


def test_a_listing_like_a_folder(build: Any, web: Web, photos: Path, index: Path) -> None:
    assert told(build(f"{web.url}/pictures/")) == {"added": ALL, "computed": ALL}
    assert {path for path in web.gets if path.endswith(".png")} == set(web.files)
    assert max(web.gets.values()) == 1
    assert labels(index)["rose/0.png"] == "rose"
    web.forget()
    assert told(build()) == {"unchanged": ALL}
    assert not any(path.endswith(".png") for path in web.gets)
    web.files["/pictures/blue/0.png"] = draw(photos / "new.png", 800).read_bytes()
    del web.files["/pictures/rose/0.png"]
    assert told(build()) == {"updated": 1, "removed": 1, "unchanged": ALL - 2, "computed": 1}
    assert {path for path in web.gets if path.endswith(".png")} == {"/pictures/blue/0.png"}


def test_the_server_of_python(build: Any, photos: Path, index: Path) -> None:
    """It has no ETag and no ranges, but dates."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(photos))

        def log_message(self, *given: object) -> None:
            return

    draw(photos / "blue" / "a b%20ü.png", 950)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        place = f"http://127.0.0.1:{server.server_port}"
        assert told(build(place)) == {"added": ALL + 1, "computed": ALL + 1}
        assert told(build()) == {"unchanged": ALL + 1}
        assert "blue/a b%20ü.png" in ids(index)
        server.shutdown()
        thread.join()


def test_names_are_unescaped_and_escaped_again(build: Any, web: Web, index: Path, photos: Path) -> None:
    names = ["a b.png", "100%.png", "ü.png", "x?y#z.png", "a&b;c.png"]
    web.files = {f"/odd/{name}": draw(photos / "one.png", 700 + n).read_bytes() for n, name in enumerate(names)}
    assert told(build(f"{web.url}/odd")) == {"added": len(names), "computed": len(names)}
    assert set(ids(index)) == set(names)
    assert told(build(f"{web.url}/odd")) == {"unchanged": len(names)}


@pytest.mark.parametrize("link", ["/ü b/0.png", "/%C3%BC%20b/0.png", "{url}/%c3%bc%20b/0.png", "./0.png", "0.png"])
def test_links_written_in_other_ways(build: Any, web: Web, index: Path, photos: Path, link: str) -> None:
    web.files = {"/ü b/0.png": draw(photos / "one.png", 700).read_bytes()}
    web.pages["/ü b/"] = f'<html><a href="{link.format(url=web.url)}">0</a></html>'
    for place in ("ü b", "%C3%BC%20b"):
        build(f"{web.url}/{place}")
    assert list(ids(index)) == ["0.png"]


def test_without_identity_each_build_reads(build: Any, web: Web) -> None:
    web.etags = False
    build(f"{web.url}/pictures")
    web.forget()
    assert told(build()) == {"unchanged": ALL}
    assert all(web.gets[path] == 1 for path in web.files)


def test_server_without_head(build: Any, web: Web) -> None:
    web.heads_known = False
    assert told(build(f"{web.url}/pictures")) == {"added": ALL, "computed": ALL}


@pytest.mark.parametrize(
    "link",
    ["http://other.example/x.png", "//other.example/x.png", "/etc/x.png", "../x.png", "..%2fx.png", "a/../../x.png"],
)
def test_links_that_lead_elsewhere(build: Any, web: Web, photos: Path, index: Path, link: str) -> None:
    web.files["/etc/x.png"] = web.files["/x.png"] = draw(photos / "one.png", 900).read_bytes()
    web.pages["/pictures/rose/"] = f'<html><a href="{link}">x</a><a href="0.png">0</a></html>'
    assert told(build(f"{web.url}/pictures"))["added"] == ALL - EACH + 1
    assert not {"/etc/x.png", "/x.png"} & set(web.gets)


def test_redirects_stay_on_the_host(build: Any, web: Web, index: Path) -> None:
    with serving({"/secret.png": b"x"}) as inner:
        web.redirects["/pictures/rose/0.png"] = f"{inner.url}/secret.png"
        web.redirects["/pictures/rose/1.png"] = "/pictures/blue/0.png"
        summary = build(f"{web.url}/pictures")
        assert not inner.gets and not inner.heads
    assert told(summary)["added"] == ALL - 1
    assert summary.unread == [(f"{web.url}/pictures/rose/0.png", f"{web.url[7:]} redirects to another host")]


def test_listing_that_fails_halfway_removes_nothing(build: Any, web: Web, index: Path) -> None:
    build(f"{web.url}/pictures")
    del web.files["/pictures/blue/0.png"]
    web.statuses["/pictures/rose/"] = [503] * 9
    summary = build()
    assert told(summary) == {"removed": 1, "unchanged": ALL - EACH - 1}  # what was listed in full
    assert [path for path, _ in summary.unread] == [f"{web.url}/pictures/rose"]
    web.statuses["/pictures/"] = [503] * 9
    with pytest.raises(UnavailableError, match=r"cannot be listed: .* answered 503"):
        build()
    web.statuses.clear()
    web.lost.add("/pictures/")
    web.pages["/pictures/rose/"] = '<html><a href="0.png">0</a>'  # cut short, though the length agrees
    summary = build()
    assert "removed" not in told(summary) and "cut off" in summary.unread[0][1]
    assert len(ids(index)) == ALL - 1


def test_file_that_cannot_be_asked_for_stays(build: Any, web: Web, index: Path) -> None:
    build(f"{web.url}/pictures")
    web.statuses["/pictures/rose/0.png"] = [500] * 9
    assert told(build()) == {"unchanged": ALL - 1}
    assert len(ids(index)) == ALL


def test_faults_that_pass(build: Any, web: Web) -> None:
    web.statuses = {path: [429, 503, 500] for path in web.files} | {"/pictures/": [503]}
    assert told(build(f"{web.url}/pictures")) == {"added": ALL, "computed": ALL}


def test_body_that_ends_in_its_middle(build: Any, web: Web, index: Path) -> None:
    web.lost.add("/pictures/rose/0.png")
    assert told(build(f"{web.url}/pictures")) == {"added": ALL - 1, "computed": ALL - 1, "failed": 1}
    assert "broke off" in failures(index)[0][1]


def test_invented_folders_end(build: Any, web: Web, monkeypatch: Any) -> None:
    monkeypatch.setattr(remote_http, "DEPTH", 5)
    monkeypatch.setattr(
        Web, "page", lambda self, folder: f'<html><a href="0.png">0</a><a href="{"x" * 3}/">d</a></html>'
    )
    web.files = {"/pictures/0.png": next(iter(web.files.values()))}
    assert told(build(f"{web.url}/pictures"))["added"] == 1


def test_no_listing(build: Any, web: Web) -> None:
    web.pages["/pictures/"] = "<html>nothing here</html>"
    with pytest.raises(UsageError, match=r"nothing is stored below http://.*/pictures/"):
        build(f"{web.url}/pictures")
    with pytest.raises(UsageError, match="cannot be listed: no such file or folder"):
        build(f"{web.url}/other")


def test_passwords_of_other_programs_stay(build: Any, web: Web, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    build(f"{web.url}/pictures")
    assert not any("authorization" in headers for headers in web.headers_seen)


def test_single_file(build: Any, web: Web, index: Path) -> None:
    assert told(build(f"{web.url}/pictures/rose/0.png")) == {"added": 1, "computed": 1}
    assert told(build()) == {"unchanged": 1}
    assert items(index)["0.png"].size == len(web.files["/pictures/rose/0.png"])
    with pytest.raises(UsageError, match=r"cannot be listed|nothing is stored"):
        build(f"{web.url}/pictures/rose/none.png")
