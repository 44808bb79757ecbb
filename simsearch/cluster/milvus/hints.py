"""Hints for errors about collections, as keyword arguments of `SimsearchError`: for Python and for the shell."""

from __future__ import annotations

ANOTHER = {
    "hint": "push into another collection; replace=True drops this one",
    "shell_hint": "push into another collection; --replace drops this one",
}

REPLACE = {"hint": "replace=True makes a new collection", "shell_hint": "--replace makes a new collection"}

MADE_BY_PUSH = {
    "hint": "simsearch.cluster.milvus.push.push makes a collection",
    "shell_hint": "`simsearch push` makes a collection",
}


def make_one(address: object) -> dict[str, str]:
    """Returns the hints for a collection that does not exist."""
    return {
        "hint": f'make one: simsearch.cluster.milvus.push.push(index, "{address}")',
        "shell_hint": f"make one: simsearch push {address} -i INDEX",
    }
