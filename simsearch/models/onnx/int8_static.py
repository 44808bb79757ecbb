"""Makes 8-bit copies of networks that simsearch did not build: of torchvision's, and of those in .onnx files.

ONNX Runtime's quantizer measures the ranges of all activations on images, and writes an 8-bit graph, which can be used
like any other .onnx file. The graph is kept only if its features agree with those of the original network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import MissingExtraError, UsageError, WeightsError
from simsearch.models import load
from simsearch.models.onnx import int8_calibration, onnx_file
from simsearch.models.onnx.graph_model import GraphModel
from simsearch.models.onnx.int8_calibration import Agreement
from simsearch.models.precision import ENOUGH
from simsearch.models.registry import ONNX

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 16
"""Number of images computed at once."""

_RANGES = 256
"""Largest number of images whose activations are measured; the quantizer keeps statistics of each image in memory."""


def is_file(name: str) -> bool:
    """Returns true for the path of an .onnx file."""
    return name.endswith(ONNX)


def calibrate(
    name: str, sources: Sequence[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Agreement, Path]:
    """Writes an 8-bit copy of a network, if the features of the copy agree with those of the network.

    Returns the agreement, and the path of the copy. Half of the images are used for the ranges, the other half for the
    agreement. If the agreement (`top6`) is below `ENOUGH`, nothing is written.
    name: `torchvision/<name>` or the path of an .onnx file. The copy is called `<name>-int8.onnx`. It is written to the
    current folder for a network of torchvision, otherwise to the folder of the file.
    sources, progress: as for `int8_calibration.calibrate`.
    Raises UsageError if there are too few images, if the copy exists already, or if the network does not run in ONNX
    Runtime; MissingExtraError without the package `onnx`; and WeightsError if the network cannot be quantized.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError(f"quantizing {name}", "onnx")
    path = Path(name).expanduser().absolute()
    output = (path.parent if is_file(name) else Path.cwd()) / f"{path.name.removesuffix(ONNX)}-int8.onnx"
    if output.exists():
        raise UsageError(f"{output} exists already", hint="indexes made with this file would not match a new file")
    model = load.load_model(name, "cpu")
    if not isinstance(model, GraphModel):
        raise UsageError(f"{name} runs in {model.engine}, but an 8-bit copy needs ONNX Runtime")
    pixels = int8_calibration.load_pixels(model.recipe, sources, progress)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".int8-") as folder:
        graph = Path(folder) / output.name
        _quantize(model, graph, pixels[::2][:_RANGES])
        graph.with_suffix(".json").write_text(json.dumps(_settings(model, name), indent=1) + "\n")
        quantized = onnx_file.open_onnx(onnx_file.find_onnx(str(graph)))
        rows = [np.concatenate([each.features(part) for part in _batches(pixels[1::2])]) for each in (model, quantized)]
        found = int8_calibration.agreement(*rows)
        if found.top6 >= ENOUGH:
            for part in (graph.with_suffix(".json"), graph):
                os.replace(part, output.with_name(part.name))
    return found, output


def _batches(pixels: NDArray[np.uint8], size: int | None = None) -> Iterator[NDArray[np.uint8]]:
    size = size or _BATCH
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]


def _quantize(model: GraphModel, graph: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes the 8-bit graph of a model: activations unsigned, weights signed with a step for each output channel.

    graph: the path of the file to write. pixels: (n, S, S, 3) uint8, the images on which the ranges are measured.
    Raises WeightsError if the network cannot be quantized.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    parts = [part for part in _batches(pixels, model.taken.batch) if len(part) == (model.taken.batch or len(part))]
    batches = ({model.taken.name: model.taken.prepare(part, model.recipe)} for part in parts)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(batches, None)

    simple = graph.with_name("simple.onnx")
    try:
        quant_pre_process(model.graph, simple, skip_symbolic_shape=True)
        quantization.quantize_static(
            simple,
            graph,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    except Exception as error:  # the quantizer may raise any type, depending on the network
        raise WeightsError(f"{model.name} cannot be quantized: {type(error).__name__}: {error}") from error


def _settings(model: GraphModel, name: str) -> dict[str, Any]:
    """Returns the content of the .json file of the 8-bit copy, which describes the preprocessing.

    model: the network to copy. name: its name, as for `calibrate`.
    """
    if is_file(name):
        settings: dict[str, Any] = json.loads(Path(name).expanduser().with_suffix(".json").read_text())
        return settings
    recipe = model.recipe
    return {"size": recipe.resize, "crop": recipe.crop, "interpolation": recipe.interpolation, "output": model.output}
