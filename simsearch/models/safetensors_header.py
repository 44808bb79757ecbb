"""The header of a `.safetensors` file: its length in 8 bytes, then JSON that says where each tensor lies."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

from simsearch.common import outside_json
from simsearch.errors import WeightsError

MAX_SIZE = 64 << 20
"""Largest size of a header, in bytes."""

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4}
_BYTES |= {"U16": 2, "U8": 1, "BOOL": 1}
"""Bytes per element, by the name of the dtype in the format."""


class Header(NamedTuple):
    """A header. text: its JSON, without padding. start: the byte of the file at which the tensors begin."""

    text: str
    start: int

    def values(self) -> dict[str, Any]:
        """Returns the parsed JSON. Raises ValueError if it is invalid."""
        parsed = outside_json.parse(self.text)
        if not isinstance(parsed, dict):
            raise ValueError("the header is not a JSON object")
        metadata = parsed.get("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("the header's metadata are not texts")
        return parsed


class TensorLocation(NamedTuple):
    """The place of one tensor in its file: its shape, first byte and number of bytes."""

    shape: tuple[int, ...]
    first: int
    size: int


def read_header(path: Path) -> Header:
    """Reads the header of a file.

    Raises OSError if the file cannot be read, WeightsError if it is not a .safetensors file, and ValueError if the
    header is cut off or not UTF-8.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= size <= MAX_SIZE:
            raise WeightsError(f"{path} is not a .safetensors file")
        return parse_header(prefix + file.read(size))


def parse_header(data: bytes) -> Header:
    """Returns the header of a file with the content `data`. Raises ValueError if the header is cut off or not UTF-8."""
    size = struct.unpack("<Q", data[:8])[0] if len(data) > 8 else 0
    if not 2 <= size <= min(MAX_SIZE, len(data) - 8):
        raise ValueError("it ends within its header")
    return Header(data[8 : 8 + size].decode().rstrip(" "), 8 + size)


def pack_header(text: str) -> bytes:
    """Returns the header's bytes: the length, then the JSON `text`, padded with spaces to a multiple of 8 bytes."""
    raw = text.encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def locate_tensors(path: Path) -> dict[str, TensorLocation]:
    """Returns a dictionary from the name of each tensor in a file to the tensor's location.

    Raises the errors of `read_header`, and ValueError if an entry of the header is invalid or if the tensors do not
    fill the rest of the file without gaps.
    """
    header = read_header(path)
    located = {}
    for name, entry in header.values().items():
        if name != "__metadata__":
            located[name] = _location(name, entry, header.start)
    end = header.start
    for name, location in sorted(located.items(), key=lambda pair: pair[1][1:]):
        if location.first != end:
            raise ValueError(f"the tensor {name!r} does not begin where the one before it ends")
        end += location.size
    if end != path.stat().st_size:
        raise ValueError(f"its tensors end at byte {end:,}, but the file has {path.stat().st_size:,} bytes")
    return located


def _location(name: str, entry: Any, start: int) -> TensorLocation:
    """Returns the location of a tensor. Raises ValueError if its entry is invalid.

    entry: the tensor's entry in the header. start: the byte of the file at which the tensors begin.
    """
    if not isinstance(entry, dict) or entry.get("dtype") not in _BYTES:
        raise ValueError(f"the entry of the tensor {name!r} has no known dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise ValueError(f"the tensor {name!r} has a wrong shape or place")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _BYTES[entry["dtype"]]:
        raise ValueError(f"the tensor {name!r} has a shape that does not fit its size")
    return TensorLocation(tuple(shape), start + offsets[0], offsets[1] - offsets[0])
