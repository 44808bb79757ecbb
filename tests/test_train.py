"""The training loop, on a network small enough for a test."""

import numpy as np
import pytest
import torch

from simsearch import train as training
from simsearch.errors import SimsearchError
from simsearch.models.alexnet import AlexNet
from simsearch.models.graphs import AlexNetConfig
from simsearch.train import Colour, Pruner, TrainConfig, TrainingSet

SMALL = AlexNetConfig(num_classes=3, image_size=63, channels=(8, 8, 8, 8, 8), hidden=16)
FAST = TrainConfig(epochs=4, batch_size=16, learning_rate=0.02, dropout=0.1, keep_hidden=0.5)


@pytest.fixture(scope="module")
def data():
    """Three colours, noisy."""
    random = np.random.default_rng(0)
    labels = np.arange(96) % 3
    pixels = random.normal(60, 20, (96, 72, 72, 3))
    pixels[np.arange(96), :, :, labels] += 120
    teacher = np.eye(3)[labels] + random.normal(0, 0.05, (96, 3))
    return TrainingSet(np.clip(pixels, 0, 255).astype(np.uint8), labels, ("r", "g", "b"), teacher.astype(np.float16))


def fresh():
    torch.manual_seed(0)
    network = AlexNet(SMALL)
    network.initialise(gain=2**0.5)
    return network


def run(data, path, config=FAST, network=None, **extra):
    network = network or fresh()
    rows: list[dict[str, float]] = []
    colour = training.train(data, network, config, path, log=rows.append, compiled=False, **extra)
    return network, colour, rows


def test_it_learns(data, tmp_path):
    network, colour, rows = run(data, tmp_path / "c.pt")
    assert rows[-1]["step"] == rows[-1]["steps"] == 24
    scores = training.evaluate(network, data, colour)
    assert scores["top1"] > 0.9
    assert scores["P@6"] > 0.8


def test_a_resumed_run_ends_as_an_uninterrupted_one(data, tmp_path, monkeypatch):
    whole, _, _ = run(data, tmp_path / "whole.pt")

    class Stop(Exception):
        pass

    calls: list[object] = []
    original = training.augment

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 11:
            raise Stop
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(training, "augment", failing)
        training.train(data, fresh(), FAST, tmp_path / "cut.pt", compiled=False, checkpoint_seconds=0)
    resumed, _, _ = run(data, tmp_path / "cut.pt")
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_other_settings_do_not_resume(data, tmp_path):
    run(data, tmp_path / "c.pt")
    with pytest.raises(SimsearchError, match="other settings"):
        run(data, tmp_path / "c.pt", TrainConfig(epochs=1, batch_size=16))


def test_pruning_keeps_the_share_it_should(data, tmp_path):
    network, _, _ = run(data, tmp_path / "c.pt")
    for name, parameter in network.named_parameters():
        kept = (parameter != 0).float().mean().item()
        if name.startswith("hidden") and name.endswith("weight"):
            assert kept == pytest.approx(FAST.keep_hidden, abs=0.01)
        if name == "conv.0.weight" or name.endswith("bias"):
            assert kept > 0.9


def test_pruning_grows_along_a_cubic():
    pruner = Pruner(fresh(), FAST)
    shares = []
    for progress in (0.0, 0.35, 0.5, 0.65, 0.8, 1.0):
        pruner.update(progress)
        mask = pruner.masks.get("hidden.4.weight")
        shares.append(1.0 if mask is None else mask.float().mean().item())
    assert shares[0] == shares[1] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == shares[-2] == pytest.approx(0.5, abs=0.01)


def test_a_teacher_shapes_the_distances(data, tmp_path):
    config = TrainConfig(epochs=6, batch_size=16, learning_rate=0.02, dropout=0.0, teacher_weight=1.0, label_weight=0.0)
    network, colour, _ = run(data, tmp_path / "c.pt", config)
    assert training.evaluate(network, data, colour)["P@6"] > 0.9


def test_similarity_loss_is_zero_where_student_and_teacher_agree():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.rand(20, 8), dim=1)
    assert training.similarity_loss(unit, unit, 0.1).item() == pytest.approx(0, abs=1e-5)
    assert training.similarity_loss(unit, unit.flip(0), 0.1).item() > 0.1


def test_patches_are_seeded_and_normalised(data):
    colour = Colour.of(data.pixels)
    pixels = torch.from_numpy(data.pixels[:32])

    def augmented(seed):
        return training.augment(pixels, 63, colour, FAST, torch.Generator().manual_seed(seed))

    assert augmented(1).shape == (32, 3, 63, 63)
    assert torch.equal(augmented(1), augmented(1))
    assert not torch.equal(augmented(1), augmented(2))
    centred = training.centre(torch.from_numpy(data.pixels), 63, colour)
    assert centred.mean().abs() < 0.05
    assert centred.std().item() == pytest.approx(1, abs=0.05)


def test_sizes_must_agree(data, tmp_path):
    with pytest.raises(SimsearchError, match="95 labels"):
        TrainingSet(data.pixels, data.labels[:95], data.classes)
    with pytest.raises(SimsearchError, match="fewer than one batch"):
        run(data, tmp_path / "c.pt", TrainConfig(batch_size=128))
