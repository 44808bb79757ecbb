"""Small ONNX files whose features can be checked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


def constant(name: str, values: Any, kind: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.array(values, kind), name)


def model(
    nodes: Any,
    *,
    shape: Any = ("batch", 3, 16, 16),
    kind: int = FLOAT,
    outputs: Any = (("features", ("batch", 3)),),
    constants: Any = (),
    domains: Any = (),
    inputs: Any = (),
    out_kind: int = FLOAT,
) -> Any:
    """A ModelProto with the input `x`."""
    entered = [helper.make_tensor_value_info("x", kind, shape)]
    entered += [helper.make_tensor_value_info(name, FLOAT, ["batch", 1]) for name in inputs]
    left = [helper.make_tensor_value_info(name, out_kind, shape) for name, shape in outputs]
    graph = helper.make_graph(nodes, "g", entered, left, list(constants))
    sets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=sets, ir_version=8)


def means(**options: Any) -> Any:
    """A network whose features are the means of the three channels that it sees."""
    return model(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
        ],
        **options,
    )


def save(proto: Any, path: Path, settings: Any = None) -> Path:
    """Writes a model and, unless it is None, its .json file."""
    path.write_bytes(proto.SerializeToString())
    if settings is not None:
        path.with_suffix(".json").write_text(json.dumps(settings))
    return path
