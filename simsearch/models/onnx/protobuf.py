"""The few protocol buffer fields that an ONNX file needs."""

from __future__ import annotations

import struct
from collections.abc import Sequence

FLOAT, UINT8 = 1, 2  # TensorProto.DataType


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative integers are sent as 64-bit two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


message_field = bytes_field


def text_field(number: int, value: str) -> bytes:
    return bytes_field(number, value.encode())


def attribute(name: str, value: float | int | Sequence[int]) -> bytes:
    if isinstance(value, float):
        return text_field(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + integer_field(20, 1)
    if isinstance(value, int):
        return text_field(1, name) + integer_field(3, value) + integer_field(20, 2)
    return text_field(1, name) + b"".join(integer_field(8, item) for item in value) + integer_field(20, 7)


def value_info(name: str, kind: int, shape: Sequence[int | None]) -> bytes:
    dims = b"".join(
        message_field(1, text_field(2, "batch") if size is None else integer_field(1, size)) for size in shape
    )
    return text_field(1, name) + message_field(2, message_field(1, integer_field(1, kind) + message_field(2, dims)))
