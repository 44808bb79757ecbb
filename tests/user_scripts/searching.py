"""Searches an index in every way, and converts what it finds."""

import asyncio
import io
from pathlib import Path

import numpy as np
from PIL import Image

import simsearch
from simsearch.errors import ImageError, SimsearchError


def pictures(path: Path) -> list[int]:
    """The first match of a picture in each form that it may have."""
    with simsearch.open("index", device="cpu") as engine, path.open("rb") as file, Image.open(path) as image:
        found: list[simsearch.Match] = []
        for picture in (str(path), path, path.read_bytes(), io.BytesIO(path.read_bytes()), file):
            found += engine.search(picture, k=1)
        found += engine.search(np.asarray(image.convert("RGB")), k=1)
        found += engine.search(image, k=1)
        return [match.id for match in found]


def options(engine: simsearch.Engine, path: Path) -> float:
    near = engine.search(path, 3, where={"label": ["amber", "rose"]}, max_distance=9.0, min_similarity=0.1)
    cut = engine.search(
        path, crop=(0, 0, 8, 8), flip=True, no_self=True, plus=[1, (2, 0.5)], minus=["photos/rose/0.png"]
    )
    others = engine.search_by_id(1, where=["label!=blue", "width>=8"], dedup=True, exact=True, expand=2)
    many = engine.search_many([path, 2], k=2)
    vector = engine.search_by_vector(engine.features([path])[0], k=2, where={"id": 1})
    first = near[0]
    words: str = f"{first.rank} {first.path} {first.label or '-'} {first.word} {first.metadata.get('year')}"
    assert words and cut.exact and others.exact and len(many) == 2 and len(vector) == 1
    return first.distance + first.similarity


def items(engine: simsearch.Engine) -> dict[str, int]:
    sizes = {item.path: item.width * item.height + item.bytes for item in engine.items(where={"label": "blue"})}
    ids = [item.id for item in engine]
    assert len(ids) == len(engine)
    groups: list[list[int]] = [[member.item.id for member in group] for group in engine.duplicates(0.01)]
    assert not groups and not engine.verify().problems
    print(engine.to_arrow(features=True).num_rows, engine.info()["items"], engine.failures())
    print(engine.search_by_id(1).to_pandas(), engine.export("out", "npy"))
    return sizes


async def concurrent(engine: simsearch.Engine, paths: list[Path]) -> list[str]:
    """Threads search, so that the event loop goes on meanwhile."""
    found = await asyncio.gather(*(asyncio.to_thread(engine.search, path, k=1) for path in paths))
    return [matches[0].path for matches in found]


def reason(path: Path) -> str:
    with simsearch.open("index") as engine:
        try:
            engine.search(path)
        except ImageError as error:
            return f"{error} ({error.hint})"
    return ""


def missing() -> str:
    try:
        simsearch.open("nowhere")
    except FileNotFoundError as error:
        assert isinstance(error, SimsearchError)
        return str(error)
    return ""
