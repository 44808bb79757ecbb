"""LeNet-5 and the four-layer network: to the letter of 1998, and the same in both engines."""

import numpy as np
import pytest
import torch

from simsearch.images.preprocessing import Preprocessing
from simsearch.models import registry, weights
from simsearch.models.networks import build, lenet5
from simsearch.models.networks.configs import ConvNet4Config, LeNet5Config
from simsearch.models.networks.lenet5 import ChosenMaps, LeNet5, RadialBasis, Squash, Subsampling
from simsearch.models.networks.lenet5_tables import C3_TABLE, LENET5_INPUT, codes
from simsearch.models.onnx.runtime import OnnxModel
from simsearch.models.torch.runtime import TorchModel


def test_lenet5_has_60_000_parameters():
    """Section II.B: C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164."""
    counts = []
    for layer in LeNet5().layers:
        count = sum(p.numel() for p in layer.parameters())
        if isinstance(layer, ChosenMaps):
            count = int(C3_TABLE.sum()) * 25 + 16
        if count:
            counts.append(count)
    assert counts == [156, 12, 1516, 32, 48120, 10164]
    assert sum(counts) == 60_000


def test_the_maps_of_c3_read_those_of_table_i():
    assert C3_TABLE.sum(1).astype(int).tolist() == [3] * 6 + [4] * 9 + [6]
    assert C3_TABLE.sum(0).tolist() == [10] * 6
    assert len({tuple(row) for row in C3_TABLE}) == 16
    network = LeNet5()
    c3 = network.layers[4]
    x = torch.rand(1, 6, 14, 14)
    before = c3(x)
    x[:, 5] += 1
    changed = (c3(x) != before).any((0, 2, 3))
    assert changed.tolist() == [bool(row[5]) for row in C3_TABLE]


def test_shapes_are_those_of_figure_2():
    x = torch.zeros(2, 1, 32, 32)
    shapes = []
    for layer in LeNet5().layers:
        x = layer(x)
        if not isinstance(layer, Squash):
            shapes.append(tuple(x.shape[1:]))
    assert shapes[:5] == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1)]
    assert shapes[-1] == (84,)


def test_squashing_function_keeps_plus_minus_one():
    x = torch.tensor([-1.0, 0.0, 1.0, 100.0])
    torch.testing.assert_close(Squash()(x), torch.tensor([-1.0, 0.0, 1.0, 1.7159]), atol=1e-4, rtol=0)


def test_subsampling_adds_scales_and_shifts():
    layer = Subsampling(1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(-1.0)
    assert layer(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).item() == 2 * 10 - 1


def test_outputs_are_negative_code_distances():
    output = RadialBasis(10)
    x = torch.randn(3, 84)
    expected = -((x[:, None] - torch.from_numpy(codes(10))[None]) ** 2).sum(2)
    torch.testing.assert_close(output(x), expected, rtol=1e-4, atol=1e-3)
    assert not list(output.parameters())


@pytest.mark.parametrize("classes", [2, 10, 37])
def test_codes_are_signs_and_differ(classes):
    found = codes(classes)
    assert found.shape == (classes, 84)
    assert set(np.unique(found)) == {-1.0, 1.0}
    apart = (found[:, None] != found[None]).sum(2) + 84 * np.eye(classes, dtype=int)
    assert apart.min() >= 4
    np.testing.assert_array_equal(found, codes(classes))


def test_the_loss_is_equation_9():
    torch.manual_seed(0)
    logits, labels = -50 * torch.rand(6, 10), torch.arange(6)
    y = -logits.double()
    by_hand = [
        y[p, d] + torch.log(torch.exp(torch.tensor(-lenet5.RUBBISH).double()) + torch.exp(-y[p]).sum())
        for p, d in enumerate(labels)
    ]
    assert LeNet5().loss(logits, labels).item() == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)


def test_pixels_become_those_of_1998():
    mean, deviation = LENET5_INPUT
    assert (0 - mean) / deviation == pytest.approx(-0.1)
    assert (255 - mean) / deviation == pytest.approx(1.175)
    image = np.full((1, 32, 32, 3), 255, np.uint8)
    network = LeNet5()
    grey = (torch.from_numpy((image - mean) / deviation).permute(0, 3, 1, 2).float() * network.luma).sum(1)
    torch.testing.assert_close(grey, torch.full_like(grey, 1.175))


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("lenet5", LeNet5Config()),
        ("lenet5", LeNet5Config(num_classes=7)),
        ("convnet4", ConvNet4Config(activation="tanh")),
        ("convnet4", ConvNet4Config(activation="relu", num_classes=3)),
    ],
)
def test_both_engines_agree(architecture, config, tmp_path):
    torch.manual_seed(0)
    network = build.build_network(architecture, config)
    with torch.no_grad():  # biases and coefficients that are not trivial
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if architecture == "lenet5":
        c3 = network.get_submodule("layers.4")
        with torch.no_grad():
            c3.get_parameter("weight").mul_(c3.get_buffer("table"))
    tensors = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    recipe = Preprocessing(28, 32, (20.0,) * 3, (200.0,) * 3) if architecture == "lenet5" else Preprocessing(32, 32)
    classes = tuple(map(str, range(config.num_classes)))
    arguments = {"num_classes": config.num_classes}
    arguments |= {"activation": config.activation} if isinstance(config, ConvNet4Config) else {}
    path = tmp_path / "w.safetensors"
    weights.write(path, weights.ModelCard(architecture, arguments, recipe, classes), tensors, {})
    found = registry.find_weights(str(path))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    onnx, eager = OnnxModel(found), TorchModel(found, "cpu")
    assert onnx.features(pixels).shape == (5, config.dimension)
    np.testing.assert_allclose(onnx.features(pixels), eager.features(pixels), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(onnx.logits(pixels), eager.logits(pixels), rtol=1e-3, atol=2e-2)
    one, other = onnx.features(pixels).ravel(), eager.features(pixels).ravel()
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.9999


def test_every_architecture_has_presets():
    from simsearch.training.config import PRESETS

    assert set(registry.ARCHITECTURES) == set(build.NETWORKS) == set(PRESETS)


def test_digits_are_padded_not_scaled_for_lenet5():
    from PIL import Image

    digit = Image.fromarray(np.full((28, 28, 3), 200, np.uint8))
    pixels = Preprocessing(28, 32).pixels(digit)
    assert pixels.shape == (32, 32, 3)
    assert (pixels[2:-2, 2:-2] == 200).all()
    assert pixels.sum() == 28 * 28 * 3 * 200
