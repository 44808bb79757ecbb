"""8-bit copies of networks that simsearch did not build."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper
from PIL import Image

from simsearch.cli.main import main
from simsearch.errors import UsageError, WeightsError
from simsearch.models import load
from simsearch.models.onnx import int8_static
from simsearch.models.trial import lowest_cosine
from tests.helpers.onnx_files import constant, model, save

NODE = helper.make_node


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """256 pictures of 16 x 16, each of four squares."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(256):
        cells = random.integers(0, 256, (2, 2, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(cells).save(folder / f"{number}.png")
    return folder


@pytest.fixture(params=["batch", 4])
def file(tmp_path, request):
    """A convolution, a ReLU and the means of 8 maps, for any batch or for four images."""
    kernels = np.random.default_rng(1).normal(0, 0.3, (8, 3, 3, 3))
    nodes = [
        NODE("Conv", ["x", "w"], ["maps"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        NODE("Relu", ["maps"], ["positive"]),
        NODE("GlobalAveragePool", ["positive"], ["pooled"]),
        NODE("Flatten", ["pooled"], ["features"]),
    ]
    size = request.param
    proto = model(nodes, shape=(size, 3, 16, 16), outputs=[("features", (size, 8))], constants=[constant("w", kernels)])
    return save(proto, tmp_path / "net.onnx", {"output": "features"})


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_copy_that_agrees(file, pictures, monkeypatch):
    monkeypatch.setattr(int8_static, "ENOUGH", 0.5)
    monkeypatch.setattr("simsearch.cli.models.ENOUGH", 0.5)
    done = run("models", "--calibrate", pictures, "-m", file)
    copy = file.with_name("net-int8.onnx")
    assert done.exit_code == 0, done.output
    assert "on 128 images int8 shares" in done.stdout
    assert f"--model {copy} uses it" in done.stdout
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "net-int8.json",
        "net-int8.onnx",
        "net.json",
        "net.onnx",
    ]
    assert b"QuantizeLinear" in copy.read_bytes()
    pixels = np.stack([np.asarray(Image.open(pictures / f"{n}.png")) for n in range(9)])
    one, other = (load.load_model(str(path)).features(pixels) for path in (file, copy))
    assert 0.99 < lowest_cosine(one, other) < 1
    with pytest.raises(UsageError, match="exists already"):
        int8_static.calibrate(str(file), [str(pictures)])


def test_a_copy_that_disagrees(file, pictures, monkeypatch):
    monkeypatch.setattr(int8_static, "ENOUGH", 1.1)
    monkeypatch.setattr("simsearch.cli.models.ENOUGH", 1.1)
    done = run("models", "--calibrate", pictures, "-m", file)
    assert done.exit_code == 0, done.output
    assert "nothing was written" in done.stdout
    assert sorted(path.name for path in file.parent.iterdir()) == ["net.json", "net.onnx"]


def test_what_cannot_be_calibrated(file, tmp_path, pictures):
    with pytest.raises(UsageError, match="0 images are too few"):
        (tmp_path / "empty").mkdir()
        int8_static.calibrate(str(file), [str(tmp_path / "empty")])
    file.write_bytes(b"\x0b")
    with pytest.raises(WeightsError, match="is not an ONNX file"):
        int8_static.calibrate(str(file), [str(pictures)])
