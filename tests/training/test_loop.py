"""The training loop, on networks small enough for a test."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from simsearch import augment, fit
from simsearch import train as training
from simsearch.augment import Colour
from simsearch.batches import order_of
from simsearch.errors import SimsearchError, TrainingInterruptedError, UsageError
from simsearch.losses import length_loss, neighbour_loss, similarity_loss
from simsearch.metrics import Base, retrieval
from simsearch.models.alexnet import AlexNet
from simsearch.models.configs import AlexNetConfig
from simsearch.models.lenet import RadialBasis
from simsearch.presets import PRESETS, TrainConfig, change, settings
from simsearch.pruning import BITS, Compressor
from simsearch.trainset import TrainingSet
from simsearch.world import World

SMALL = AlexNetConfig(num_classes=3, image_size=63, channels=(8, 8, 8, 8, 8), hidden=16)
FAST = TrainConfig(
    image_size=63, epochs=4, batch_size=16, learning_rate=0.02, schedule="cosine", warmup=0.08, nesterov=True,
    label_smoothing=0.1, clip=5.0, dropout=0.1, gain=2**0.5, patches="scaled",
)  # fmt: skip


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
    rows: list[dict[str, object]] = []
    training.train(data, network, config, path, Colour.of(data.pixels), log=rows.append, **extra)
    return network, rows


def precision(network, data):
    return retrieval(Base(fit.features_of(network, data, Colour.of(data.pixels)), data.labels))["P@6"].mean()


def same(one, other):
    for (name, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0, msg=name)


def losses(rows):
    return [row["loss"] for row in rows if row["event"] == "step"]


def test_it_learns(data, tmp_path):
    network, rows = run(data, tmp_path / "c", validation=data)
    last = [row for row in rows if row["event"] == "step"][-1]
    assert last["step"] == last["steps"] == 24
    assert [row["epoch"] for row in rows if row["event"] == "epoch"] == [1, 2, 3, 4]
    assert rows[-1]["top1"] == training.accuracy(network, data, Colour.of(data.pixels))["top1"] > 0.9
    assert precision(network, data) > 0.8


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("at", [3, 6, 11, 20])
def test_a_resumed_run_is_exactly_an_uninterrupted_one(data, tmp_path, at, optimizer):
    config = replace(FAST, optimizer=optimizer, keep_hidden=0.5, prune_until=0.6, share_from=0.7, average=0.5)
    config = replace(config, learning_rate=0.02 if optimizer == "sgd" else 0.002)
    whole, rows = run(data, tmp_path / "whole", config, validation=data)
    steps = iter(range(1, 100))
    with pytest.raises(TrainingInterruptedError):
        run(data, tmp_path / "cut", config, validation=data, stop=lambda: next(steps) == at)
    resumed, more = run(data, tmp_path / "cut", config, validation=data, resume=True)
    assert more[0] == {"event": "resume", "step": at}
    same(whole, resumed)
    assert losses(more) == losses(rows)[-len(losses(more)) :]
    scores = [row["top1"] for row in rows if row["event"] == "epoch"]
    again = [row["top1"] for row in more if row["event"] == "epoch"]
    assert again == scores[len(scores) - len(again) :]


def test_the_paper_s_schedule_falls_when_validation_stalls(data, tmp_path):
    config = replace(FAST, schedule="plateau", epochs=40, patience=2, reductions=2, learning_rate=1e-6, warmup=0.0)
    _, rows = run(data, tmp_path / "c", config, validation=data)
    rates = [row["learning_rate"] for row in rows if row["event"] == "step"]
    assert len({round(math.log10(rate)) for rate in rates}) == 3
    assert rates == sorted(rates, reverse=True)
    assert rows[-1]["epoch"] < 40  # "reduced ... prior to termination"


def test_a_training_of_other_settings_is_not_resumed(data, tmp_path):
    run(data, tmp_path / "c", facts={"classes": ["r"]})
    with pytest.raises(UsageError, match="epochs 4, not 1"):
        run(data, tmp_path / "c", replace(FAST, epochs=1), resume=True, facts={"classes": ["r"]})
    with pytest.raises(UsageError, match=r"classes \['r'\], not \['x'\]"):
        run(data, tmp_path / "c", resume=True, facts={"classes": ["x"]})
    (tmp_path / "c").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="is not a checkpoint"):
        run(data, tmp_path / "c", resume=True)


def test_a_loss_that_is_no_number_is_an_error_and_leaves_the_last_checkpoint(data, tmp_path):
    steps = iter(range(1, 100))
    with pytest.raises(TrainingInterruptedError):
        run(data, tmp_path / "c", stop=lambda: next(steps) == 2)
    before = (tmp_path / "c").read_bytes()
    bad = fresh()
    with torch.no_grad():
        bad.classifier.weight.fill_(float("nan"))
    with pytest.raises(SimsearchError, match="the loss became nan") as error:
        run(data, tmp_path / "c", network=bad)
    assert "learning_rate=" in str(error.value.hint)
    assert (tmp_path / "c").read_bytes() == before


def test_out_of_memory_names_a_smaller_batch(data, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(augment, "apply", full)
    with pytest.raises(SimsearchError, match="a batch of 16 does not fit") as error:
        run(data, tmp_path / "c")
    assert error.value.hint == "--set batch_size=8"


@pytest.mark.parametrize(
    "said", ["cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory"]
)
def test_too_little_memory_is_recognised_by_what_is_said(data, tmp_path, monkeypatch, said):
    def fail(*arguments):
        raise RuntimeError(said)

    monkeypatch.setattr(augment, "apply", fail)
    with pytest.raises(SimsearchError, match="does not fit"):
        run(data, tmp_path / "c")


def test_other_failures_are_not_called_too_little_memory(data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(augment, "apply", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        run(data, tmp_path / "c")


def test_weights_that_are_no_numbers_are_never_saved(data, tmp_path):
    """The loss of the step before was one still."""
    steps = iter(range(1, 100))
    with pytest.raises(TrainingInterruptedError):
        run(data, tmp_path / "c", stop=lambda: next(steps) == 2)
    before = (tmp_path / "c").read_bytes()
    bad = fresh()
    bad.classifier.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(SimsearchError, match="a weight became no number by step 1"):
        run(data, tmp_path / "c", FAST if not FAST.clip else replace(FAST, clip=0.0), bad, stop=lambda: True)
    assert (tmp_path / "c").read_bytes() == before


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_the_last_one(data, tmp_path, monkeypatch):
    (tmp_path / "c").write_bytes(b"the last one")

    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SimsearchError, match="is the disk full"):
        run(data, tmp_path / "c", stop=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c").read_bytes() == b"the last one"


def test_where_compiling_fails_training_goes_on_without(data, tmp_path, monkeypatch):
    def fails(x):
        raise RuntimeError("Failed to find C compiler. Please specify via CC")

    monkeypatch.setattr(torch, "compile", lambda module: fails)
    monkeypatch.setenv("CXX", "c++")
    plain, _ = run(data, tmp_path / "plain")
    network, rows = run(data, tmp_path / "c", replace(FAST, compile=True))
    same(plain, network)
    notes = [row["text"] for row in rows if row["event"] == "note"]
    assert len(notes) == 1
    assert "Failed to find C compiler" in str(notes[0])


def test_sums_of_the_log_are_restored_in_double(data, tmp_path):
    first = training.Training(fresh(), FAST, 6, torch.device("cpu"))
    first.window += torch.tensor([1 / 3, 1, 2, 3], dtype=torch.float64)
    first.save(tmp_path / "c", {})
    second = training.Training(fresh(), FAST, 6, torch.device("cpu"))
    second.restore(tmp_path / "c", {})
    assert second.window.tolist() == first.window.tolist()


def test_fewer_images_than_a_batch_are_one_batch(data, tmp_path):
    _, rows = run(data, tmp_path / "c", replace(FAST, batch_size=500))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_pruning_and_sharing_keep_what_they_should(data, tmp_path):
    config = replace(FAST, epochs=8, keep_hidden=0.5, keep_convolution=0.8, prune_until=0.5, share_from=0.7)
    network, _ = run(data, tmp_path / "c", config)
    for name, parameter in network.named_parameters():
        values = parameter[parameter != 0].unique()
        if name.startswith("hidden") and name.endswith("weight"):
            assert (parameter != 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
            assert len(values) <= 2 ** BITS["hidden"] - 1
        if name == "conv.0.weight" or name.endswith("bias"):
            assert (parameter != 0).float().mean().item() > 0.9
    assert training.accuracy(network, data, Colour.of(data.pixels))["top1"] > 0.9


def test_pruning_grows_along_a_cubic():
    compressor = Compressor(fresh(), replace(FAST, keep_hidden=0.5, prune_from=0.35, prune_until=0.8))
    shares = []
    for step in (0, 35, 50, 65, 80, 100):
        compressor.after(step, 100)
        mask = compressor.masks.get("hidden.4.weight")
        shares.append(1.0 if mask is None else mask.float().mean().item())
    assert shares[0] == shares[1] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == shares[-2] == pytest.approx(0.5, abs=0.01)


def test_a_teacher_shapes_the_distances(data, tmp_path):
    config = replace(FAST, epochs=6, dropout=0.0, teacher_weight=1.0, label_weight=0.0)
    network, _ = run(data, tmp_path / "c", config)
    assert precision(network, data) > 0.9


def test_lengths_become_equal(data, tmp_path):
    colour = Colour.of(data.pixels)

    def variation(network):
        return length_loss(torch.from_numpy(fit.features_of(network, data, colour))).item()

    with_it, _ = run(data, tmp_path / "a", replace(FAST, norm_weight=5.0))
    without, _ = run(data, tmp_path / "b")
    assert variation(with_it) < variation(without)


def test_similarity_loss_is_zero_where_student_and_teacher_agree():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.rand(20, 8), dim=1)
    assert similarity_loss(unit, unit, 0.1).item() == pytest.approx(0, abs=1e-5)
    assert similarity_loss(unit, unit.flip(0), 0.1).item() > 0.1


def views(config, seed, batch=32):
    return augment.draw(batch, 72, 63, config, torch.Generator().manual_seed(seed))


def test_scaled_patches_are_seeded_and_normalised(data):
    colour = Colour.of(data.pixels)
    pixels = torch.from_numpy(data.pixels[:32])

    def augmented(seed):
        return augment.apply(views(FAST, seed), pixels, 63, colour)

    assert augmented(1).shape == (32, 3, 63, 63)
    assert torch.equal(augmented(1), augmented(1))
    assert not torch.equal(augmented(1), augmented(2))
    centred = augment.centre(torch.from_numpy(data.pixels), 63, colour)
    assert centred.mean().abs() < 0.05
    assert centred.std().item() == pytest.approx(1, abs=0.05)


def test_the_paper_s_patches_are_pieces_of_the_picture():
    plain = replace(TrainConfig(), image_size=63, colour=0.0)
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (64, 72, 72, 3), dtype=np.uint8))
    seen = augment.apply(views(plain, 0, 64), pixels, 63, Colour.fixed(0.0, 1.0)).permute(0, 2, 3, 1)
    corners, flips = set(), set()
    for picture, patch in zip(pixels.float(), seen, strict=True):
        places = [
            (y, x, flip)
            for y in range(10)
            for x in range(10)
            for flip in (False, True)
            if torch.equal(picture[y : y + 63, x : x + 63], patch.flip(1) if flip else patch)
        ]
        assert len(places) == 1
        corners.add(places[0][:2])
        flips.add(places[0][2])
    assert flips == {False, True}
    assert len(corners) > 30
    assert {0, 9} <= {y for y, _ in corners}


def test_exact_patches_agree_with_interpolated_ones():
    plain = replace(TrainConfig(), image_size=63, colour=0.0)
    pixels = torch.randint(0, 256, (16, 72, 72, 3), dtype=torch.uint8)
    drawn = views(plain, 3, 16)
    exact = augment.apply(drawn, pixels, 63, Colour.fixed(0.0, 1.0))
    resampled = augment.apply(replace(drawn, exact=False), pixels, 63, Colour.fixed(0.0, 1.0))
    torch.testing.assert_close(exact, resampled, rtol=0, atol=0.05)


def test_coordinates_of_patches_come_of_no_matrix_product(data):
    """Which a GPU would compute in TF32, a tenth of a pixel off."""
    drawn = views(replace(FAST, rotation=20.0, shear=0.2, colour=0.0), 0)
    theta = drawn.theta
    expected = torch.nn.functional.affine_grid(theta, [len(theta), 3, 63, 63], align_corners=False)
    with torch.profiler.profile(acc_events=True) as profile:
        augment.apply(drawn, torch.from_numpy(data.pixels[: len(theta)]), 63, Colour.fixed(0.0, 1.0))
    assert not [event.key for event in profile.key_averages() if "mm" in event.key]
    torch.testing.assert_close(augment._grid(theta, 63), expected, rtol=0, atol=1e-5)


def test_colour_jitter_moves_along_the_principal_components():
    """Section 4.1: [p1, p2, p3] [a1 l1, ...] with a of deviation 0.1 is added to every pixel of an image."""
    jitter = replace(TrainConfig(), image_size=63, reflections=False)
    pixels = torch.full((4000, 72, 72, 3), 100, dtype=torch.uint8)[:, :63, :63]
    axes = torch.tensor([[3.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 50.0]])
    colour = Colour(torch.zeros(3), torch.ones(3), axes)
    drawn = augment.draw(4000, 63, 63, jitter, torch.Generator().manual_seed(0))
    added = augment.apply(drawn, pixels, 63, colour) - 100
    assert added.std((2, 3)).max() < 1e-4
    np.testing.assert_allclose(added[:, :, 0, 0].std(0), [0.3, 2.0, 5.0], rtol=0.1)


def test_sizes_must_agree(data):
    with pytest.raises(SimsearchError, match="95 labels"):
        TrainingSet(data.pixels, data.labels[:95], data.classes)


WORKER = """
import sys
from pathlib import Path
import numpy as np, torch
from simsearch.augment import Colour
from simsearch.losses import length_loss, neighbour_loss, similarity_loss
from tests.test_train import FAST, fresh
from simsearch.train import train
from simsearch.world import World
from simsearch.trainset import TrainingSet
from dataclasses import replace
with np.load(sys.argv[1]) as file:
    data = TrainingSet(file["pixels"], file["labels"], ("r", "g", "b"))
network = fresh()
rows = []
config = replace(FAST, dropout=0.0, keep_hidden=0.5, objective="metric", norm_weight=0.5)
train(data, network, config, Path(sys.argv[2]), Colour.of(data.pixels), validation=data, log=rows.append)
world = World.join(torch.device("cpu"))
torch.save({"network": network.state_dict(), "losses": [r["loss"] for r in rows if r["event"] == "step"],
            "top1": [r["top1"] for r in rows if r["event"] == "epoch"]}, f"{sys.argv[2]}.{world.rank}of{world.size}")
"""


def test_two_processes_train_the_same_network_as_one(data, tmp_path):
    np.savez(tmp_path / "data.npz", pixels=data.pixels, labels=data.labels)
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    arguments = [str(tmp_path / "worker.py"), str(tmp_path / "data.npz"), str(tmp_path / "out")]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", *rendezvous]
    for command in (launch + arguments, arguments):
        done = subprocess.run([sys.executable, *command], env=environment, timeout=300, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
    one, first, second = (torch.load(tmp_path / f"out.{name}") for name in ("0of1", "0of2", "1of2"))
    assert one["losses"] == pytest.approx(first["losses"], abs=2e-4)
    assert one["top1"] == first["top1"] == second["top1"]
    for name, value in one["network"].items():
        torch.testing.assert_close(first["network"][name], second["network"][name], rtol=0, atol=0)
        torch.testing.assert_close(first["network"][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_batch_must_be_shared_evenly(data, tmp_path, monkeypatch):
    monkeypatch.setattr(World, "join", lambda device: World(0, 3))
    with pytest.raises(UsageError, match="16 images cannot be shared by 3 processes"):
        run(data, tmp_path / "c")


def test_settings_are_checked():
    assert settings("alexnet", None, []) == TrainConfig()
    assert settings("alexnet", "fast", ["epochs=3", "schedule=plateau"]).epochs == 3
    assert change(TrainConfig(), ["dropout=0"]).dropout == 0.0
    for text, message in (
        ("epoch=3", "no setting is called 'epoch'"), ("epochs", "not key=value"), ("epochs=0", "epochs is 0"),
        ("epochs=2.5", "not a whole number"), ("epochs=many", "not a whole number"), ("compile=1", "not true or false"),
        ("schedule=step", "schedule is 'step'"), ("dropout=1", "dropout is 1.0"), ("learning_rate=0", "learning_rate"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            change(TrainConfig(), [text])
    with pytest.raises(UsageError, match="no preset 'slow'"):
        settings("alexnet", "slow", [])


@pytest.mark.parametrize(
    "text",
    ["seed=-1", "momentum=-1", "momentum=1", "weight_decay=-1", "smallest_patch=0", "label_smoothing=2", "temperature=0",
     "keep_hidden=0", "warmup=1", "clip=-1", "gain=-1", "average=2", "learning_rate=1e400", "dropout=NaN", "zoom=-2"],
)  # fmt: skip
def test_values_outside_of_what_makes_sense_are_refused(text):
    with pytest.raises(UsageError, match=text.split("=")[0]):
        change(FAST, [text])


def test_nesterov_needs_momentum():
    with pytest.raises(UsageError, match="nesterov"):
        change(FAST, ["momentum=0"])


def test_the_default_preset_is_the_paper_s():
    paper = PRESETS["alexnet"]["paper"]
    assert (paper.momentum, paper.weight_decay, paper.batch_size, paper.learning_rate) == (0.9, 5e-4, 128, 0.01)
    assert (paper.dropout, paper.colour, paper.image_size, paper.reflections) == (0.5, 0.1, 224, True)
    assert (paper.schedule, paper.reductions, paper.patches, paper.gain) == ("plateau", 3, "fixed", 0.0)


def test_neighbour_loss_is_small_where_labels_are_apart():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])  # the last is alone and does not count
    apart = torch.eye(3)[labels] + 0.01 * torch.rand(7, 3)
    assert neighbour_loss(apart, labels, 0.1).item() == pytest.approx(math.log(2), abs=0.02)
    assert neighbour_loss(apart, labels.flip(0), 0.1).item() > 2
    assert neighbour_loss(5 * apart, labels, 0.1).item() == pytest.approx(
        neighbour_loss(apart, labels, 0.1).item(), rel=1e-4
    )  # no unit of length
    alone = torch.rand(3, 4, requires_grad=True)
    assert neighbour_loss(alone, torch.arange(3), 0.1).item() == 0
    neighbour_loss(alone, torch.arange(3), 0.1).backward()
    assert alone.grad is not None and not alone.grad.any()


def test_neighbour_loss_is_that_of_supervised_contrastive_learning():
    """Khosla et al. 2020, equation 2, image by image; of unit vectors, squared distance is two minus twice the cosine."""
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.rand(20, 16), dim=1)
    labels = torch.randint(0, 5, (20,))
    terms = []
    for i in range(20):
        others = [a for a in range(20) if a != i]
        total = sum(math.exp(float(z[i] @ z[a]) / 0.2) for a in others)
        positive = [math.log(math.exp(float(z[i] @ z[p]) / 0.2) / total) for p in others if labels[p] == labels[i]]
        terms += [-sum(positive) / len(positive)] if positive else []
    expected = sum(terms) / len(terms)
    assert neighbour_loss(z, labels, 0.2).item() == pytest.approx(expected, rel=1e-4)


def test_outputs_of_lenet5_are_full_precision_under_autocast():
    layer = RadialBasis(10)
    x = torch.randn(4, 84, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    torch.testing.assert_close(found, layer(x), rtol=0, atol=0)


def test_the_metric_objective_brings_a_label_together(data, tmp_path):
    config = replace(FAST, epochs=6, dropout=0.0, objective="metric", label_weight=0.0)
    network, _ = run(data, tmp_path / "c", config)
    assert precision(network, data) > 0.9


def test_images_of_a_label_come_together_and_each_once():
    labels = np.random.default_rng(0).integers(0, 5, 103)
    config = TrainConfig(objective="metric")
    order = order_of(labels, config, 3)
    assert sorted(order) == list(range(103))
    assert (labels[order[1:]] == labels[order[:-1]]).mean() > 0.6
    assert (order_of(labels, config, 4) != order).any()
