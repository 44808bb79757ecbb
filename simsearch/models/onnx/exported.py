"""Runs networks of torchvision without torch, from ONNX graphs in the cache.

`simsearch.models.torch.export` writes each graph once, to a folder of the cache. The folder's name depends on the
network and on the versions of torch and torchvision, which determine the official weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simsearch.common.cache import cached_folder
from simsearch.errors import UsageError, WeightsError
from simsearch.images.preprocessing import Preprocessing
from simsearch.models.onnx.graph_model import GraphInput, GraphModel
from simsearch.models.onnx.session import open_session

VERSION = 1
"""Part of the name of the cached folder; increase it whenever the exported graph changes."""

_EXPORTING = threading.Lock()
"""Held during an export, since torch can export only one network at a time."""

GRAPH, FACTS = "network.onnx", "facts.json"


@dataclass(frozen=True)
class Facts:
    """Facts about an exported network, which are stored beside its graph.

    weights_sha256, dimension: as in `Model`. recipe: the preprocessing, as JSON values.
    crc32: the checksum of the graph's file.
    problem: the reason why the network cannot run in ONNX Runtime; empty if it can.
    """

    weights_sha256: str = ""
    dimension: int = 0
    recipe: dict[str, Any] | None = None
    crc32: int = 0
    problem: str = ""


def open_exported(name: str, export: Callable[[Path], None], few: bool = False) -> GraphModel | None:
    """Opens the network `torchvision/NAME`; returns None if it only runs in torch.

    export: writes the network's graph and facts into a folder; called if they are not in the cache or are damaged.
    few: True to start faster but compute more slowly; see `open_session`.
    Raises the errors of `export`, and WeightsError if the graph cannot be stored or opened.
    """
    key = folder_name(name)
    try:
        with _EXPORTING:
            folder = cached_folder(key, export)
        for attempt in (1, 2):
            try:
                facts = Facts(**json.loads((folder / FACTS).read_text()))
                return None if facts.problem else _open(name, folder / GRAPH, facts, few)
            except Exception as error:  # onnxruntime raises its own classes
                if attempt == 2:
                    raise WeightsError(f"{name}: ONNX Runtime cannot open the network: {error}") from error
                with _EXPORTING:
                    export(folder)  # the cached graph is damaged
    except OSError as error:
        hint = "set $SIMSEARCH_CACHE to a folder with enough free space"
        raise WeightsError(f"the graph of {name} cannot be stored: {error.strerror or error}", hint=hint) from error
    raise AssertionError("unreachable")


def _open(name: str, graph: Path, facts: Facts, few: bool) -> GraphModel:
    if not few and zlib.crc32(graph.read_bytes()) != facts.crc32:
        raise OSError("the cached graph has changed")
    taken = GraphInput("pixels", np.uint8, channels_last=True)
    recipe = Preprocessing.from_dict(facts.recipe or {})
    session = open_session(graph, few=few)
    return GraphModel(
        name, facts.weights_sha256, recipe, graph, session, taken, "features", few=few, dimension=facts.dimension
    )


def folder_name(name: str) -> str:
    """Returns the name of the cached folder of `torchvision/NAME`. Raises UsageError if NAME has invalid characters."""
    short = name.removeprefix("torchvision/")
    if not re.fullmatch(r"\w{1,80}", short, re.ASCII):
        raise no_such_network(short)
    digest = hashlib.sha256()
    for package in ("torch", "torchvision"):  # reads their version.py, since importing torch takes seconds
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            digest.update(Path(spec.origin).with_name("version.py").read_bytes())
    return f"torchvision-{short}-v{VERSION}-{digest.hexdigest()[:16]}"


def no_such_network(short: str) -> UsageError:
    """Returns the error for a network that torchvision does not have. short: its name without `torchvision/`."""
    return UsageError(
        f"torchvision has no image classifier called {short!r}",
        hint="see torchvision.models.list_models(), for example torchvision/alexnet or torchvision/resnet50",
    )
