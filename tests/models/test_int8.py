"""The int8 engine: exact sums, close to float32, and never mixed with it in an index."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import simsearch
from simsearch.cli.main import main
from simsearch.errors import DeviceError, ModelMismatchError, UsageError, WeightsError
from simsearch.images import decode
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.samples import generate
from simsearch.models import load, precision, registry, weights
from simsearch.models.networks import build
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.models.onnx import int8 as onnx_int8
from simsearch.models.onnx import int8_calibration, runtime
from simsearch.training import publish
from simsearch.training.augment import ColourStats
from simsearch.training.data import TrainingSet
from tests.helpers.data import DATA

VALIDATION = DATA / "imagenette160" / "val.zip"


@pytest.fixture(scope="module")
def pictures():
    return [generate.draw(kind, seed) for kind in list(generate.KINDS)[:30] for seed in range(5)]


@pytest.fixture(scope="module")
def small(tiny_weights, tmp_path_factory, pictures):
    """A small random network with ranges, and pixels other than those of the ranges."""
    path = tmp_path_factory.mktemp("int8") / "small.safetensors"
    shutil.copy(tiny_weights, path)
    recipe = registry.find_weights(str(path)).card.recipe
    pixels = np.stack([recipe.pixels(picture) for picture in pictures])
    int8_calibration.calibrate_file(path, pixels[::2])
    return registry.find_weights(str(path)), pixels[1::2]


@pytest.fixture
def int8(monkeypatch):
    monkeypatch.setenv("SIMSEARCH_PRECISION", "int8")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_linear_layers_are_exact_integer_sums(small):
    """Two products of 255 and 127 overflow 16 bits; ONNX Runtime must not use instructions that sum in 16 bits."""
    found, pixels = small
    config: Any = found.config
    half = onnx_int8.quantize(config, weights.read_tensors(found.path), found.card.ranges)
    conv5, fc6, features = runtime.OnnxModel(found, precision="int8").outputs(("conv5", "fc6", "features"), pixels)
    pooled = torch.nn.functional.max_pool2d(torch.from_numpy(conv5), 3, 2).numpy()
    factors = half.points["relu5"].factor[:, None, None]
    for x, name, point, expected in (
        ((pooled / factors).reshape(len(pixels), -1), "hidden.1", half.points["relu5"], fc6),
        (fc6, "hidden.4", half.points["fc6"], features),
    ):
        layer = half.layers[name]
        whole = np.clip(np.rint(x / point.step), 0, 255).astype(np.int64)
        assert whole.max() > 200
        sums = whole @ layer.weight.T.astype(np.int64) + layer.bias
        np.testing.assert_allclose(expected, np.maximum(sums * (point.step * layer.step), 0), rtol=1e-5, atol=1e-6)


def test_neither_batch_nor_start_changes_a_bit(small):
    found, pixels = small
    together = runtime.OnnxModel(found, precision="int8").features(pixels)
    few = runtime.OnnxModel(found, precision="int8", few=True)
    np.testing.assert_array_equal(np.concatenate([few.features(pixels[n : n + 1]) for n in range(9)]), together[:9])
    np.testing.assert_array_equal(few.features(pixels[:7]), together[:7])


def test_a_small_random_network_agrees(small):
    found, pixels = small
    one, other = (runtime.OnnxModel(found, precision=kind).features(pixels) for kind in registry.PRECISIONS)
    agreement = int8_calibration.agreement(one, other)
    assert agreement.cosine > 0.997
    assert agreement.top6 > 0.9
    logits = [runtime.OnnxModel(found, precision=kind).logits(pixels) for kind in registry.PRECISIONS]
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", list(registry.BUILTIN))
def test_shipped_weights_agree_on_drawn_pictures(name, pictures):
    found = registry.find_weights(name)
    assert found.card.agreement >= precision.ENOUGH
    pixels = np.stack([found.card.recipe.pixels(picture) for picture in pictures])
    one, other = (runtime.OnnxModel(found, precision=kind).features(pixels) for kind in registry.PRECISIONS)
    agreement = int8_calibration.agreement(one, other)
    assert agreement.cosine > 0.997
    assert agreement.top6 > 0.95


@pytest.mark.skipif(not VALIDATION.is_file(), reason=f"{VALIDATION} is not there")
def test_the_default_agrees_on_photographs():
    import zipfile

    found = registry.find_weights(registry.DEFAULT)
    with zipfile.ZipFile(VALIDATION) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))[::8]
        decoded = [decode.decode_image(archive.read(name), found.card.recipe.resize).image for name in names]
    pixels = np.stack([found.card.recipe.pixels(image) for image in decoded])
    one, other = (runtime.OnnxModel(found, precision=kind).features(pixels) for kind in registry.PRECISIONS)
    agreement = int8_calibration.agreement(one, other)
    assert agreement.cosine > 0.997
    assert agreement.top6 >= 0.96


def test_an_index_keeps_to_its_engine(photos, small, tmp_path, int8, monkeypatch):
    found, _ = small
    monkeypatch.setenv("SIMSEARCH_PRECISION", "int8")
    with simsearch.build(photos, tmp_path / "index", found.name) as engine:
        assert engine.info()["engine"] == engine.meta.engine == "onnxruntime-cpu-int8"
    monkeypatch.setenv("SIMSEARCH_PRECISION", "float32")
    with simsearch.open(tmp_path / "index") as engine:
        picture = generate.draw(next(iter(generate.KINDS)), 3)
        picture.save(tmp_path / "other.png")
        engine.add(tmp_path / "other.png")
        assert engine.meta.engine == "onnxruntime-cpu-int8"
        (number,) = (item.id for item in engine.find(str(tmp_path / "other.png")))
        pixels = found.card.recipe.pixels(decode.decode_image((tmp_path / "other.png").read_bytes(), 72).image)[None]
        expected = runtime.OnnxModel(found, precision="int8").features(pixels)[0].astype(np.float16)
        np.testing.assert_array_equal(engine.stored_features(number), expected.astype(np.float32))
        assert engine.search(Image.open(tmp_path / "other.png"), k=1)[0].distance == 0
    with simsearch.build(photos, tmp_path / "other", found.name) as engine:
        assert engine.meta.engine == "onnxruntime-cpu"


def test_model_of_other_precision_is_reloaded(photos, small, tmp_path, int8):
    found, _ = small
    simsearch.build(photos, tmp_path / "index", found.name).close()
    with simsearch.open(tmp_path / "index", model=runtime.OnnxModel(found)) as engine:
        assert engine.load_model().engine == "onnxruntime-cpu-int8"


def test_indexes_older_than_ranges_stay_float32(photos, tiny_weights, small, tmp_path):
    old = tmp_path / "w.safetensors"
    shutil.copy(tiny_weights, old)
    index = tmp_path / "index"
    simsearch.build(photos, index, str(old)).close()
    before = json.loads((index / "meta.json").read_text())
    shutil.copy(small[0].path, old)
    with simsearch.open(index) as engine:
        assert engine.search(photos / "amber" / "0.png", k=1)[0].distance == 0
        assert engine.search(Image.open(photos / "amber" / "0.png"), k=1)[0].distance == 0
        assert engine.load_model().engine == engine.meta.engine == "onnxruntime-cpu"
    assert json.loads((index / "meta.json").read_text())["weights_sha256"] == before["weights_sha256"]


def test_other_weights_with_ranges_are_refused(photos, small, tmp_path):
    found, _ = small
    simsearch.build(photos, tmp_path / "index", found.name).close()
    with pytest.raises(ModelMismatchError, match=found.sha256):
        simsearch.open(tmp_path / "index", model=registry.DEFAULT)


def test_int8_needs_the_processor(small, photos, tmp_path, int8):
    found, _ = small
    with pytest.raises(DeviceError, match="int8 runs on the CPU"):
        load.load_model(found.name, "cuda", precision="int8")
    simsearch.build(photos, tmp_path / "index", found.name).close()
    with simsearch.open(tmp_path / "index", device="cuda") as engine, pytest.raises(DeviceError, match="int8"):
        engine.load_model()


def test_the_choice(small, tiny_weights, monkeypatch):
    found = registry.find_weights(registry.DEFAULT)
    monkeypatch.delenv("SIMSEARCH_PRECISION", raising=False)
    monkeypatch.setattr(precision, "has_vnni", lambda: True)
    assert precision.choose_precision(found) == "int8"
    assert precision.choose_precision(registry.find_weights(str(tiny_weights))) == "float32"
    monkeypatch.setattr(precision, "has_vnni", lambda: False)
    assert precision.choose_precision(found) == "float32"
    monkeypatch.setenv("SIMSEARCH_PRECISION", "int8")
    assert precision.choose_precision(found) == "int8"
    with pytest.raises(UsageError, match="no ranges"):
        load.load_model(str(tiny_weights), precision="auto")
    monkeypatch.setenv("SIMSEARCH_PRECISION", "int4")
    with pytest.raises(UsageError, match="int4"):
        load.load_model(str(tiny_weights), precision="auto")
    assert load.load_model(str(tiny_weights)).engine == "onnxruntime-cpu"


def test_indexes_of_two_precisions_do_not_merge(photos, small, tmp_path, monkeypatch):
    found, _ = small
    for kind in registry.PRECISIONS:
        monkeypatch.setenv("SIMSEARCH_PRECISION", kind)
        simsearch.build(photos, tmp_path / kind, found.name).close()
    done = run("merge", tmp_path / "int8", "-i", tmp_path / "float32")
    assert done.exit_code == 2
    assert "onnxruntime-cpu-int8" in done.stderr


def test_ranges_come_back_and_go_again(tiny_weights, tmp_path):
    path = tmp_path / "w.safetensors"
    shutil.copy(tiny_weights, path)
    before = weights.sha256(path)
    random = np.random.default_rng(0)
    given = {"pool1": random.lognormal(size=96).astype(np.float32), "fc6": np.array([4.7], np.float32)}
    weights.add_ranges(path, given, 0.98)
    card = weights.read_card(path)
    assert card.agreement == 0.98
    for name, values in given.items():
        found = card.ranges[name]
        kept = np.maximum(values, values.max() / 15)
        assert (found >= values).all()
        assert (found <= 1.05 * kept).all()
    assert weights.sha256(path) != before == weights.sha256_without_ranges(path)
    weights.add_ranges(path, {"fc6": given["fc6"]})
    assert set(weights.read_card(path).ranges) == {"fc6"}
    assert weights.sha256_without_ranges(path) == before
    for name, tensor in weights.read_tensors(tiny_weights).items():
        np.testing.assert_array_equal(weights.read_tensors(path)[name], tensor)
    with pytest.raises(WeightsError, match="ranges of pool1"):
        onnx_int8.quantize(AlexNetConfig(), weights.read_tensors(path), weights.read_card(path).ranges)


def test_ranges_of_another_network_are_refused(small):
    found, _ = small
    config: Any = found.config
    given = {**found.card.ranges, "relu2": np.ones(3, np.float32)}
    with pytest.raises(WeightsError, match="relu2 has 16 channels, but there are 3 ranges"):
        onnx_int8.quantize(config, weights.read_tensors(found.path), given)


@pytest.mark.parametrize("text", ["x", "0.9;pool1 3", "0.9;pool1 3 A!", "0.9;pool1 nan AB", "0.9;pool1 -1 AB"])
def test_ranges_that_cannot_be_read_are_refused(tiny_weights, tmp_path, text, monkeypatch):
    path = tmp_path / "w.safetensors"
    shutil.copy(tiny_weights, path)
    monkeypatch.setattr(weights, "_coded", dict)
    weights.add_ranges(path, {})
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"ranges":"0.0000"', f'"ranges":"{text}"'.encode())
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    with pytest.raises(WeightsError, match="ranges"):
        weights.read_card(path)


def test_calibrating_from_the_command_line(tiny_weights, tmp_path, monkeypatch):
    path, folder = tmp_path / "w.safetensors", tmp_path / "drawn"
    shutil.copy(tiny_weights, path)
    generate.generate(folder, 80)
    monkeypatch.setattr(int8_calibration, "MIN_IMAGES", 80)
    done = run("models", "-m", path, "--calibrate", folder)
    assert done.exit_code == 0, done.output
    assert "of the six nearest with float32" in done.stdout
    assert set(registry.find_weights(str(path)).card.ranges) == set(onnx_int8.POINTS)
    assert "int8:" in run("models", "-m", path).stdout
    again = run("models", "-m", path, "--calibrate", folder)
    assert again.exit_code == 2
    assert "already" in again.stderr
    for arguments, message in (
        (("models", "--calibrate", folder), "-m FILE"),
        (("models", "-m", "alexnet", "--calibrate", folder), "comes with its ranges"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert message in done.stderr


def test_training_readies_its_weights(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(int8_calibration, "MIN_IMAGES", len(pictures))
    path = tmp_path / "w.safetensors"
    arguments: dict[str, Any] = {"num_classes": 2, "image_size": 63, "hidden": 16, "channels": (8, 16, 16, 16, 16)}
    network = build.build_network("alexnet", AlexNetConfig(**arguments))
    network.initialise(2**0.5)
    recipe = Preprocessing(72, 72)
    squares = np.stack([recipe.pixels(picture) for picture in pictures])
    data = TrainingSet(squares, np.arange(len(squares)) % 2, ("a", "b"))
    card = weights.ModelCard("alexnet", arguments, Preprocessing(72, 63), ("a", "b"))
    publish.publish(network, card, path, {"x": data}, ColourStats.of(squares), compress=False, trained_on=data)
    found = registry.find_weights(str(path))
    assert set(found.card.ranges) == set(onnx_int8.POINTS)
    assert found.card.agreement > 0.5
    assert runtime.OnnxModel(found, precision="int8").features(squares[:2, 4:67, 4:67]).shape == (2, 16)


def test_too_few_images_set_no_ranges(tiny_weights, photos, tmp_path):
    path = tmp_path / "w.safetensors"
    shutil.copy(tiny_weights, path)
    with pytest.raises(UsageError, match="24 images are too few"):
        int8_calibration.calibrate(str(path), [str(photos)])
