"""The header of a `.safetensors` file: its length in 8 bytes, then JSON that says where each tensor lies."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from simsearch.errors import WeightsError

MAX_SIZE = 64 << 20
"""Bytes of the longest header that is read."""


class Header(NamedTuple):
    """text: the JSON without its padding. start: the byte of the file at which the tensors begin."""

    text: str
    start: int

    def values(self) -> dict[str, Any]:
        """The parsed JSON. Raises ValueError."""
        parsed = json.loads(self.text)
        if not isinstance(parsed, dict):
            raise ValueError("the header is not a JSON object")
        return parsed


class TensorLocation(NamedTuple):
    """The place of one tensor in its file: its shape, first byte and number of bytes."""

    shape: tuple[int, ...]
    first: int
    size: int


def read_header(path: Path) -> Header:
    """Reads the header of a file.

    Raises OSError, WeightsError if the file is not a .safetensors file, and ValueError if the header is not UTF-8.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= size <= MAX_SIZE:
            raise WeightsError(f"{path} is not a .safetensors file")
        return Header(file.read(size).decode().rstrip(" "), 8 + size)


def pack_header(text: str) -> bytes:
    """Returns the first bytes of a file: the length, and the JSON padded with spaces to a multiple of 8 bytes."""
    raw = text.encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def locate_tensors(path: Path) -> dict[str, TensorLocation]:
    """Returns the location of each tensor in a file, by name. Raises as `read_header`."""
    header = read_header(path)
    located = {}
    for name, entry in header.values().items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            located[name] = TensorLocation(tuple(entry["shape"]), header.start + first, last - first)
    return located
