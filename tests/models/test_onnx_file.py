"""Models from .onnx files: what they compute, their settings, and files that a stranger made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import simsearch
from simsearch.cli.main import main
from simsearch.errors import DeviceError, ModelMismatchError, UsageError, WeightsError
from simsearch.models import load
from simsearch.models.onnx import onnx_file, untrusted
from tests.helpers.onnx_files import HALF, UINT8, constant, means, model, save

NODE = helper.make_node
IDENTITY = {"mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1}
"""Settings with which a network sees pixels as they are, as floats."""


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


@pytest.fixture
def file(tmp_path):
    return save(means(), tmp_path / "means.onnx", IDENTITY)


def test_features_of_a_file(file, pixels):
    loaded = load.load_model(str(file))
    assert (loaded.dimension, loaded.recipe.crop, loaded.recipe.resize) == (3, 16, 18)
    assert (loaded.name, loaded.engine) == (str(file), "onnxruntime-cpu")
    np.testing.assert_allclose(loaded.features(pixels), pixels.mean((1, 2)), rtol=1e-5)
    assert loaded.features(pixels[:0]).shape == (0, 3)


def test_defaults_are_those_of_imagenet(tmp_path, pixels):
    loaded = load.load_model(str(save(means(), tmp_path / "m.onnx", {})))
    expected = (pixels.mean((1, 2)) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(loaded.features(pixels), expected, atol=1e-5)
    wide = save(means(shape=("b", 3, "h", "w")), tmp_path / "wide.onnx", {})
    recipe = load.load_model(str(wide)).recipe
    assert (recipe.resize, recipe.crop, recipe.interpolation) == (256, 224, "bilinear")


def test_colours_scale_and_sizes(tmp_path, pixels):
    settings = {"colour": "BGR", "mean": [0.1, 0.2, 0.3], "std": [0.5, 1, 2], "size": 40, "interpolation": "bicubic"}
    loaded = load.load_model(str(save(means(), tmp_path / "m.onnx", settings)))
    expected = (pixels[..., ::-1].mean((1, 2)) / 255 - settings["mean"]) / settings["std"]
    np.testing.assert_allclose(loaded.features(pixels), expected, atol=1e-5)
    assert (loaded.recipe.resize, loaded.recipe.interpolation) == (40, "bicubic")
    plain = load.load_model(str(save(means(), tmp_path / "b.onnx", {"colour": "BGR"})))
    blue_first = (pixels.mean((1, 2)) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(plain.features(pixels), blue_first[:, ::-1], atol=1e-5)


def test_pixels_as_bytes(tmp_path, pixels):
    nodes = [
        NODE("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
        NODE("ReduceMean", ["y"], ["features"], axes=[1, 2], keepdims=0),
    ]
    proto = model(nodes, shape=("batch", 16, 16, 3), kind=UINT8)
    loaded = load.load_model(str(save(proto, tmp_path / "m.onnx", {})))
    np.testing.assert_allclose(loaded.features(pixels), pixels.mean((1, 2)), rtol=1e-5)
    with pytest.raises(WeightsError, match="pixels as they are"):
        load.load_model(str(save(proto, tmp_path / "m.onnx", IDENTITY)))


def test_maps_are_averaged(tmp_path, pixels):
    proto = model([NODE("Identity", ["x"], ["features"])], outputs=[("features", ("batch", 3, 16, 16))])
    loaded = load.load_model(str(save(proto, tmp_path / "m.onnx", IDENTITY)))
    np.testing.assert_allclose(loaded.features(pixels), pixels.mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_fixed_batches(tmp_path, pixels, batch):
    proto = means(shape=(batch, 3, 16, 16), outputs=[("features", (batch, 3))])
    loaded = load.load_model(str(save(proto, tmp_path / "m.onnx", IDENTITY)))
    np.testing.assert_allclose(loaded.features(pixels), pixels.mean((1, 2)), rtol=1e-5)


def test_half_precision(tmp_path, pixels):
    proto = means(kind=HALF, out_kind=HALF)
    loaded = load.load_model(str(save(proto, tmp_path / "m.onnx", {"mean": [0, 0, 0], "std": [1, 1, 1]})))
    assert loaded.features(pixels).dtype == np.float32
    np.testing.assert_allclose(loaded.features(pixels), pixels.mean((1, 2)) / 255, atol=2e-3)


def test_several_inputs_and_outputs(tmp_path, pixels):
    nodes = [
        NODE("GlobalAveragePool", ["x"], ["pooled"]),
        NODE("Flatten", ["pooled"], ["features"]),
        NODE("ReduceSum", ["features"], ["logits"]),
    ]
    proto = model(nodes, outputs=[("features", ("batch", 3)), ("logits", (1, 1))])
    with pytest.raises(WeightsError, match="several outputs: 'features', 'logits'"):
        load.load_model(str(save(proto, tmp_path / "m.onnx", IDENTITY)))
    loaded = load.load_model(str(save(proto, tmp_path / "m.onnx", {**IDENTITY, "output": "features"})))
    assert loaded.features(pixels).shape == (5, 3)
    with pytest.raises(WeightsError, match="no output called 'pool'"):
        load.load_model(str(save(proto, tmp_path / "m.onnx", {**IDENTITY, "output": "pool"})))
    two = model([*nodes[:2], NODE("Add", ["features", "z"], ["sum"])], outputs=[("sum", ("batch", 3))], inputs=["z"])
    for settings, said in (({}, "more than an image"), ({"input": "x"}, "more than an image")):
        with pytest.raises(WeightsError, match=said):
            load.load_model(str(save(two, tmp_path / "m.onnx", settings)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[", "must be a short JSON object"),
        ("[" * 100_000, "must be a short JSON object"),
        ("[]", "not an object"),
        ('{"gamma": 2}', "unknown key 'gamma'"),
        ('{"crop": 0}', "crop is 0, not a whole number from 1 to 2048"),
        ('{"crop": true}', "crop is true"),
        ('{"crop": 32}', "crop is 32, but the side of the network's input is 16 pixels"),
        ('{"size": 9999}', "size is 9999"),
        ('{"size": 4}', "crop 16 is not from 1 to 8"),
        ('{"mean": 0.5}', "mean is 0.5, not three numbers"),
        ('{"mean": [1, 2]}', "not three numbers"),
        ('{"std": [1, 0, 1]}', "not three numbers above 0"),
        ('{"std": [1, NaN, 1]}', "NaN is not a valid number in JSON"),
        ('{"scale": -1}', "scale is -1"),
        ('{"interpolation": "area"}', "one of bilinear, bicubic, lanczos"),
        ('{"colour": []}', "one of RGB, BGR"),
        ('{"output": 3}', "output is 3, not a name"),
    ],
)
def test_wrong_settings(file, settings, said):
    file.with_suffix(".json").write_text(settings)
    with pytest.raises(WeightsError) as caught:
        load.load_model(str(file))
    assert said in str(caught.value)


def test_missing_files(file, tmp_path):
    with pytest.raises(UsageError, match=r"no weights file at .*none\.onnx"):
        load.load_model("none.onnx")
    file.with_suffix(".json").unlink()
    with pytest.raises(UsageError, match=r"means\.json is missing") as caught:
        load.load_model(str(file))
    assert "echo '{}' > means.json" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (("b", 4, 16, 16), "not float32"),
        (("b", 3, 16, 20), "square images"),
        (("b", 3), "not float32"),
        ((5000, 3, 16, 16), "at most 1,024"),
        (("b", 3, 4096, 4096), "the largest permitted is 2048"),
    ],
)
def test_inputs_that_are_no_images(tmp_path, shape, said):
    proto = model([NODE("Flatten", ["x"], ["features"])], shape=shape, outputs=[("features", ("b", "d"))])
    with pytest.raises(WeightsError, match=said):
        load.load_model(str(save(proto, tmp_path / "m.onnx", {})))


def test_outputs_that_are_no_features(tmp_path, pixels):
    proto = model([NODE("Squeeze", ["x"], ["features"])], outputs=[("features", None)], shape=(1, 3, 16, 16))
    with pytest.raises(WeightsError, match=r"not floats \(batch, D\)"):
        load.load_model(str(save(proto, tmp_path / "m.onnx", {})))
    nan = model([*means().graph.node, NODE("Log", ["features"], ["log"])], outputs=[("log", ("batch", 3))])
    loaded = load.load_model(str(save(nan, tmp_path / "nan.onnx", IDENTITY)))
    with pytest.raises(WeightsError, match="NaN or infinite"):
        loaded.features(pixels * 0)


def outside(tensor):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def in_an_attribute():
    tensor = outside(constant("value", [1.0]))
    return model([NODE("Constant", [], ["c"], value=tensor), NODE("Add", ["x", "c"], ["features"])])


def with_a_loop():
    body = helper.make_graph([NODE("Identity", ["x"], ["y"])], "b", [], [helper.make_tensor_value_info("y", 1, None)])
    nodes = [NODE("If", ["c"], ["features"], then_branch=body, else_branch=body)]
    return model(nodes, constants=[constant("c", True, bool)])


def with_a_function():
    proto = means(domains=["own"])
    proto.functions.append(
        helper.make_function("own", "F", ["a"], ["b"], [NODE("Identity", ["a"], ["b"])], [helper.make_opsetid("", 17)])
    )
    return proto


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: model([NODE("Add", ["x", "w"], ["features"])], constants=[outside(constant("w", [1.0]))]),
            "in another file",
        ),
        (in_an_attribute, "in another file"),
        (with_a_loop, "operator 'If' holds another graph"),
        (with_a_function, "it holds functions"),
        (
            lambda: model([NODE("Steal", ["x"], ["features"], domain="evil")], domains=["evil"]),
            "no operator 'Steal' of 'evil'",
        ),
        (lambda: model([NODE("Nonesuch", ["x"], ["features"])]), "cannot open the network"),
    ],
)
def test_files_of_strangers_are_refused(tmp_path, make, said, photos):
    path = save(make(), tmp_path / "m.onnx", {})
    with pytest.raises(WeightsError, match=said):
        load.load_model(str(path))
    done = run("build", photos, "-i", tmp_path / "index", "--model", path)
    assert done.exit_code == 2
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("cut", [0, 1, 7, 40, -3])
def test_damaged_files(file, cut):
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(WeightsError, match=r"not an ONNX file|cannot open"):
        load.load_model(str(file))


def test_large_files_are_refused(file, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST_BYTES", 10)
    with pytest.raises(WeightsError, match=r"the limit for \.onnx files"):
        load.load_model(str(file))


@pytest.mark.parametrize("data", [b"\x0b\x00", b"\x3a\xff\xff\xff\xff\x0f", b"\x38\x01", b"\xff" * 20, b"\x08\x01"])
def test_bytes_that_are_no_message(data):
    with pytest.raises(WeightsError, match="is not an ONNX file"):
        untrusted.check_graph("x.onnx", data)


def test_it_runs_on_the_cpu_in_its_own_precision(file):
    with pytest.raises(DeviceError, match="on the CPU"):
        load.load_model(str(file), "cuda")
    with pytest.raises(UsageError, match="int8"):
        load.load_model(str(file), precision="int8")
    assert load.load_model(str(file), precision="auto").features(np.zeros((1, 16, 16, 3), np.uint8)).shape == (1, 3)


def test_an_index_of_an_onnx_file(file, photos, tmp_path):
    index = tmp_path / "index"
    assert run("build", photos, "-i", index, "--model", file).exit_code == 0
    found = run("query", photos / "rose" / "0.png", "--crop", "0,0,16,16", "-i", index, "--format", "json", "-k", 1)
    match = json.loads(found.stdout)[0]["matches"][0]
    assert match["path"].endswith("rose/0.png")
    assert match["distance"] < 0.5
    info = json.loads(run("info", "-i", index, "--format", "json").stdout)
    assert (info["dimension"], info["model"]) == (3, str(file))
    assert info["weights_sha256"] == load.weights_sha256(str(file))


def test_other_settings_are_another_model(file, photos, tmp_path):
    simsearch.build(photos, tmp_path / "index", str(file)).close()
    file.with_suffix(".json").write_text(json.dumps({**IDENTITY, "colour": "BGR"}))
    with simsearch.open(tmp_path / "index") as engine, pytest.raises(ModelMismatchError, match="means"):
        engine.load_model()
    file.with_suffix(".json").write_text(json.dumps({**dict(reversed(IDENTITY.items())), "colour": "RGB"}, indent=9))
    with simsearch.open(tmp_path / "index") as engine:
        engine.load_model()


def test_a_moved_onnx_file(file, photos, tmp_path):
    index, moved = tmp_path / "index", tmp_path / "moved"
    simsearch.build(photos, index, str(file)).close()
    moved.mkdir()
    for suffix in (".onnx", ".json"):
        shutil.move(file.with_suffix(suffix), moved)
    query = ["query", photos / "rose" / "0.png", "--crop", "0,0,9,9", "-i", index]
    assert "--model FILE gives its new path" in run(*query).stderr
    assert run(*query, "--model", moved / "means.onnx").exit_code == 0


def test_no_torch_for_an_onnx_file(file, photos, tmp_path):
    code = "import sys; from simsearch.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit as e: assert not e.code"
    code += "\nassert 'torch' not in sys.modules"
    for arguments in (
        ["build", photos, "-i", tmp_path / "i", "--model", file],
        ["query", photos / "rose" / "0.png", "--crop", "0,0,9,9", "-i", tmp_path / "i"],
    ):
        command = [sys.executable, "-c", code, *map(os.fspath, arguments)]
        subprocess.run(command, capture_output=True, check=True)


def test_an_onnx_file_cannot_be_trained(file, tmp_path, photos):
    done = run("train", photos, "-o", tmp_path / "w.safetensors", "--from", file)
    assert done.exit_code == 2
    assert "is an ONNX file" in done.stderr
