"""Weights files: `.safetensors` whose header says everything that is needed to use them.

The header's `simsearch` entry is a JSON object: format, architecture, arguments, recipe, classes, description,
training, metrics, and how compressed tensors are encoded (`simsearch.models.compress`). Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from simsearch.errors import WeightsError
from simsearch.models import compress
from simsearch.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

FORMAT = 1
_LARGEST_HEADER = 64 << 20


@dataclass(frozen=True)
class Card:
    """What a weights file says of itself.

    architecture: a key of `simsearch.models.ARCHITECTURES`; arguments: those of its configuration.
    training and metrics are free-form summaries, shown by `simsearch models --verbose`.
    labels: what the classes were called in the training data, where those are not their names (WordNet ids, say).
    distances: quantiles of the distances between random pairs of training images, for `similarity` in small indexes.
    """

    architecture: str
    arguments: dict[str, Any]
    recipe: Recipe
    classes: tuple[str, ...] = ()
    description: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    distances: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_card(path: Path) -> Card:
    """Reads the header alone. Raises WeightsError for a file that is not a simsearch weights file."""
    header = _header(path)
    try:
        return Card(
            architecture=header["architecture"],
            arguments={k: tuple(v) if isinstance(v, list) else v for k, v in header["arguments"].items()},
            recipe=Recipe.from_dict(header["recipe"]),
            classes=tuple(header.get("classes", ())),
            description=header.get("description", ""),
            training=header.get("training", {}),
            metrics=header.get("metrics", {}),
            distances=tuple(header.get("distances", ())),
            labels=tuple(header.get("labels", ())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: the header is incomplete: {error}") from error


def read_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors, dense, float32, by parameter name."""
    encoding = _header(path).get("encoding", {})
    try:
        raw = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    tensors = {name: array.astype(np.float32) for name, array in raw.items() if "#" not in name}
    for name, facts in encoding.items():
        try:
            parts = (raw[f"{name}#{part}"] for part in ("codebook", "gaps", "indices"))
            tensors[name] = compress.decode(compress.Encoded(tuple(facts["shape"]), int(facts["stored"]), *parts))
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{path}: tensor {name} is incomplete: {error}") from error
    return tensors


def write(path: Path, card: Card, tensors: Mapping[str, NDArray[np.float32]], bits: Mapping[str, int]) -> None:
    """Writes a weights file in one atomic step.

    bits: for each tensor to compress, the bits of its shared weights; the others are stored as float16.
    """
    stored: dict[str, NDArray[Any]] = {}
    encoding: dict[str, Any] = {}
    for name, array in tensors.items():
        if name not in bits:
            stored[name] = np.ascontiguousarray(array, dtype=np.float16)
            continue
        encoded = compress.encode(array, bits[name])
        encoding[name] = {"shape": list(encoded.shape), "stored": encoded.stored, "bits": bits[name]}
        stored[f"{name}#codebook"] = encoded.codebook
        stored[f"{name}#gaps"] = encoded.gaps
        stored[f"{name}#indices"] = encoded.indices
    header = {
        "format": FORMAT,
        "architecture": card.architecture,
        "arguments": card.arguments,
        "recipe": card.recipe.to_dict(),
        "classes": card.classes,
        "description": card.description,
        "training": card.training,
        "metrics": card.metrics,
        "distances": card.distances,
        "labels": card.labels,
        "encoding": encoding,
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(safetensors.numpy.save(stored, {"simsearch": json.dumps(header)}))
    os.replace(partial, path)


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= size <= _LARGEST_HEADER:
                raise WeightsError(f"{path} is not a .safetensors file")
            header = json.loads(file.read(size))
            found = json.loads(header["__metadata__"]["simsearch"])
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is not a simsearch weights file", hint="`simsearch models` lists what can be named instead"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise WeightsError(f"{path} has weights format {found.get('format')!r}, this version reads {FORMAT}")
    return found
