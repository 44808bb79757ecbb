"""Models from `.onnx` files, each with a `.json` file of the same name that describes the preprocessing of images.

All keys are optional; the values shown are the defaults, except for the names:

    {
      "size": 256,                      // shorter side of the scaled image, in pixels; by default 8/7 of the crop
      "crop": 224,                      // side of the central square; by default the side that the input has, or 224
                                        // if the input can have any side
      "mean": [0.485, 0.456, 0.406],    // subtracted from each channel (ImageNet's)
      "std": [0.229, 0.224, 0.225],     // divisor of each channel after that (ImageNet's)
      "scale": 255,                     // divisor of the pixels, 0 to 255, before mean and std
      "interpolation": "bilinear",      // or bicubic, lanczos
      "colour": "RGB",                  // or BGR: order of the channels, of the mean and of the std
      "input": "x", "output": "features"  // names; "output" is required if there are several outputs
    }

An input of uint8 takes the pixels as they are, without mean, std and scale.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import outside_json
from simsearch.common.regular_files import open_regular
from simsearch.errors import UsageError, WeightsError
from simsearch.images.preprocessing import FILTERS, Preprocessing
from simsearch.models.onnx.graph_model import GraphInput, GraphModel
from simsearch.models.onnx.session import open_session
from simsearch.models.onnx.untrusted import LARGEST_BYTES, check_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_SIDE = 2048
"""Largest side of an input, in pixels."""

_LARGEST_SETTINGS = 1 << 16
_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


@dataclass(frozen=True)
class Settings:
    """The content of the `.json` file (see the module's docstring); a key that is left out has the default below."""

    size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    interpolation: str = "bilinear"
    colour: str = "RGB"
    input: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class OnnxFile:
    """The content of an `.onnx` file and its settings.

    sha256: the SHA-256 of the content and the settings together, since both determine the features.
    """

    path: Path
    data: bytes
    settings: Settings
    sha256: str


def find_onnx(name: str) -> OnnxFile:
    """Reads and checks an `.onnx` file and the `.json` file beside it.

    name: the path of the `.onnx` file. Raises UsageError if one of the two files is missing, and WeightsError if one of
    them cannot be used.
    """
    path = Path(name).expanduser().resolve()
    try:
        with open_regular(path) as opened:
            if os.fstat(opened.fileno()).st_size > LARGEST_BYTES:
                raise WeightsError(f"{path} is larger than {LARGEST_BYTES >> 20:,} MiB, the limit for .onnx files")
            data = opened.read()
    except FileNotFoundError as error:
        raise UsageError(f"no weights file at {path}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    check_graph(str(path), data)
    settings = read_settings(path.with_suffix(".json"))
    text = hashlib.sha256(data).hexdigest() + json.dumps(asdict(settings), sort_keys=True)
    return OnnxFile(path, data, settings, hashlib.sha256(text.encode()).hexdigest())


def read_settings(path: Path) -> Settings:
    """Reads the `.json` file. Raises UsageError if it is missing, and WeightsError if its content is invalid."""
    try:
        with open_regular(path) as file:
            text = file.read(_LARGEST_SETTINGS + 1)
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} is missing; this file describes how images are prepared for the network",
            hint=f"`echo '{{}}' > {path.name}` chooses ImageNet's usual preprocessing; see docs/models.md",
        ) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if len(text) > _LARGEST_SETTINGS:
            raise ValueError("it is too long")
        values = outside_json.parse(text)
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise WeightsError(f"{path} must be a short JSON object: {error}") from error
    known = Settings.__dataclass_fields__
    for key, value in values.items():
        if key not in known:
            raise WeightsError(f"{path}: unknown key {key[:40]!r}", hint=f"the keys are {', '.join(known)}")
        if problem := _problem(key, value):
            raise WeightsError(f"{path}: {key} is {json.dumps(value)[:60]}, not {problem}")
    fields: dict[str, Any] = {key: tuple(map(float, v)) if isinstance(v, list) else v for key, v in values.items()}
    return Settings(**fields)


def _problem(key: str, value: Any) -> str:
    """Returns an empty text if `value` is valid for the key, otherwise a description of the valid values."""
    if key in {"size", "crop"}:
        fits = type(value) is int and 0 < value <= LARGEST_SIDE
        return "" if fits else f"a whole number from 1 to {LARGEST_SIDE}"
    if key in {"mean", "std"}:
        fits = isinstance(value, list) and len(value) == 3 and all(_is_number(v) for v in value)
        above = "" if key == "mean" else " above 0"
        return "" if fits and (not above or min(value) > 0) else f"three numbers{above}"
    if key == "scale":
        return "" if _is_number(value) and value > 0 else "a number above 0"
    choices = {"interpolation": tuple(FILTERS), "colour": ("RGB", "BGR")}.get(key)
    if choices:
        return "" if isinstance(value, str) and value in choices else f"one of {', '.join(choices)}"
    return "" if isinstance(value, str) else "a name"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)


def open_onnx(file: OnnxFile, few: bool = False) -> GraphModel:
    """Opens the network of an `.onnx` file.

    few: True to start faster but compute more slowly; see `open_session`.
    Raises WeightsError if the network cannot be opened or does not fit the settings.
    """
    try:
        session = open_session(file.data, few=few, quantized=True)
    except Exception as error:  # onnxruntime raises its own classes
        raise WeightsError(f"{file.path}: ONNX Runtime cannot open the network: {error}") from error
    name = str(file.path)
    entered = _chosen(file, "input", session.get_inputs())
    taken, side = _input_of(file, entered)
    output = _chosen(file, "output", session.get_outputs())
    shape = list(output.shape or ())
    known = len(shape) in {2, 4} and isinstance(shape[1], int)
    recipe = recipe_of(file, side, raw=taken.dtype == np.uint8)
    dimension = int(shape[1]) if known else None
    return GraphModel(name, file.sha256, recipe, file.path, session, taken, output.name, few=few, dimension=dimension)


def _chosen(file: OnnxFile, key: str, found: Sequence[Any]) -> Any:
    """Returns the input or output of the network that the settings name, or the only one if they name none.

    key: "input" or "output". found: all inputs or all outputs. Raises WeightsError if the settings do not fit.
    """
    wanted = getattr(file.settings, key)
    names = [each.name for each in found]
    if wanted is None and len(found) == 1:
        return found[0]
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    if key == "input" and len(found) > 1 and (wanted is None or wanted in names):
        raise WeightsError(f"{file.path} needs more than an image: it has the inputs {shown}")
    if wanted is None:
        raise WeightsError(
            f"{file.path} has several {key}s: {shown}",
            hint=f'set "{key}" in {file.path.with_suffix(".json").name} to one of them',
        )
    if wanted not in names:
        raise WeightsError(f"{file.path} has no {key} called {wanted[:40]!r}; it has {shown}")
    return found[names.index(wanted)]


def _input_of(file: OnnxFile, entered: Any) -> tuple[GraphInput, int | None]:
    """Returns the form of the network's input, and the side of the images in pixels (None if any side is possible).

    entered: the input, as ONNX Runtime describes it. Raises WeightsError if the input does not take square images.
    """
    shape = list(entered.shape or ())
    sizes = [size if isinstance(size, int) else None for size in shape]
    described = f"{file.path}: the input {entered.name[:40]!r} is {entered.type} {shape}"
    if entered.type not in _TYPES or len(sizes) != 4 or 3 not in {sizes[1], sizes[3]}:
        wanted = "float32, float16 or uint8 of (batch, 3, side, side) or (batch, side, side, 3)"
        raise WeightsError(f"{described}, not {wanted}")
    channels_last = sizes[1] != 3
    height, width = sizes[1:3] if channels_last else sizes[2:]
    if height != width or (sizes[0] or 1) > 1024:
        raise WeightsError(f"{described}; it must take square images, in batches of at most 1,024")
    reverse = file.settings.colour == "BGR"
    return GraphInput(entered.name, _TYPES[entered.type], channels_last, reverse, sizes[0]), height


def recipe_of(file: OnnxFile, side: int | None, raw: bool) -> Preprocessing:
    """Returns the preprocessing of images for the network of an `.onnx` file.

    side: the side of the network's input; None if any side is possible.
    raw: True if the network takes pixels without normalisation.
    Raises WeightsError if the settings do not fit the network.
    """
    settings, place = file.settings, file.path.with_suffix(".json")
    crop = settings.crop or side or 224
    if side is not None and crop != side:
        raise WeightsError(f"{place}: crop is {crop}, but the side of the network's input is {side} pixels")
    if crop > LARGEST_SIDE:
        raise WeightsError(f"{file.path} takes images of side {crop}; the largest permitted is {LARGEST_SIDE} pixels")
    if raw and (settings.mean or settings.std or settings.scale):
        raise WeightsError(f"{place} has mean, std or scale, but the network takes pixels as they are (uint8)")
    order = slice(None, None, -1 if settings.colour == "BGR" else 1)
    scale = 255.0 if settings.scale is None else settings.scale
    mean = settings.mean[order] if settings.mean else (0.485, 0.456, 0.406)
    std = settings.std[order] if settings.std else (0.229, 0.224, 0.225)
    if raw:
        mean, std, scale = (0.0,) * 3, (1.0,) * 3, 1.0
    a, b, c = (scale * value for value in mean)
    d, e, f = (scale * value for value in std)
    size = settings.size or max(crop, round(crop * 8 / 7))
    return Preprocessing(size, crop, (a, b, c), (d, e, f), settings.interpolation)
