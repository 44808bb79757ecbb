"""Builds and changes an index."""

from pathlib import Path

import simsearch


def show(done: int, total: int) -> None:
    print(f"{done} of {total}")


def build(source: Path, model: str) -> int:
    with simsearch.build(
        [source, "more"],
        index=Path("built"),
        model=model,
        exclude=["*.tmp"],
        labels="folder",
        prune=False,
        batch_size=8,
        workers=1,
        progress=show,
    ) as engine:
        summary: simsearch.Summary = engine.add("new.png", labels="none")
        removed = engine.remove(["id:1", 2])
        changed = summary.added + removed
        assert summary.failed == 0 and engine.tune(recall=0.9).kind == "exact"
        return len(engine) + changed
