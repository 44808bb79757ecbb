"""The command `push`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from simsearch.cli.console import echo, format_counts, pluralize
from simsearch.cli.options import format_option, index_option, version_option
from simsearch.cli.params import KeyValue
from simsearch.cli.progress import show_progress
from simsearch.cluster.milvus import push
from simsearch.common.milvus_address import parse_address
from simsearch.storage.index import Index


@click.command("push")
@click.argument("address", metavar="milvus://HOST:PORT/COLLECTION")
@click.option(
    "--index-type",
    "kind",
    metavar="KIND",
    help="Index type of a new collection: FLAT, HNSW, IVF_FLAT, IVF_SQ8, DISKANN, GPU_CAGRA, ..."
    "  [default: FLAT below 10,000 items, then HNSW, DISKANN from 5 million]",
)
@click.option(
    "--set",
    "parameters",
    multiple=True,
    type=KeyValue(),
    metavar="KEY=N",
    help="Parameter of the index of a new collection, such as M=32; repeatable.",
)
@click.option(
    "--storage",
    type=click.Choice(["float32", "float16"]),
    default=None,
    help="Storage type of a new collection; float16 needs Milvus 2.4.  [default: float32]",
)
@click.option("--replace", is_flag=True, help="Drop an existing collection first.")
@format_option
@index_option
@version_option
def push_command(
    address: str,
    kind: str | None,
    parameters: tuple[tuple[str, int | str], ...],
    storage: Any,
    replace: bool,
    form: str,
    index_path: str,
) -> None:
    """Copies an index into a Milvus collection, or only the differences if the collection exists.

    Afterwards, every command that searches accepts `-i milvus://HOST:PORT/COLLECTION`. The address
    milvus:///PATH/FILE.db stands for a file of Milvus Lite, which needs no server. Options can follow the address after
    ?, joined by &: consistency=strong, timeout=SECONDS and effort=N (searches with a larger N find more, and take
    longer). If a push is interrupted, the next push continues it. If the server needs a token, set
    $SIMSEARCH_MILVUS_TOKEN.
    """
    with Index(index_path) as index, show_progress("pushing") as progress:
        options = push.PushOptions(kind and kind.upper(), dict(parameters), storage, replace, progress)
        pushed = push.push(index, address, options)
    if form == "json":
        echo(json.dumps(dataclasses.asdict(pushed)))
        return
    changes = format_counts({"sent": pushed.sent, "deleted": pushed.deleted, "unchanged": pushed.unchanged})
    echo(
        f"{parse_address(address)}: {pluralize(pushed.items, 'item')}, {pushed.kind}; {changes or 'nothing to do'};"
        f" counted, {pushed.compared:,} compared"
    )
