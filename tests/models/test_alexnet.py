"""AlexNet is as in the paper, and all engines agree."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from simsearch.errors import DeviceError, UsageError, WeightsError
from simsearch.images.preprocessing import Preprocessing
from simsearch.models import load, registry
from simsearch.models.networks.alexnet import AlexNet, count, local_response_norm
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.models.onnx import graphs, runtime
from simsearch.models.safetensors_header import TensorLocation
from simsearch.models.torch import runtime as torch_runtime


@pytest.fixture(scope="module")
def full():
    torch.manual_seed(0)
    return AlexNet().eval()


def test_counts_of_the_paper(full):
    counted = count(full)
    assert counted.parameters == 60_965_224
    assert counted.neurons == 659_272
    assert counted.connections == 724_406_816
    assert counted.connections_inside == 670_279_808


def test_parameters_layer_by_layer(full):
    sizes = {name: p.numel() for name, p in full.named_parameters() if name.endswith("weight")}
    assert list(sizes.values()) == [34_848, 307_200, 884_736, 663_552, 442_368, 37_748_736, 16_777_216, 4_096_000]


def test_sizes_of_figure_2(full):
    seen = []
    x = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        for layer in full.conv:
            x = layer(x)
            seen.append(tuple(x.shape[1:]))
    assert seen[0] == (96, 55, 55)
    assert seen[3] == (96, 27, 27)
    assert seen[7] == (256, 13, 13)
    assert seen[-1] == (256, 6, 6)
    assert AlexNetConfig().flat == 9216


def test_initialisation_of_section_5(full):
    biases = {name: p for name, p in full.named_parameters() if name.endswith("bias")}
    ones = {"conv.4.bias", "conv.10.bias", "conv.12.bias", "hidden.1.bias", "hidden.4.bias"}
    for name, bias in biases.items():
        assert torch.equal(bias, torch.full_like(bias, float(name in ones))), name
    assert full.hidden[1].weight.std().item() == pytest.approx(0.01, rel=0.01)


def test_two_halves_do_not_see_each_other(full):
    layer = full.conv[4]
    x = torch.randn(1, 96, 7, 7)
    y = x.clone()
    y[:, 48:] = 0
    with torch.no_grad():
        assert torch.equal(layer(x)[:, :128], layer(y)[:, :128])
        assert not torch.equal(layer(x)[:, 128:], layer(y)[:, 128:])


def test_normalisation_is_formula_of_section_3_3():
    x = torch.randn(2, 7, 3, 3, dtype=torch.float64)
    expected = torch.empty_like(x)
    for i in range(7):
        low, high = max(0, i - 2), min(6, i + 2)
        energy = (x[:, low : high + 1] ** 2).sum(1)
        expected[:, i] = x[:, i] / (2 + 1e-4 * energy) ** 0.75
    torch.testing.assert_close(local_response_norm(x), expected)
    torch.testing.assert_close(local_response_norm(x, beta=0.5), x * (x / expected).pow(-2 / 3), rtol=1e-6, atol=0)


def test_normalisation_against_torch():
    x = torch.randn(2, 96, 5, 5)
    reference = torch.nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(local_response_norm(x), reference(x))


def test_features_are_not_negative_and_wide(full):
    with torch.no_grad():
        features = full.features(torch.randn(2, 3, 224, 224))
    assert features.shape == (2, 4096)
    assert features.min() >= 0


def test_onnx_and_torch_agree_on_a_small_network(tiny_weights):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 63, 63, 3)).astype(np.uint8)
    found = registry.find_weights(str(tiny_weights))
    one = runtime.OnnxModel(found).features(pixels)
    other = torch_runtime.TorchModel(found, "cpu").features(pixels)
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    few = runtime.OnnxModel(found, few=True).features(pixels)
    np.testing.assert_allclose(one, few, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        runtime.OnnxModel(found).logits(pixels),
        torch_runtime.TorchModel(found, "cpu").logits(pixels),
        rtol=1e-3,
        atol=1e-5,
    )


def test_a_cut_cache_is_made_again(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path))
    pixels = np.zeros((1, 63, 63, 3), np.uint8)
    found = registry.find_weights(str(tiny_weights))
    before = runtime.OnnxModel(found).features(pixels)
    (folder,) = tmp_path.iterdir()
    (folder / "dense.safetensors").write_bytes(b"cut")
    np.testing.assert_array_equal(runtime.OnnxModel(found).features(pixels), before)
    (folder / "network.onnx").write_bytes(b"junk")
    np.testing.assert_array_equal(runtime.OnnxModel(found).features(pixels), before)


def test_an_unwritable_cache_does_not_matter(tiny_weights, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path / "file" / "cache"))
    assert runtime.OnnxModel(registry.find_weights(str(tiny_weights))).features(
        np.zeros((1, 63, 63, 3), np.uint8)
    ).shape == (
        1,
        32,
    )


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_full_disk_is_said_in_one_line(tiny_weights, tmp_path, monkeypatch, everywhere):
    """safetensors raises its own error for a full disk; a temporary folder is used if it has space."""
    monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path))
    save = safetensors.numpy.save_file

    def full(tensors, path):
        if everywhere or tmp_path in Path(path).parents:
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path)

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    model, pixels = runtime.OnnxModel(registry.find_weights(str(tiny_weights))), np.zeros((1, 63, 63, 3), np.uint8)
    if everywhere:
        with pytest.raises(WeightsError, match=r"cannot be unpacked: .*No space left on device") as caught:
            model.features(pixels)
        assert "SIMSEARCH_CACHE" in str(caught.value.hint)
    else:
        assert model.features(pixels).shape == (1, 32)
    assert not list(tmp_path.iterdir())


def test_no_images_no_features(tiny_weights):
    assert load.load_model(str(tiny_weights)).features(np.zeros((0, 63, 63, 3), np.uint8)).shape == (0, 32)


def test_unknown_names_say_what_is_known():
    with pytest.raises(UsageError, match="'alexnot'") as caught:
        load.load_model("alexnot")
    assert "alexnet" in (caught.value.hint or "")
    with pytest.raises(UsageError, match=r"nowhere\.safetensors"):
        load.load_model("nowhere.safetensors")
    with pytest.raises(UsageError, match="'nonesuch'"):
        load.load_model("torchvision/nonesuch")


def test_devices():
    assert runtime.choose_device("cpu") == "cpu"
    assert runtime.choose_device("auto", few=True) == "cpu"
    for name in ("gpu", "cuda:x", "cpu:1"):
        with pytest.raises(DeviceError, match=name):
            runtime.choose_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no usable GPU"):
            runtime.choose_device("cuda")


def test_a_recipe_must_fit_the_network(tiny_weights):
    found = registry.find_weights(str(tiny_weights))
    card = found.card
    broken = registry.WeightsFile(
        found.name, found.path, type(card)(card.architecture, {**card.arguments, "image_size": 71}, card.recipe), ""
    )
    with pytest.raises(WeightsError, match="63"):
        runtime.OnnxModel(broken)


def test_the_graph_is_a_chain_of_known_operators():
    stored = {}
    names = [f"conv.{i}" for i in (0, 4, 8, 10, 12)] + ["hidden.1", "hidden.4", "classifier"]
    for name in names:
        stored[f"{name}.weight"] = stored[f"{name}.bias"] = TensorLocation((1,), 0, 4)
    model = graphs.alexnet(AlexNetConfig(), Preprocessing(), stored, "x")
    for operator in (b"Sqrt", b"Conv", b"MaxPool", b"Gemm", b"Flatten"):
        assert operator in model


class TestTorchvision:
    """Networks of torchvision with random weights, since the official ones would be downloaded."""

    @pytest.fixture(autouse=True)
    def untrained(self, monkeypatch, tmp_path):
        import torchvision

        monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path / "cache"))
        original = torchvision.models.get_model
        monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: original(name, weights=None))

    def test_alexnet_gives_its_last_hidden_layer(self):
        torch.manual_seed(0)
        model = load.load_model("torchvision/alexnet", "cpu")
        assert (model.dimension, model.recipe.resize, model.recipe.crop) == (4096, 256, 224)
        features = model.features(np.zeros((2, 224, 224, 3), np.uint8))
        assert features.shape == (2, 4096)
        assert features.dtype == np.float32
        assert features.min() >= 0

    def test_resnet_gives_its_pooled_layer(self):
        model = load.load_model("torchvision/resnet18", "cpu")
        assert model.dimension == 512
        assert model.features(np.zeros((1, 224, 224, 3), np.uint8)).shape == (1, 512)

    def test_weights_that_cannot_be_fetched(self, monkeypatch):
        import torchvision

        def offline(name, weights):
            raise OSError("no route to host")

        monkeypatch.setattr(torchvision.models, "get_model", offline)
        with pytest.raises(UsageError, match="no route to host") as caught:
            load.load_model("torchvision/alexnet", "cpu")
        assert "https://" in (caught.value.hint or "")


def test_model_facts_are_json():
    from simsearch.cli import model_cards

    facts = model_cards.facts()
    json.dumps(facts)
    assert [row["name"] for row in facts if row["default"]] == [registry.DEFAULT]
    for row in facts:
        assert row["name"] in model_cards.brief()
        assert row["sha256"] in model_cards.verbose()
        assert row["training"]
        assert row["metrics"]
