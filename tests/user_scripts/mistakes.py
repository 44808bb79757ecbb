"""Mistakes: each is an error for a type checker, and a UsageError when it is made.

The comments silence the checkers, which say so if there is nothing to silence.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import simsearch


def mistakes(engine: simsearch.Engine, picture: Path) -> Iterator[Callable[[], object]]:
    yield lambda: engine.search(picture, wher={"label": "amber"})  # type: ignore[call-arg]
    yield lambda: engine.search(picture, max_distance="3")  # type: ignore[arg-type]
    yield lambda: engine.search(picture, k="3")  # type: ignore[arg-type]
    yield lambda: engine.search(picture, crop=(0, 0, 8))  # type: ignore[arg-type]
    yield lambda: engine.search(7.5)  # type: ignore[arg-type]
    yield lambda: engine.search_by_id("1")  # type: ignore[arg-type]
    yield lambda: engine.search_by_vector(engine.features([picture])[0], crop=(0, 0, 8, 8))  # type: ignore[call-arg]
    yield lambda: list(engine.items(where=5))  # type: ignore[arg-type]
    yield lambda: engine.classify(picture, crops=2)  # type: ignore[arg-type]
    yield lambda: engine.export("out", "csv")  # type: ignore[arg-type]
    yield lambda: simsearch.open(engine.path, gpu=True)  # type: ignore[call-arg]
    yield lambda: engine.classify(picture, top=3)  # type: ignore[call-arg]
    yield lambda: engine.export("out", format="npy")  # type: ignore[call-arg]
    yield lambda: engine.tune(recal=0.9)  # type: ignore[call-arg]
    yield lambda: engine.add(picture, label="none")  # type: ignore[call-arg]
    yield lambda: engine.duplicates(max_distance="near")  # type: ignore[arg-type]
    yield lambda: simsearch.build(picture, engine.path, labels="folders")  # type: ignore[arg-type]
    yield lambda: simsearch.build(picture, engine.path, exclud="*.png")  # type: ignore[call-arg]
    yield lambda: simsearch.create_app(engine, apikeys=["secret"])  # type: ignore[call-arg]
    yield lambda: simsearch.create_app(engine, timeout="5")  # type: ignore[arg-type]
