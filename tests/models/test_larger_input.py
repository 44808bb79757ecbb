"""Weights of AlexNet for a larger input than they were trained at."""

import json

import numpy as np
import pytest

from simsearch.errors import WeightsError
from simsearch.images.preprocessing import Preprocessing
from simsearch.models import larger_input, weights
from simsearch.models.networks.configs import AlexNetConfig


def test_sum_over_positions_stays():
    random = np.random.default_rng(0)
    weight = np.repeat(random.normal(size=(5, 7, 1)), 9, 2).reshape(5, 63).astype(np.float32)
    grown = larger_input.enlarged(weight, 7, 7 * 25)
    maps = random.random((7, 1)).astype(np.float32)  # the same at all positions
    assert grown.shape == (5, 7 * 25) and grown.dtype == np.float32
    assert np.allclose(grown @ np.repeat(maps, 25, 1).ravel(), weight @ np.repeat(maps, 9, 1).ravel(), rtol=1e-5)


def test_positions_stay_where_they_are():
    corner = np.zeros((1, 7, 3, 3), np.float32)
    corner[0, 2, 0, 2] = 16
    places = larger_input.enlarged(corner.reshape(1, -1), 7, 7 * 16).reshape(7, 4, 4)
    row = np.array([0, 0, 3, 9]) / 3  # interpolated between the corners: 0, 0, 1/3 and 1 of the upper right
    assert np.allclose(places[2], 9 * np.outer([1, 1 / 3, 0, 0], row / 3), atol=1e-5)
    assert not places[[0, 1, 3, 4, 5, 6]].any()


def test_same_size_is_the_same_array():
    weight = np.ones((5, 63), np.float32)
    assert larger_input.enlarged(weight, 7, 63) is weight


@pytest.mark.parametrize(("width", "flat"), [(62, 112), (63, 111), (63, 7 * 20)])
def test_widths_that_are_no_maps_are_refused(width, flat):
    with pytest.raises(ValueError, match="cannot be enlarged"):
        larger_input.enlarged(np.ones((5, width), np.float32), 7, flat)


def written(path, arguments, trained_at, architecture="alexnet", hidden=32):
    config = AlexNetConfig(num_classes=3, image_size=64, channels=(2, 4, 4, 4, 4), hidden=hidden)
    tensors = {larger_input.FIRST_HIDDEN: np.arange(hidden * config.flat, dtype=np.float32).reshape(hidden, -1)}
    side = arguments.get("image_size", 64)
    card = weights.ModelCard(architecture, arguments, Preprocessing(side, side), trained_at=trained_at)
    weights.write(path, card, tensors, {})
    return tensors[larger_input.FIRST_HIDDEN]


LARGER = {"num_classes": 3, "image_size": 128, "channels": [2, 4, 4, 4, 4], "hidden": 32}


def test_file_stores_the_weights_as_they_were_trained(tmp_path):
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    weight = written(small, {**LARGER, "image_size": 64}, 0)
    written(large, LARGER, 64)
    assert abs(large.stat().st_size - small.stat().st_size) < 64
    read = weights.read_tensors(large)[larger_input.FIRST_HIDDEN]
    assert weights.read_card(large).trained_at == 64 and weights.read_card(small).trained_at == 0
    assert np.array_equal(weights.read_tensors(small)[larger_input.FIRST_HIDDEN], weight)
    assert np.array_equal(read, larger_input.enlarged(weight, 4, 4 * 9))


@pytest.mark.parametrize(
    ("arguments", "trained_at", "architecture"),
    [
        (LARGER, 64, "lenet5"),
        ({**LARGER, "image_size": 4096}, 64, "alexnet"),  # a small file must not ask for much memory
        ({**LARGER, "channels": [2, 4, 4, 4, 5]}, 64, "alexnet"),
        ({**LARGER, "image_size": "128"}, 64, "alexnet"),
        ({**LARGER, "other": 1}, 64, "alexnet"),
        (LARGER, True, "alexnet"),
    ],
)
def test_bad_files_are_refused(tmp_path, arguments, trained_at, architecture):
    path = tmp_path / "bad.safetensors"
    written(path, {**LARGER, "image_size": 64}, 0)
    text = path.read_bytes()
    length = int.from_bytes(text[:8], "little")
    header = json.loads(text[8 : 8 + length])
    entry = json.loads(header["__metadata__"]["simsearch"])
    entry |= {"arguments": arguments, "trained_at": trained_at, "architecture": architecture}
    header["__metadata__"]["simsearch"] = json.dumps(entry)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + text[8 + length :])
    with pytest.raises(WeightsError):
        weights.read_card(path)
        weights.read_tensors(path)
