"""Items and their files over HTTP."""

import pytest

from tests.helpers.client import code

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")


def test_items_and_their_files(client, photos):
    item = client("GET", "/v1/items/1")
    assert item.json()["label"] == "amber"
    image = client("GET", "/v1/items/1/image")
    assert image.content == (photos / "amber" / "0.png").read_bytes()
    assert image.headers["content-type"] == "image/png"
    assert image.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in image.headers["content-security-policy"]
    (photos / "amber" / "0.png").write_text("<script>alert(1)</script>")
    assert client("GET", "/v1/items/1/image").headers["content-disposition"] == "attachment"
    small = client("GET", "/v1/items/2/thumbnail?size=64")
    assert small.headers["content-type"] == "image/jpeg"
    again = client("GET", "/v1/items/2/thumbnail?size=64", headers={"if-none-match": small.headers["etag"]})
    assert again.status_code == 304
    (photos / "amber" / "2.png").unlink()
    assert code(client("GET", "/v1/items/3/image")) == (404, "image_gone")


def test_some_items(client, engine):
    found = client("GET", "/v1/items?count=4").json()["items"]
    assert [item["id"] for item in found] == [1, 9, 16, 24]
    assert found[0] == client("GET", "/v1/items/1").json()
    assert len(client("GET", "/v1/items?count=100").json()["items"]) == 24
    engine.remove([1, 2, 24])
    assert [item["id"] for item in client("GET", "/v1/items?count=2").json()["items"]] == [3, 23]
    engine.remove(["*"])
    assert client("GET", "/v1/items").json() == {"items": []}
    assert client("GET", "/v1/items?count=0").status_code == 422
