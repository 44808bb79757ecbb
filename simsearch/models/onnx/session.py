"""Opens ONNX Runtime sessions on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simsearch.common import machine
from simsearch.models.precision import has_vnni


def open_session(
    graph: Path | bytes, *, few: bool = False, lanes: int = 1, quantized: bool = False, disabled: Sequence[str] = ()
) -> Any:
    """Returns an `onnxruntime.InferenceSession` on the CPU.

    graph: the path or the content of an ONNX file.
    few: True to start faster but compute more slowly, because the weights are not rearranged.
    lanes: the number of threads that will call the session at once; each uses a part of the cores.
    quantized: True if the graph may have 8-bit operators. disabled: the names of optimisations to switch off.
    Raises the errors of ONNX Runtime, which have classes of their own, and RuntimeError for missing files.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions anyway
    if few:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if lanes > 1:
        options.intra_op_num_threads = machine.available_cores() // lanes
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without VNNI, sums could overflow in 16 bits. This option prevents that, but makes opening slower.
    if quantized and not has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    source = str(graph) if isinstance(graph, Path) else graph
    return onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
    )
