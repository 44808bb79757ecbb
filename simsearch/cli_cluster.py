"""The verb `push`, and `build --on`: what goes beyond one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from simsearch.cli_models import form, index, version
from simsearch.console import many, progress

if TYPE_CHECKING:
    from simsearch.planning import Extractor
    from simsearch.push import Options
    from simsearch.storage.index import Index


@click.command()
@click.argument("address", metavar="milvus://HOST:PORT/COLLECTION")
@click.option("--index-type", "kind", metavar="KIND", help="Of a new collection: FLAT, HNSW, IVF_FLAT, IVF_SQ8,"
              " DISKANN, GPU_CAGRA, ...  [default: FLAT below 10,000 items, HNSW; from 5 million DISKANN]")  # fmt: skip
@click.option("--set", "changes", multiple=True, metavar="KEY=N", help="What it is built with: M=32; repeatable.")
@click.option("--storage", type=click.Choice(["float32", "float16"]), default=None,
              help="Of a new collection; float16 needs Milvus 2.4.  [default: float32]")  # fmt: skip
@click.option("--replace", is_flag=True, help="Drop what the collection holds now.")
@form
@index
@version
def push(
    address: str, kind: str | None, changes: tuple[str, ...], storage: Any, replace: bool, form: str, index_path: str
) -> None:
    """Copies an index into a collection in Milvus: only what differs, so again after each change.

    Afterwards `-i milvus://HOST:PORT/COLLECTION` works in every verb that searches. milvus:///PATH/FILE.db is a file of
    Milvus Lite. After ? may follow consistency=strong, timeout=SECONDS and effort=N, joined by &. An interrupted
    push is continued by the next. $SIMSEARCH_MILVUS_TOKEN is the server's token, where it wants one.
    """
    from simsearch.push import Options
    from simsearch.storage.index import Index

    chosen = Options(kind and kind.upper(), _parameters(changes), storage, replace)
    with Index(index_path) as opened_index:
        send(opened_index, address, chosen, form)


def extractor(on: str, device: str, workers: int | None) -> Extractor:
    """What `build --on` computes with."""
    from simsearch.cluster import on_ray

    return on_ray(on, device=device, threads=workers, say=lambda text: click.echo(f"note: {text}", err=True))


def send(opened_index: Index, address: str, options: Options | None = None, form: str = "text") -> None:
    """Pushes an open index and says what came of it."""
    import dataclasses
    import json

    from simsearch.addresses import parse
    from simsearch.push import Options
    from simsearch.push import push as send_off

    with progress("pushing") as callback:
        pushed = send_off(opened_index, address, dataclasses.replace(options or Options(), progress=callback))
    if form == "json":
        click.echo(json.dumps(dataclasses.asdict(pushed)))
        return
    changes = {"sent": pushed.sent, "deleted": pushed.deleted, "unchanged": pushed.unchanged}
    told = ", ".join(f"{count:,} {name}" for name, count in changes.items() if count)
    click.echo(f"{parse(address)}: {many(pushed.items, 'item')}, {pushed.kind}; {told or 'nothing to do'};"
               f" counted, {pushed.compared:,} compared")  # fmt: skip


def _parameters(changes: tuple[str, ...]) -> dict[str, Any]:
    """`M=32` as what an index is built with."""
    from simsearch.errors import UsageError

    parameters: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not key or not equals or not value:
            raise UsageError(f"--set {change!r} is not KEY=N")
        parameters[key] = int(value) if value.isdecimal() else value
    return parameters
