"""Encodes the protocol buffer fields that an ONNX file needs, and decodes the fields of any message.

The functions `integer_field`, `bytes_field` and `text_field` return the bytes of one field with a given number. The
functions `attribute` and `value_info` return the bytes of a message, which consists of fields.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

FLOAT, UINT8 = 1, 2  # TensorProto.DataType


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative integers are encoded as 64-bit two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer_field(number: int, value: int) -> bytes:
    """Encodes a field whose value is an integer or an enum."""
    return _varint(number << 3) + _varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """Encodes a field whose value is bytes or a message: the length of the value, then the value."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


message_field = bytes_field


def text_field(number: int, value: str) -> bytes:
    """Encodes a field whose value is a text, as UTF-8."""
    return bytes_field(number, value.encode())


def attribute(name: str, value: float | int | Sequence[int]) -> bytes:
    """Encodes an AttributeProto, an attribute of a node: a float, an integer or a list of integers."""
    if isinstance(value, float):
        return text_field(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + integer_field(20, 1)
    if isinstance(value, int):
        return text_field(1, name) + integer_field(3, value) + integer_field(20, 2)
    return text_field(1, name) + b"".join(integer_field(8, item) for item in value) + integer_field(20, 7)


def value_info(name: str, kind: int, shape: Sequence[int | None]) -> bytes:
    """Encodes a ValueInfoProto, the description of an input or output tensor.

    kind: the type of its elements. shape: None stands for the size of the batch.
    """
    dims = b"".join(
        message_field(1, text_field(2, "batch") if size is None else integer_field(1, size)) for size in shape
    )
    return text_field(1, name) + message_field(2, message_field(1, integer_field(1, kind) + message_field(2, dims)))


def read_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields the number and the value of each field of a message.

    The value is an int if the field is a varint, and the field's bytes if it has any other wire type.
    Raises ValueError if the bytes are not a message.
    """
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _read_varint(message, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _read_varint(message, place)
        elif kind in {1, 5}:
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has wire type {kind}, which ONNX files do not use")
        if size > len(message) - place:
            raise ValueError("a field is cut short")
        yield key >> 3, message[place : place + size]
        place += size


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    """Returns the integer that begins at byte `place`, and the place after it. Raises ValueError if it is cut short."""
    value = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("a number is cut short")
