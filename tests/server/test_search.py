"""Searches over HTTP answer as the engine does."""

import pytest

from tests.helpers.client import code, png, upload

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")


def test_answers_are_those_of_the_engine(client, engine, photos):
    data = (photos / "blue" / "3.png").read_bytes()
    found = client("POST", "/v1/search", files=upload(data), data={"k": "4", "filter": "label=blue"})
    assert found.status_code == 200
    expected = engine.search(data, k=4, where={"label": "blue"})
    assert [(m["id"], m["distance"]) for m in found.json()["matches"]] == [(m.id, m.distance) for m in expected]
    assert set(found.json()) == {"query", "model", "metric", "exact", "took_ms", "matches"}
    by_id = client.search(id=5, k=3, crop=[0, 0, 8, 8]).json()
    assert [m["id"] for m in by_id["matches"]] == [m.id for m in engine.search_by_id(5, 3, crop=(0, 0, 8, 8))]
    vector = engine.features([data])[0]
    assert client.search(vector=vector.tolist(), k=1).json()["matches"][0]["distance"] < 1e-3


def test_mirrored_and_expanded_match_engine(client, engine, photos):
    data = (photos / "blue" / "3.png").read_bytes()

    def pairs(matches):
        return [(match.id, pytest.approx(match.distance)) for match in matches]

    def found(answer):
        assert answer.status_code == 200, answer.text
        return [(match["id"], match["distance"]) for match in answer.json()["matches"]]

    form = {"flip": "true", "k": "4"}
    assert found(client("POST", "/v1/search", files=upload(data), data=form)) == pairs(
        engine.search(data, 4, flip=True)
    )
    assert found(client.search(id=5, flip=True)) == pairs(engine.search_by_id(5, flip=True))
    assert found(client.search(id=5, flip=True, crop=[1, 0, 7, 8])) == pairs(
        engine.search_by_id(5, flip=True, crop=(1, 0, 7, 8))
    )
    assert found(client.search(id=5, flip=True, plus=[2], minus=[9])) == pairs(
        engine.search_by_id(5, flip=True, plus=[2], minus=[9])
    )
    assert found(client.search(id=5, flip=False, expand=3)) == pairs(engine.search_by_id(5, expand=3))
    form = {"expand": "2", "flip": "0"}
    assert found(client("POST", "/v1/search", files=upload(data), data=form)) == pairs(engine.search(data, expand=2))
    assert found(client.search(id=5, filter="label=blue")) == pairs(engine.search_by_id(5, where=["label=blue"]))
    for filter_, where in (
        ({"label": ["blue", "rose"]}, {"label": ["blue", "rose"]}),
        (["label=blue", "label=rose", "id>6"], ["label=blue", "label=rose", "id>6"]),
        ({"label": "blue", "id": [7, 8, 9]}, {"label": "blue", "id": [7, 8, 9]}),
    ):
        expected = pairs(engine.search_by_id(5, 30, where=where))
        assert found(client.search(id=5, k=30, filter=filter_)) == expected
        assert expected
    vector = engine.features([data])[0].tolist()
    assert "cannot be mirrored" in client.search(vector=vector, flip=True).json()["error"]["message"]


def test_crop_in_percent(client, engine, photos):
    data = (photos / "blue" / "3.png").read_bytes()
    expected = [match.distance for match in engine.search(data, crop=(0, "50%", "50%", "50%"))]
    for crop in ("0,50%,50%,50%", '[0, "50%", "50%", "50%"]'):
        found = client("POST", "/v1/search", files=upload(data), data={"crop": crop}).json()
        assert [match["distance"] for match in found["matches"]] == expected
    by_id = engine.search_by_id(5, crop=(0, "50%", "50%", "50%"))
    found = client.search(id=5, crop=[0, "50%", "50%", "50%"]).json()
    assert [match["distance"] for match in found["matches"]] == [match.distance for match in by_id]
    for bad in ([0, 0, "101%", 5], [0, 0, "5", 5], [0, 0, "-5%", 5], [0, 0, None, 5]):
        assert "percent such as" in client.search(id=5, crop=bad).json()["error"]["message"]


def test_note_on_a_condition_that_no_item_meets(client):
    answer = client.search(id=5, filter={"label": "bleu"}).json()
    assert (answer["matches"], answer["notes"]) == ([], ["no item meets label=bleu; did you mean label=blue?"])
    assert "notes" not in client.search(id=5, filter="label=blue").json()
    assert "notes" not in client.search(id=5, filter="label=blue", max_distance=0).json()
    form = {"filter": ["label=moose", "id=5"]}
    answer = client("POST", "/v1/search", files=upload(png()), data=form).json()
    assert answer["notes"] == ["no item meets label=moose; the labels are amber, blue, green, rose"]
    page = client("GET", "/v1/items?filter=label%3Dbleu").json()
    assert (page["total"], page["notes"]) == (0, ["no item meets label=bleu; did you mean label=blue?"])
    assert "notes" not in client("GET", "/v1/items?limit=2").json()


def test_numbers_in_a_form_are_those_of_json(client):
    for field in (
        {"k": "1_0"},
        {"k": "٣"},
        {"expand": "1_0"},
        {"plus": "1_0"},
        {"crop": "0,0,8,1_0"},
        {"flip": "yes"},
        {"max_distance": "1_0"},
        {"k": ""},
        {"expand": "2.0"},
    ):
        assert code(client("POST", "/v1/search", files=upload(png()), data=field)) == (422, "bad_argument"), field
    assert client("POST", "/v1/search", files=upload(png()), data={"k": " 3 ", "flip": "True"}).status_code == 200


def test_more_like_these_not_those(client, engine, photos):
    data = (photos / "blue" / "3.png").read_bytes()
    as_json = client.search(id=5, k=7, plus=[2, 9], minus=[12]).json()
    expected = engine.search_by_id(5, 7, plus=[2, 9], minus=[12])
    assert [(m["id"], m["distance"]) for m in as_json["matches"]] == [(m.id, m.distance) for m in expected]
    assert not {2, 5, 9} & {m["id"] for m in as_json["matches"]}
    fields = {"k": "7", "plus": ["2", "9"], "minus": "12"}
    as_form = client("POST", "/v1/search", files=upload(data), data=fields).json()
    expected = engine.search(data, 7, plus=[2, 9], minus=[12])
    assert [(m["id"], m["distance"]) for m in as_form["matches"]] == [(m.id, m.distance) for m in expected]
    assert code(client.search(id=5, plus=[999])) == (404, "no_such_item")
    for wrong in (3, ["3"], [True], [-1], list(range(65))):
        assert code(client.search(id=5, minus=wrong)) == (422, "bad_argument")
    assert code(client("POST", "/v1/search", files=upload(data), data={"plus": "x"})) == (422, "bad_argument")


def test_item_with_changed_file(client, engine, photos):
    """The item is what was indexed; what must come from the file is refused, since that holds another picture."""
    (photos / "amber" / "1.png").write_bytes(png())
    number = engine.find(str(photos / "amber" / "1.png"))[0].id
    assert client.search(id=number).status_code == 200
    for options in ({"flip": True}, {"crop": [0, 0, 9, 9]}):
        assert code(client.search(id=number, **options)) == (422, "bad_image")


def test_form_may_use_all_allowed_values(client, engine):
    fields = {
        "filter": ["id>0"] * 32,
        "plus": ["2"] * 64,
        "minus": ["9"] * 64,
        "k": "3",
        "crop": "0,0,8,8",
        "max_distance": "9",
        "dedup": "false",
        "exact": "true",
        "flip": "true",
        "expand": "2",
    }
    found = client("POST", "/v1/search", files=upload(png()), data=fields)
    assert found.status_code == 200, found.text
    for name, repeated in (("filter", ["id>0"] * 33), ("plus", ["2"] * 65)):
        assert code(client("POST", "/v1/search", files=upload(png()), data={name: repeated})) == (422, "bad_argument")


def test_smallest_similarity(client, engine):
    """In JSON and in a form, as in Python; a number from 0 to 1."""
    expected = [match.id for match in engine.search_by_id(1, 23, min_similarity=0.4)]
    assert 0 < len(expected) < 23
    assert [m["id"] for m in client.search(id=1, k=23, min_similarity=0.4).json()["matches"]] == expected
    files = upload(png())
    every = client("POST", "/v1/search", files=files, data={"k": "24"}).json()["matches"]
    found = client("POST", "/v1/search", files=files, data={"k": "24", "min_similarity": "0.2"}).json()["matches"]
    assert found == [match for match in every if match["similarity"] >= 0.2]
    for bad in (-1, 1.5, "0.4", True):
        response = client.search(id=1, min_similarity=bad)
        assert code(response) == (422, "bad_argument"), bad
        assert response.json()["error"]["message"] == "min_similarity must be a number from 0 to 1"
