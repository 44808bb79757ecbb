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
    small = client("GET", "/v1/items/2/thumbnail?size=64")
    assert small.headers["content-type"] == "image/jpeg"
    again = client("GET", "/v1/items/2/thumbnail?size=64", headers={"if-none-match": small.headers["etag"]})
    assert again.status_code == 304
    (photos / "amber" / "2.png").unlink()
    assert code(client("GET", "/v1/items/3/image")) == (404, "image_gone")


@pytest.mark.parametrize("how", ["text", "picture", "link"])
def test_replaced_picture_is_gone(client, photos, how):
    file = photos / "amber" / "0.png"
    assert client("GET", "/v1/items/1/thumbnail").status_code == 200
    if how == "link":
        file.unlink()
        file.symlink_to("/etc/passwd")
    else:
        file.write_bytes(b"<script>alert(1)</script>" if how == "text" else (photos / "amber" / "1.png").read_bytes())
    for path in ("image", "thumbnail?size=65"):
        assert code(client("GET", f"/v1/items/1/{path}")) == (404, "image_gone")


def test_what_browsers_do_not_show_is_attached(tmp_path, colours):
    from PIL import Image

    import simsearch
    from tests.helpers.client import Client

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.tif")
    with simsearch.build(tmp_path / "photos", tmp_path / "index", model=colours) as engine:
        found = Client(simsearch.create_app(engine))("GET", "/v1/items/1/image")
    assert found.headers["content-disposition"] == "attachment"
    assert found.content == (tmp_path / "photos" / "a.tif").read_bytes()


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
