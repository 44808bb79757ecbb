"""Concurrent searches share batches and have limits."""

import io
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

import simsearch
from simsearch.errors import SimsearchError
from simsearch.search.queries import PreparedImage, PreparedQuery
from simsearch.server.batcher import SearchJob
from simsearch.server.searches import Searches
from tests.helpers.client import Client, png, upload

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")
import asyncio  # noqa: E402


def test_too_many_at_once(engine, monkeypatch):
    app = simsearch.create_app(engine, in_flight=2)
    gate = threading.Event()
    served = app.state.service.indexes["default"]
    run = served.run
    monkeypatch.setattr(served, "run", lambda call, **options: (gate.wait(10), run(call, **options))[1])

    async def go():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            first = [asyncio.create_task(client.post("/v1/search", json={"id": 1})) for _ in range(2)]
            await asyncio.sleep(0.2)
            third = await client.post("/v1/search", json={"id": 1})
            gate.set()
            return [r.status_code for r in await asyncio.gather(*first)], third

    served_ones, third = asyncio.run(go())
    assert served_ones == [200, 200]
    assert (third.status_code, third.headers["retry-after"]) == (429, "1")


def test_concurrent_searches_share_batches(engine, colours):
    app = simsearch.create_app(engine)
    random = np.random.default_rng(0)

    def picture():
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    pictures = [picture() for _ in range(40)]

    async def go():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            return await asyncio.gather(*(client.post("/v1/search", files=upload(p)) for p in pictures))

    for data, response in zip(pictures, asyncio.run(go()), strict=True):
        expected = engine.search(data)
        assert [(m["id"], m["distance"]) for m in response.json()["matches"]] == [(m.id, m.distance) for m in expected]
    assert "simsearch_batch_size_count" in Client(app)("GET", "/metrics").text


def test_all_kinds_of_searches_in_one_batch(engine, photos):
    """Each gets its own answer, whatever it is computed with; and so do those that fail."""
    service = simsearch.create_app(engine).state.service
    served, batcher = service.indexes["default"], service.batchers["default"]
    data = (photos / "blue" / "3.png").read_bytes()
    vector = engine.features([png()])[0]
    queries: list[tuple[dict[str, Any], Any]] = [
        ({"image": data, "flip": True}, lambda: engine.search(data, flip=True)),
        ({"image": png(), "flip": True}, lambda: engine.search(png(), flip=True)),
        ({"image": png()}, lambda: engine.search(png())),
        ({"id": 3}, lambda: engine.search_by_id(3)),
        ({"id": 3, "flip": True, "crop": [2, 0, 8, 16]}, lambda: engine.search_by_id(3, flip=True, crop=(2, 0, 8, 16))),
        (
            {"id": 4, "flip": True, "plus": [7], "minus": [9, 2]},
            lambda: engine.search_by_id(4, flip=True, plus=[7], minus=[9, 2]),
        ),
        ({"id": 4, "flip": True, "expand": 3, "k": 2}, lambda: engine.search_by_id(4, 2, flip=True, expand=3)),
        ({"id": 5, "expand": 3}, lambda: engine.search_by_id(5, expand=3)),
        ({"vector": vector.tolist(), "dedup": True}, lambda: engine.search_by_vector(vector, dedup=True)),
        ({"id": 99, "flip": False}, None),
        ({"id": 1, "plus": [99]}, None),
        ({"id": 1, "filter": ["nonsense"]}, None),
    ]
    searches = Searches(service)
    jobs = [searches._job(served, service.search_request.read(query), service.lanes.small) for query, _ in queries]
    answers = batcher._answers(engine, jobs)
    for (query, expected), answer in zip(queries, answers, strict=True):
        if expected is None:
            assert isinstance(answer, SimsearchError), query
        else:
            found = [(match.id, pytest.approx(match.distance)) for match in expected()]
            assert [(match.id, match.distance) for match in answer] == found, query


def test_pixels_for_other_model_are_not_computed(engine):
    service = simsearch.create_app(engine).state.service
    batcher = service.batchers["default"]
    pixels = np.zeros((engine.recipe.crop, engine.recipe.crop, 3), np.uint8)
    own = SearchJob(PreparedQuery(PreparedImage(pixels=pixels, weights_sha256=engine.meta.weights_sha256)), 1, {})
    other = SearchJob(PreparedQuery(PreparedImage(pixels=pixels, weights_sha256="0" * 64)), 1, {})
    answers = [batcher.submit(job) for job in (own, other)]
    assert len(answers[0].result(10)) == 1
    with pytest.raises(SimsearchError, match="another model"):
        answers[1].result(10)
