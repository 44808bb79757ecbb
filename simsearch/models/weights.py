"""Weights files: `.safetensors` whose header says everything that is needed to use them.

The header's `simsearch` entry is a JSON object: format, architecture, arguments, recipe, classes, description,
training, metrics, and how compressed tensors are encoded (`simsearch.models.deep_compression`). The header's `ranges`
entry, for the 8-bit engine, may be added later. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from simsearch.common.atomic_files import atomic_write
from simsearch.errors import WeightsError
from simsearch.images.preprocessing import Preprocessing
from simsearch.models import deep_compression

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

FORMAT = 1
_LARGEST_HEADER = 64 << 20


@dataclass(frozen=True)
class ModelCard:
    """What a weights file says of itself.

    architecture: a key of `simsearch.models.registry.ARCHITECTURES`; arguments: those of its configuration.
    training and metrics are free-form summaries, shown by `simsearch models --verbose`.
    labels: what the classes were called in the training data, where those are not their names (WordNet ids, say).
    distances: quantiles of the distances between random pairs of training images, for `similarity` in small indexes.
    ranges: the largest activations of training images, by point and channel, for `simsearch.models.onnx.int8`.
    agreement: the share of their six nearest that int8 and float32 have in common; 0 where it was not measured.
    """

    architecture: str
    arguments: dict[str, Any]
    recipe: Preprocessing
    classes: tuple[str, ...] = ()
    description: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    distances: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    ranges: dict[str, NDArray[np.float32]] = field(default_factory=dict, compare=False)
    agreement: float = 0.0


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_card(path: Path) -> ModelCard:
    """Reads the header alone. Raises WeightsError for a file that is not a simsearch weights file."""
    header = _header(path)
    try:
        ranges, agreement = _ranges_from(header["ranges"])
        return ModelCard(
            architecture=header["architecture"],
            arguments={k: tuple(v) if isinstance(v, list) else v for k, v in header["arguments"].items()},
            recipe=Preprocessing.from_dict(header["recipe"]),
            classes=tuple(header.get("classes", ())),
            description=header.get("description", ""),
            training=header.get("training", {}),
            metrics=header.get("metrics", {}),
            distances=tuple(header.get("distances", ())),
            labels=tuple(header.get("labels", ())),
            ranges=ranges,
            agreement=agreement,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: the header is incomplete: {error}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: the ranges cannot be read: {error}") from error


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
            tensors[name] = deep_compression.decompress_tensor(
                deep_compression.CompressedTensor(tuple(facts["shape"]), int(facts["stored"]), *parts)
            )
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{path}: tensor {name} is incomplete: {error}") from error
    return tensors


def write(path: Path, card: ModelCard, tensors: Mapping[str, NDArray[np.float32]], bits: Mapping[str, int]) -> None:
    """Writes a weights file in one atomic step. The card's ranges belong to other tensors; see `add_ranges`.

    bits: for each tensor to compress, the bits of its shared weights; the others are stored as float16.
    Raises UsageError where there is no way to write.
    """
    stored: dict[str, NDArray[Any]] = {}
    encoding: dict[str, Any] = {}
    for name, array in tensors.items():
        if name not in bits:
            stored[name] = np.ascontiguousarray(array, dtype=np.float16)
            continue
        encoded = deep_compression.compress_tensor(array, bits[name])
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
    atomic_write(path, safetensors.numpy.save(stored, {"simsearch": json.dumps(header)}))


def add_ranges(path: Path, ranges: Mapping[str, NDArray[np.float32]], agreement: float = 0.0) -> None:
    """Writes `ModelCard.ranges` and `agreement` into the header, replacing what is there; the tensors stay as they are.

    Values are kept in a character each, rounded up by less than a twentieth, and down to a sixteenth of the largest.
    """
    _header(path)  # or it is no weights file
    header, start = _without_ranges(path)
    beginning = '{"__metadata__":{'
    if not header.startswith(beginning):  # as other programs write it
        values = json.loads(header)
        header = json.dumps({"__metadata__": values.pop("__metadata__"), **values}, separators=(",", ":"))
    parts = [f"{agreement:.4f}", *(f"{name} {peak:.4g} {codes}" for name, (peak, codes) in _coded(ranges).items())]
    header = f"{beginning}{_RANGES}{json.dumps(';'.join(parts))},{header.removeprefix(beginning)}"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with path.open("rb") as old, partial.open("wb") as new:
            old.seek(start)
            new.write(_preamble(header))
            shutil.copyfileobj(old, new, 1 << 20)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256_without_ranges(path: Path) -> str:
    """The SHA-256 of the file as it was before `add_ranges`: indexes that it made then are as good with it now."""
    _header(path)
    header, start = _without_ranges(path)
    digest = hashlib.sha256(_preamble(header))
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_RANGES = '"ranges":'
_CODES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PER_OCTAVE = 16
"""Steps of a character, within a factor of two."""


def _coded(ranges: Mapping[str, NDArray[np.float32]]) -> dict[str, tuple[float, str]]:
    """For each point the largest value of all and, a character a channel, how far below it the channel's lies."""
    coded = {}
    for name, values in ranges.items():
        peak = float(f"{float(values.max()) * 1.0005:.4g}") or 1e-6  # rounding must not lower it
        below = np.floor(_PER_OCTAVE * np.log2(peak / np.maximum(values, peak * 1e-6)))
        coded[name] = peak, "".join(_CODES[int(code)] for code in np.clip(below, 0, len(_CODES) - 1))
    return coded


def _ranges_from(text: str) -> tuple[dict[str, NDArray[np.float32]], float]:
    """What `add_ranges` wrote. Raises ValueError."""
    agreement, *parts = text.split(";") if text else ["0"]
    ranges = {}
    for part in parts:
        name, peak, codes = part.split(" ")
        below = np.array([_CODES.index(code) for code in codes], np.float32)
        ranges[name] = (float(peak) * 2 ** (-below / _PER_OCTAVE)).astype(np.float32)
        if not np.isfinite(ranges[name]).all() or not (ranges[name] > 0).all():
            raise ValueError(part[:60])
    return ranges, float(agreement)


def _without_ranges(path: Path) -> tuple[str, int]:
    """The file's header as text, without padding and ranges, and where the tensors begin."""
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = file.read(size).decode().rstrip(" ")
    before, found, after = header.partition('{"__metadata__":{' + _RANGES)
    if found and not before:
        _, end = json.JSONDecoder().raw_decode(after)
        after = after[end:].removeprefix(",")
        header = '{"__metadata__":{' + after
    return header, 8 + size


def _preamble(header: str) -> bytes:
    """What a .safetensors file begins with: the header's length, and the header padded to a multiple of 8."""
    raw = header.encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= size <= _LARGEST_HEADER:
                raise WeightsError(f"{path} is not a .safetensors file")
            header = json.loads(file.read(size))
            found = json.loads(header["__metadata__"]["simsearch"])
            found["ranges"] = header["__metadata__"].get("ranges", "")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is not a simsearch weights file", hint="`simsearch models` lists what can be named instead"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise WeightsError(f"{path} has weights format {found.get('format')!r}, this version reads {FORMAT}")
    return found
