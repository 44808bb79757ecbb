"""Items and their files over HTTP."""

import os

import pytest

from tests.helpers.client import code
from tests.helpers.pictures import draw

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


@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "GIF", "WEBP", "AVIF", "BMP"])
def test_media_types(tmp_path, colours, form):
    from PIL import Image, features

    import simsearch
    from tests.helpers.client import Client

    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a", form)
    with simsearch.build(tmp_path / "photos", tmp_path / "index", model=colours) as engine:
        found = Client(simsearch.create_app(engine))("GET", "/v1/items/1/image")
    assert found.headers["content-type"] == f"image/{'jpeg' if form == 'MPO' else form.lower()}"
    assert "content-disposition" not in found.headers


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
    assert client("GET", "/v1/items").json() == {"items": [], "total": 0, "next": None}
    assert client("GET", "/v1/items?count=0").status_code == 422


def listed(client, query):
    """All ids of a listing, read page by page, and its total."""
    found, after = [], ""
    while True:
        page = client("GET", f"/v1/items?limit=7{query}{after}").json()
        assert len(page["items"]) <= 7
        found += [item["id"] for item in page["items"]]
        if page["next"] is None:
            return found, page["total"]
        after = f"&after={page['next']}"


def test_listing_page_by_page(client, engine, photos):
    assert listed(client, "&sort=id") == (list(range(1, 25)), 24)
    os.utime(photos / "blue" / "0.png", ns=(10**18, 2 * 10**18))  # in 2033
    os.utime(photos / "rose" / "5.png", ns=(0, 0))  # before there were digital pictures: no date
    engine.add([photos])
    newest, oldest = listed(client, "")[0], listed(client, "&sort=oldest")[0]
    assert (newest[0], newest[-1], oldest[-1]) == (7, 24, 24)
    assert sorted(newest) == sorted(oldest) == list(range(1, 25))
    item = client("GET", "/v1/items/7").json()
    assert item["modified"] == "2033-05-18T03:33:20Z"
    assert client("GET", "/v1/items/24").json()["modified"] is None


def test_listing_by_label_folder_and_filter(client, engine):
    blue = set(range(7, 13))
    for query in ("&label=blue", "&folder=blue", "&folder=blue/", "&filter=label%3Dblue", "&filter=path~blue/*"):
        found, total = listed(client, query)
        assert (set(found), total) == (blue, 6), query
    assert listed(client, "&filter=path~*/0.png&folder=blue") == ([7], 1)
    assert listed(client, "&folder=b*") == ([], 0)
    assert listed(client, "&after=999") == ([], 24)
    engine.remove([7])
    assert listed(client, "&label=blue")[1] == 5
    assert client("GET", "/v1/items?label=blue").json()["total"] == 5  # a page too
    twice = ("limit=5&limit=6", "label=blue&label=rose", "count=3&limit=5", "count=3&label=blue", "id=1&count=2")
    odd = ("limit=1_0", "limit=1.0", "limit=%2B5", "limit=5&after=1_0", "count=1e1", "id=1_0", "id=1.0")
    for bad in twice + odd:
        assert client("GET", f"/v1/items?{bad}").status_code == 422, bad
    for bad in ("limit=0", "limit=201", "limit=5&sort=size", "limit=5&after=-1", "id=x", "limit=5&filter=nonsense"):
        assert client("GET", f"/v1/items?{bad}").status_code == 422, bad


def test_items_by_their_ids(client):
    found = client("GET", "/v1/items?id=5&id=99&id=2").json()["items"]
    assert [item["id"] for item in found] == [5, 2]
    assert client("GET", "/v1/items?" + "&".join(["id=1"] * 201)).status_code == 422


def test_facets(client, engine, tmp_path):
    found = client("GET", "/v1/facets").json()
    assert (found["items"], found["complete"], found["fields"]) == (24, True, [])
    assert {"value": "blue", "items": 6} in found["labels"]
    assert found["labels"] == found["folders"]
    draw(tmp_path / "with metadata" / "x" / "y.png", 900)
    table = tmp_path / "with metadata" / "t.csv"
    table.write_text("path,label,year,place\nx/y.png,blue,2012,Zürich\n")
    engine.add([table])
    found = client("GET", "/v1/facets").json()
    assert found["labels"][0] == {"value": "blue", "items": 7}
    assert {"value": "x", "items": 1} in found["folders"]
    fields = {field["name"]: field for field in found["fields"]}
    assert fields["place"]["values"] == [{"value": "Zürich", "items": 1}]
    assert fields["year"]["items"] == 1
    engine.remove(["*"])
    assert client("GET", "/v1/facets").json()["labels"] == []
