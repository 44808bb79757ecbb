"""The kinds of index that Milvus has for features, and their parameters."""

from __future__ import annotations

from typing import Any

SEARCH_PARAMETERS = {
    "HNSW": "ef",
    "HNSW_SQ": "ef",
    "HNSW_PQ": "ef",
    "IVF_FLAT": "nprobe",
    "IVF_SQ8": "nprobe",
    "IVF_PQ": "nprobe",
    "SCANN": "nprobe",
    "DISKANN": "search_list",
    "GPU_CAGRA": "itopk_size",
    "GPU_IVF_FLAT": "nprobe",
    "GPU_IVF_PQ": "nprobe",
}
"""The search parameter that trades time for recall, for each approximate kind of index."""

KINDS = ("FLAT", "GPU_BRUTE_FORCE", *SEARCH_PARAMETERS)
EXACT = ("FLAT", "GPU_BRUTE_FORCE")

BUILD_PARAMETERS = {
    "HNSW": {"M": 16, "efConstruction": 200},
    "GPU_CAGRA": {"intermediate_graph_degree": 64, "graph_degree": 32},
}
"""Default build parameters for some kinds of index."""


def search_parameters(kind: str, width: int, effort: int | None) -> dict[str, Any]:
    """Returns the parameters for searching an index of this kind; {} for an exact kind.

    width: the number of candidates. effort: the value for the parameter that SEARCH_PARAMETERS names for this kind;
    None for a default value. If the value is less than `width`, `width` is used instead, except for nprobe.
    """
    name = SEARCH_PARAMETERS.get(kind)
    if name is None:
        return {}
    if name == "nprobe":
        return {name: effort or 32}
    return {name: max(effort or 128, width)}
