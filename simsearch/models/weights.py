"""Weights files: `.safetensors` files whose header contains everything needed to use them.

The header has two entries of simsearch. The entry `simsearch` is a JSON object with the version of the format, most
fields of `ModelCard`, and the sizes of compressed tensors (`simsearch.models.deep_compression`). The entry `ranges` has
the other two fields of `ModelCard`, `ranges` and `agreement`. Only int8 needs them, so this entry may be missing;
`add_ranges` adds it. No pickled code is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from simsearch.common import outside_json
from simsearch.common.atomic_files import atomic_write, replacing
from simsearch.errors import WeightsError
from simsearch.images.preprocessing import Preprocessing
from simsearch.models import deep_compression, larger_input
from simsearch.models.safetensors_header import Header, locate_tensors, pack_header, read_header
from simsearch.models.training_record import Digests, TrainingRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

ELEMENTS_PER_BYTE = 64
"""Largest permitted number of tensor elements per byte of a weights file. Files that simsearch wrote have 5 to 10."""

RECORD = ("record#trained_on", "record#held_out")
"""Names of the uint8 arrays that store the two parts of the `TrainingRecord` in a file."""

FORMAT = 1
"""Version of the header's `simsearch` entry."""


@dataclass(frozen=True)
class ModelCard:
    """The description of a model in the header of its weights file.

    architecture: a key of `simsearch.models.registry.ARCHITECTURES`.
    arguments: the arguments of the architecture's configuration class.
    recipe: the preprocessing of images. classes: the names of the classes.
    training, metrics: free-form summaries, shown by `simsearch models --verbose`.
    distances: quantiles of the distances between random pairs of training images. `simsearch.search.similarity` uses
    these quantiles for indexes that are too small for measuring such distances.
    labels: the labels of the classes in the training data. They may differ from `classes`; WordNet ids, for example.
    ranges: needed for int8; maps the name of each point of the network (`simsearch.models.onnx.int8.POINTS`) to the
    largest activation of each channel at this point on training images, (channels,) float32.
    agreement: mean fraction of the six nearest neighbours that int8 and float32 have in common; 0 if not measured.
    trained_at: 0 if the network takes input of the size that it was trained with. If it takes larger input, the side of
    the training input in pixels; the weights are enlarged when they are read (`simsearch.models.larger_input`).
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
    trained_at: int = 0


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_card(path: Path) -> ModelCard:
    """Reads the model card from a file's header. Raises WeightsError if simsearch did not write the file."""
    header = _read_entry(path)
    try:
        ranges, agreement = _ranges_from(_typed(header["ranges"], str))
        texts = {name: _list(header.get(name, []), str) for name in ("classes", "labels")}
        return ModelCard(
            architecture=_typed(header["architecture"], str),
            arguments={k: tuple(v) if isinstance(v, list) else v for k, v in _typed(header["arguments"], dict).items()},
            recipe=Preprocessing.from_dict(_typed(header["recipe"], dict)),
            classes=texts["classes"],
            description=_typed(header.get("description", ""), str),
            training=_typed(header.get("training", {}), dict),
            metrics=_typed(header.get("metrics", {}), dict),
            distances=_list(header.get("distances", []), int, float),
            labels=texts["labels"],
            ranges=ranges,
            agreement=agreement,
            trained_at=_typed(header.get("trained_at", 0), int),
        )
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: the header is incomplete: {error}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: the ranges cannot be read: {error}") from error


def _typed(value: Any, *kinds: type) -> Any:
    """Returns the value if it has one of the types `kinds`. Raises TypeError otherwise."""
    if type(value) not in kinds:
        raise TypeError(f"{str(value)[:60]!r} is not of type {kinds[0].__name__}")
    return value


def _list(values: Any, *kinds: type) -> tuple[Any, ...]:
    """Returns a list as a tuple if each value has one of the types `kinds`. Raises TypeError otherwise."""
    return tuple(_typed(value, *kinds) for value in _typed(values, list))


def read_tensors(path: Path, *, as_trained: bool = False) -> dict[str, NDArray[np.float32]]:
    """Returns all weights, by parameter name, as dense float32 arrays.

    as_trained: True to return the weights as they are stored, for input of the size that they were trained with, even
    if the network takes larger input.
    Raises WeightsError if they cannot be read.
    """
    entry = _read_entry(path)
    encoding = entry.get("encoding", {})
    try:
        locate_tensors(path)
        _check_sizes(_typed(encoding, dict), largest_network(path))
        raw = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    tensors = {name: array.astype(np.float32) for name, array in raw.items() if "#" not in name}
    for name, facts in encoding.items():
        try:
            parts = (raw[f"{name}#{part}"] for part in ("codebook", "gaps", "indices"))
            tensors[name] = deep_compression.decompress_tensor(
                deep_compression.CompressedTensor(tuple(facts["shape"]), int(facts["stored"]), *parts)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path}: tensor {name} is incomplete: {error}") from error
    if entry.get("trained_at") and not as_trained:
        try:
            larger_input.enlarge(tensors, entry["architecture"], entry["arguments"], largest_network(path))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path}: the weights cannot be enlarged: {error}") from error
    if odd := next((name for name, tensor in tensors.items() if not np.isfinite(tensor).all()), None):
        raise WeightsError(f"{path}: a weight in the tensor {odd!r} is NaN or infinite")
    return tensors


def largest_network(path: Path) -> int:
    """Returns the largest number of weights that a file may declare, which depends on its size.

    With this limit, a small file cannot fill the memory.
    """
    return ELEMENTS_PER_BYTE * path.stat().st_size + (1 << 20)


def _check_sizes(encoding: dict[str, Any], largest: int) -> None:
    """Raises ValueError, TypeError or KeyError if the declared sizes of compressed tensors are invalid or too large.

    encoding: maps the name of each tensor to its sizes. largest: the largest permitted total number of elements.
    """
    total = 0
    for name, facts in encoding.items():
        shape = _list(_typed(facts, dict)["shape"], int)
        if min(shape, default=0) < 0 or _typed(facts["stored"], int) < 0:
            raise ValueError(f"the tensor {name!r} has a negative size")
        total += math.prod(shape)
    if total > largest:
        raise ValueError(f"its tensors would have {total:,} elements, far too many for a file of this size")


def read_record(path: Path) -> TrainingRecord:
    """Reads the record of the pictures that a model was trained on. The record is empty if the file has none.

    It is not part of the card, since only `eval model` and `train` need it. Raises WeightsError if it cannot be read.
    """
    former = _read_entry(path).get("record")
    try:
        if former:
            return TrainingRecord.from_former(_typed(former, dict))
        located, parts = locate_tensors(path), []
        with path.open("rb") as file:
            for name in RECORD:
                if (place := located.get(name)) is None:
                    parts.append(Digests())
                    continue
                file.seek(place.first)
                parts.append(Digests.unpacked(file.read(place.size)))
        return TrainingRecord(*parts)
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: its record of pictures cannot be read: {error}") from error


def write(
    path: Path,
    card: ModelCard,
    tensors: Mapping[str, NDArray[np.float32]],
    bits: Mapping[str, int],
    record: TrainingRecord | None = None,
) -> None:
    """Writes a weights file atomically, without the card's ranges (see `add_ranges`).

    tensors: maps the name of each parameter to a float32 array.
    bits: for each tensor to compress, the number of bits per weight (1 to 8); other tensors are stored as float16.
    record: the pictures that the model was trained on and those that were held out, if they are known.
    Raises UsageError if the file cannot be written.
    """
    record = record or TrainingRecord()
    stored: dict[str, NDArray[Any]] = {
        name: digests.packed()
        for name, digests in zip(RECORD, (record.trained_on, record.held_out), strict=True)
        if digests
    }
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
        **({"trained_at": card.trained_at} if card.trained_at else {}),
    }
    atomic_write(path, safetensors.numpy.save(stored, {"simsearch": json.dumps(header)}))


def add_ranges(path: Path, ranges: Mapping[str, NDArray[np.float32]], agreement: float = 0.0) -> None:
    """Writes the ranges and the agreement of int8 (see `ModelCard`) into the header, atomically.

    The tensors do not change. Each value of the ranges is stored as one character, which has only 64 different values.
    Each value is therefore rounded up, by less than 5 %. Values below about a fifteenth of the largest value at the
    same point of the network are raised to this fifteenth.
    Raises WeightsError if simsearch did not write the file.
    """
    _read_entry(path)  # raises WeightsError if it is not a weights file
    header = _header_without_ranges(path)
    text = header.text
    if not text.startswith(_METADATA):  # written by another program
        values = header.values()
        text = json.dumps({"__metadata__": values.pop("__metadata__"), **values}, separators=(",", ":"))
    parts = [f"{agreement:.4f}", *(f"{name} {peak:.4g} {codes}" for name, (peak, codes) in _coded(ranges).items())]
    text = f"{_METADATA}{_RANGES}{json.dumps(';'.join(parts))},{text.removeprefix(_METADATA)}"
    with path.open("rb") as old, replacing(path) as new:
        old.seek(header.start)
        new.write(pack_header(text))
        shutil.copyfileobj(old, new, 1 << 20)


def sha256_without_ranges(path: Path) -> str:
    """Returns the SHA-256 that a file had before `add_ranges`. Indexes made at that time recorded it."""
    _read_entry(path)  # raises WeightsError if it is not a weights file
    header = _header_without_ranges(path)
    digest = hashlib.sha256(pack_header(header.text))
    with path.open("rb") as file:
        file.seek(header.start)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_METADATA = '{"__metadata__":{'
_RANGES = '"ranges":'
_CODES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PER_OCTAVE = 16
"""Number of steps that `_coded` distinguishes within a factor of two."""


def _coded(ranges: Mapping[str, NDArray[np.float32]]) -> dict[str, tuple[float, str]]:
    """Encodes the ranges. Returns for each point its largest value, and one character for each channel.

    The character stands for the ratio between the channel's value and the largest value.
    """
    coded = {}
    for name, values in ranges.items():
        peak = float(f"{float(values.max()) * 1.0005:.4g}") or 1e-6  # so that rounding does not reduce it
        below = np.floor(_PER_OCTAVE * np.log2(peak / np.maximum(values, peak * 1e-6)))
        coded[name] = peak, "".join(_CODES[int(code)] for code in np.clip(below, 0, len(_CODES) - 1))
    return coded


def _ranges_from(text: str) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Returns the ranges and the agreement from the text that `add_ranges` wrote. Raises ValueError for other text."""
    agreement, *parts = text.split(";") if text else ["0"]
    ranges = {}
    for part in parts:
        name, peak, codes = part.split(" ")
        below = np.array([_CODES.index(code) for code in codes], np.float32)
        ranges[name] = (float(peak) * 2 ** (-below / _PER_OCTAVE)).astype(np.float32)
        if not np.isfinite(ranges[name]).all() or not (ranges[name] > 0).all():
            raise ValueError(part[:60])
    return ranges, float(agreement)


def _header_without_ranges(path: Path) -> Header:
    """Returns the header of a file without the `ranges` entry, which `add_ranges` puts at its beginning."""
    header = read_header(path)
    before, found, after = header.text.partition(_METADATA + _RANGES)
    if not found or before:
        return header
    _, end = json.JSONDecoder().raw_decode(after)
    return header._replace(text=_METADATA + after[end:].removeprefix(","))


def _read_entry(path: Path) -> dict[str, Any]:
    """Returns the header's `simsearch` entry, with the text of the header's `ranges` entry added as "ranges".

    Raises WeightsError if simsearch did not write the file.
    """
    try:
        metadata = read_header(path).values()["__metadata__"]
        entry: dict[str, Any] = _typed(outside_json.parse(metadata["simsearch"]), dict)
        entry["ranges"] = metadata.get("ranges", "")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is not a simsearch weights file", hint="`simsearch models` lists the built-in models"
        ) from error
    if entry.get("format") != FORMAT:
        raise WeightsError(f"{path} has weights format {entry.get('format')!r}; this version reads format {FORMAT}")
    return entry
