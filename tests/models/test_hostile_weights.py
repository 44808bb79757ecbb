"""Weights files that somebody sent: one WeightsError, in bounded time and memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest

from simsearch.cli.main import main
from simsearch.errors import WeightsError
from simsearch.models.load import load_model
from simsearch.models.onnx.runtime import OnnxModel
from simsearch.models.registry import find_weights
from simsearch.models.safetensors_header import locate_tensors, pack_header, read_header
from simsearch.models.weights import read_card, read_tensors

Values = dict[str, Any]


def rewritten(source: Path, target: Path, change: Callable[[Values, Values], object]) -> Path:
    """Copies a weights file with a changed header: `change` gets all of it, and its entry `simsearch`."""
    header = read_header(source)
    values = header.values()
    entry = json.loads(values["__metadata__"]["simsearch"])
    change(values, entry)
    if isinstance(values.get("__metadata__"), dict) and "simsearch" in values["__metadata__"]:
        values["__metadata__"]["simsearch"] = json.dumps(entry)
    target.write_bytes(pack_header(json.dumps(values)) + source.read_bytes()[header.start :])
    return target


def set_entry(**values: Any) -> Callable[[Values, Values], object]:
    return lambda header, entry: entry.update(values)


def set_argument(**values: Any) -> Callable[[Values, Values], object]:
    return lambda header, entry: entry["arguments"].update(values)


def set_tensor(**values: Any) -> Callable[[Values, Values], object]:
    return lambda header, entry: header["conv.0.weight"].update(values)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


CHANGES: dict[str, Callable[[Values, Values], object]] = {
    "description": set_entry(description=7),
    "architecture": set_entry(architecture=["alexnet"]),
    "unknown architecture": set_entry(architecture="x"),
    "arguments": set_entry(arguments=[1]),
    "classes": set_entry(classes="abc"),
    "class": set_entry(classes=[1, 2]),
    "labels": set_entry(labels={"a": 1}),
    "training": set_entry(training=[]),
    "metrics": set_entry(metrics="x"),
    "distances": set_entry(distances=["x"]),
    "infinite distances": set_entry(distances=[float("inf")]),
    "NaN": set_entry(metrics={"x": float("nan")}),
    "deep": set_entry(training={"x": deep(70)}),
    "recipe": set_entry(recipe=[]),
    "crop": lambda header, entry: entry["recipe"].update(crop="x"),
    "large crop": lambda header, entry: entry["recipe"].update(crop=10**9, resize=10**9),
    "mean": lambda header, entry: entry["recipe"].update(mean=[1, 2]),
    "std": lambda header, entry: entry["recipe"].update(deviation=[0, 1, 1]),
    "interpolation": lambda header, entry: entry["recipe"].update(interpolation=["bilinear"]),
    "format": set_entry(format="1"),
    "large hidden": set_argument(hidden=10**6),
    "huge hidden": set_argument(hidden=10**18),
    "negative hidden": set_argument(hidden=-1),
    "fewer hidden": set_argument(hidden=31),
    "text hidden": set_argument(hidden="x"),
    "boolean hidden": set_argument(hidden=True),
    "channels": set_argument(channels=[8, 16]),
    "text channels": set_argument(channels=["x"] * 5),
    "no channels": set_argument(channels=[0] * 5),
    "image size": set_argument(image_size=3),
    "huge image": set_argument(image_size=10**6),
    "groups": set_argument(groups=0),
    "unknown argument": set_argument(x=1),
    "metadata": lambda header, entry: header.update(__metadata__=[]),
    "number in metadata": lambda header, entry: header["__metadata__"].update(x=1),
    "no metadata": lambda header, entry: header.pop("__metadata__"),
    "ranges": lambda header, entry: header["__metadata__"].update(ranges="0;x y z"),
    "shape": set_tensor(shape=[1, 2]),
    "huge shape": set_tensor(shape=[1 << 40, 1 << 40]),
    "shape of text": set_tensor(shape="x"),
    "type": set_tensor(dtype="F99"),
    "type of no text": set_tensor(dtype=[1]),
    "offsets": set_tensor(data_offsets=[0]),
    "negative offsets": set_tensor(data_offsets=[-8, 0]),
    "far offsets": set_tensor(data_offsets=[1 << 60, (1 << 60) + 8]),
    "overlap": lambda header, entry: header["conv.0.weight"].update(
        data_offsets=header["hidden.1.weight" if "hidden.1.weight" in header else "conv.2.weight"]["data_offsets"]
    ),
    "no tensor": lambda header, entry: header.pop("conv.0.weight"),
    "tensor of text": lambda header, entry: header.update({"conv.0.weight": "x"}),
    "encoding": set_entry(encoding=[1]),
    "encoded": set_entry(encoding={"x": {"shape": [1 << 20, 1 << 20], "stored": 1}}),
    "encoded shape": set_entry(encoding={"x": {"shape": "x", "stored": 1}}),
}


def use(path: Path) -> None:
    read_card(path)
    assert find_weights(str(path)).config.dimension < 10**6
    read_tensors(path)
    load_model(str(path), "cpu", images=1).features(np.zeros((1, 63, 63, 3), np.uint8))


@pytest.mark.parametrize("change", CHANGES)
def test_odd_headers_are_refused(tiny_weights: Path, tmp_path: Path, change: str) -> None:
    path = rewritten(tiny_weights, tmp_path / "w.safetensors", CHANGES[change])
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        use(path)
    for command in (["models", "-m", str(path)], ["build", str(tmp_path), "-m", str(path), "-i", str(tmp_path / "i")]):
        result = click.testing.CliRunner().invoke(main, command)
        assert result.exit_code in {0, 2}, result.output
        assert "this is a bug" not in result.output
        assert "Traceback" not in result.output


def test_header_with_another_number_of_outputs_is_refused(tiny_weights: Path, tmp_path: Path) -> None:
    path = rewritten(tiny_weights, tmp_path / "w.safetensors", set_argument(num_classes=4))
    model = OnnxModel(find_weights(str(path)), few=True)
    with pytest.raises(WeightsError, match="the header says 4 logits per image, but the network gives 5"):
        model.logits(np.zeros((1, 63, 63, 3), np.uint8))


def test_no_images_give_rows_of_the_same_width(tiny_weights: Path) -> None:
    model, none = OnnxModel(find_weights(str(tiny_weights))), np.zeros((0, 63, 63, 3), np.uint8)
    assert (model.features(none).shape, model.logits(none).shape) == ((0, 32), (0, 5))
    assert [rows.shape[:2] for rows in model.outputs(["fc6", "conv5"], none)] == [(0, 32), (0, 16)]
    assert model.outputs(["conv5"], none)[0].shape[:2] == (0, 16)


TEXTS = {
    "key twice": '{"a": 1, "a": 2}',
    "deep": "[" * 10_000 + "]" * 10_000,
    "deep object": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "not UTF-8": "\udcff",
    "list": "[]",
    "cut": '{"__metadata__": ',
}


@pytest.mark.parametrize("text", TEXTS)
def test_odd_json_is_refused(tmp_path: Path, text: str) -> None:
    raw = TEXTS[text].encode("utf-8", "surrogateescape")
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        read_card(tmp_path / "w.safetensors")


@pytest.mark.parametrize("size", [0, 1, 1 << 40, 2**64 - 1])
def test_absurd_header_sizes_are_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        read_card(tmp_path / "w.safetensors")


def test_weights_that_are_no_numbers_are_refused(tiny_weights: Path, tmp_path: Path) -> None:
    place = locate_tensors(tiny_weights)["conv.0.weight"]
    data = bytearray(tiny_weights.read_bytes())
    data[place.first : place.first + 2] = np.array([np.nan], np.float16).tobytes()
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="NaN or infinite"):
        read_tensors(tmp_path / "w.safetensors")


def test_gap_and_rest_are_refused(tiny_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(tiny_weights.read_bytes() + b"rest")
    with pytest.raises(WeightsError, match="end at byte"):
        read_tensors(tmp_path / "w.safetensors")
