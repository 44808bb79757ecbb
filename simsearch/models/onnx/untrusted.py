"""Checks an ONNX file that may come from a stranger, before ONNX Runtime opens it.

ONNX Runtime runs only operators of its own, so a graph cannot bring code. But it may read its tensors from other files,
and may have loops and functions that cost far more than the file's size suggests. Graphs with any of these are refused,
because networks do not need them. The numbers of fields below are those in onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

from simsearch.errors import WeightsError
from simsearch.models.onnx.protobuf import read_fields

LARGEST_BYTES = 1 << 30
"""Largest size of a file, in bytes; larger files are refused."""

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Domains of the operators that ONNX Runtime has."""

_GRAPH, _TRAINING, _FUNCTION = 7, 20, 25  # ModelProto
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15  # GraphProto
_OPERATOR, _ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7  # NodeProto
_TENSORS, _GRAPHS, _SPARSE_TENSORS = (5, 10), (6, 11), (22, 23)  # AttributeProto
_EXTERNAL, _LOCATION = 13, 14  # TensorProto


def check_graph(name: str, data: bytes) -> None:
    """Raises WeightsError if a file is not ONNX or its graph is refused.

    A graph is refused if it refers to other files, or has subgraphs, functions, training information, or unknown
    operators.
    """
    try:
        found = dict.fromkeys(_problems(memoryview(data)))
    except ValueError as error:
        raise WeightsError(f"{name} is not an ONNX file: {error}") from error
    if found:
        raise WeightsError(f"{name} is refused: {'; '.join(list(found)[:3])}", hint=_HINT)


_HINT = "export the network as one file, with its tensors inside and without loops or operators of its own"


def _problems(model: memoryview) -> Iterator[str]:
    graphs = 0
    for number, value in read_fields(model):
        if number == _GRAPH:
            graphs += 1
            yield from _problems_of_graph(_message(value))
        elif number in {_TRAINING, _FUNCTION}:
            yield "it holds functions" if number == _FUNCTION else "it holds training information"
    if not graphs:
        raise ValueError("it has no graph")


def _problems_of_graph(graph: memoryview) -> Iterator[str]:
    for number, value in read_fields(graph):
        if number == _NODE:
            yield from _problems_of_node(_message(value))
        elif number == _INITIALIZER:
            yield from _problems_of_tensor(_message(value))
        elif number == _SPARSE:
            yield from _problems_of_sparse(_message(value))


def _problems_of_node(node: memoryview) -> Iterator[str]:
    operator, domain = _text(node, _OPERATOR)[:40], _text(node, _NODE_DOMAIN)
    if domain not in DOMAINS:
        yield f"ONNX Runtime has no operator {operator!r} of {domain[:40]!r}"
    for number, value in read_fields(node):
        if number != _ATTRIBUTE:
            continue
        for part, content in read_fields(_message(value)):
            if part in _GRAPHS:
                yield f"its operator {operator!r} holds another graph"
            elif part in _TENSORS:
                yield from _problems_of_tensor(_message(content))
            elif part in _SPARSE_TENSORS:
                yield from _problems_of_sparse(_message(content))


def _problems_of_sparse(tensor: memoryview) -> Iterator[str]:
    for number, value in read_fields(tensor):
        if number in {1, 2}:  # values, indices
            yield from _problems_of_tensor(_message(value))


def _problems_of_tensor(tensor: memoryview) -> Iterator[str]:
    for number, value in read_fields(tensor):
        if number == _EXTERNAL or (number == _LOCATION and value != 0):
            yield "its tensors are in another file"


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a field is a number, but should be a text or a message")
    return value


def _text(message: memoryview, field: int) -> str:
    """Returns the value of a text field, or an empty text. If the field occurs several times, the last value counts."""
    found = ""
    for number, value in read_fields(message):
        if number == field:
            found = bytes(_message(value)).decode(errors="replace")
    return found
