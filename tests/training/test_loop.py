"""The training loop, on networks small enough for a test."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from simsearch.errors import SimsearchError, TrainingInterruptedError, UsageError
from simsearch.evaluation.metrics import LabelledFeatures, retrieval
from simsearch.models.networks.lenet5 import RadialBasis
from simsearch.training import augment, publish
from simsearch.training import loop as training
from simsearch.training.augment import ColourStats
from simsearch.training.compression import BITS, Compressor
from simsearch.training.data import TrainingSet
from simsearch.training.distributed import ProcessGroup
from simsearch.training.losses import length_loss
from simsearch.training.state import TrainingState
from tests.helpers.training import FAST, fresh


def run(data, path, config=FAST, network=None, **extra):
    network = network or fresh()
    rows: list[dict[str, object]] = []
    training.train(data, network, config, path, ColourStats.of(data.pixels), log=rows.append, **extra)
    return network, rows


def interrupted(data, path):
    """Stops a run at its second step and returns the checkpoint."""
    steps = iter(range(1, 100))
    with pytest.raises(TrainingInterruptedError):
        run(data, path, stop=lambda: next(steps) == 2)
    return path.read_bytes()


def precision(network, data):
    return retrieval(LabelledFeatures(publish.features_of(network, data, ColourStats.of(data.pixels)), data.labels))[
        "P@6"
    ].mean()


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
    assert rows[-1]["top1"] == training.accuracy(network, data, ColourStats.of(data.pixels))["top1"] > 0.9
    assert precision(network, data) > 0.8


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("at", [3, 6, 11, 20])
def test_resumed_run_equals_uninterrupted_run(data, tmp_path, at, optimizer):
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


def test_paper_schedule_falls_on_stall(data, tmp_path):
    config = replace(FAST, schedule="plateau", epochs=40, patience=2, reductions=2, learning_rate=1e-6, warmup=0.0)
    _, rows = run(data, tmp_path / "c", config, validation=data)
    rates = [row["learning_rate"] for row in rows if row["event"] == "step"]
    assert len({round(math.log10(rate)) for rate in rates}) == 3
    assert rates == sorted(rates, reverse=True)
    assert rows[-1]["epoch"] < 40  # "reduced ... prior to termination"


def test_other_settings_are_not_resumed(data, tmp_path):
    run(data, tmp_path / "c", facts={"classes": ["r"]})
    with pytest.raises(UsageError, match="epochs 4, not 1"):
        run(data, tmp_path / "c", replace(FAST, epochs=1), resume=True, facts={"classes": ["r"]})
    with pytest.raises(UsageError, match=r"classes \['r'\], not \['x'\]"):
        run(data, tmp_path / "c", resume=True, facts={"classes": ["x"]})
    (tmp_path / "c").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="is not a checkpoint"):
        run(data, tmp_path / "c", resume=True)


def test_nan_loss_is_error_and_keeps_checkpoint(data, tmp_path):
    before = interrupted(data, tmp_path / "c")
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

    monkeypatch.setattr(augment, "apply_augmentation", full)
    with pytest.raises(SimsearchError, match="a batch of 16 images does not fit") as error:
        run(data, tmp_path / "c")
    assert error.value.hint == "batch_size=8" and error.value.shell_hint == "--set batch_size=8"


@pytest.mark.parametrize(
    "said", ["cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory"]
)
def test_out_of_memory_is_known_by_message(data, tmp_path, monkeypatch, said):
    def fail(*arguments):
        raise RuntimeError(said)

    monkeypatch.setattr(augment, "apply_augmentation", fail)
    with pytest.raises(SimsearchError, match="does not fit"):
        run(data, tmp_path / "c")


def test_other_failures_are_not_out_of_memory(data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(augment, "apply_augmentation", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        run(data, tmp_path / "c")


def test_nan_weights_are_never_saved(data, tmp_path):
    """The loss of the step was still finite."""
    before = interrupted(data, tmp_path / "c")
    bad = fresh()
    bad.classifier.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(SimsearchError, match="a weight is NaN or infinite at step 1"):
        run(data, tmp_path / "c", FAST if not FAST.clip else replace(FAST, clip=0.0), bad, stop=lambda: True)
    assert (tmp_path / "c").read_bytes() == before


def test_failed_checkpoint_keeps_previous(data, tmp_path, monkeypatch):
    (tmp_path / "c").write_bytes(b"the last one")

    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SimsearchError, match="is the disk full"):
        run(data, tmp_path / "c", stop=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c").read_bytes() == b"the last one"


def test_training_goes_on_without_compiling(data, tmp_path, monkeypatch):
    def fails(*x):
        raise RuntimeError("Failed to find C compiler. Please specify via CC")

    monkeypatch.setattr(torch, "compile", lambda module, **settings: fails)
    monkeypatch.setattr(training, "WORTH_COMPILING", 0)
    monkeypatch.setenv("CXX", "c++")
    plain, _ = run(data, tmp_path / "plain")
    network, rows = run(data, tmp_path / "c", replace(FAST, compile=True))
    same(plain, network)
    notes = [row["text"] for row in rows if row["event"] == "note"]
    assert [note.split(" ")[0] for note in notes] == ["compiling", "torch.compile"]
    assert "Failed to find C compiler" in notes[1]


def test_sums_of_the_log_are_restored_in_double(data, tmp_path):
    first = TrainingState(fresh(), FAST, 6, torch.device("cpu"))
    first.window += torch.tensor([1 / 3, 1, 2, 3], dtype=torch.float64)
    first.save(tmp_path / "c", {})
    second = TrainingState(fresh(), FAST, 6, torch.device("cpu"))
    second.restore(tmp_path / "c", {})
    assert second.window.tolist() == first.window.tolist()


def test_fewer_images_than_a_batch_are_one_batch(data, tmp_path):
    _, rows = run(data, tmp_path / "c", replace(FAST, batch_size=500))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_pruning_and_sharing_keep_the_rest(data, tmp_path):
    config = replace(FAST, epochs=8, keep_hidden=0.5, keep_convolution=0.8, prune_until=0.5, share_from=0.7)
    network, _ = run(data, tmp_path / "c", config)
    for name, parameter in network.named_parameters():
        values = parameter[parameter != 0].unique()
        if name.startswith("hidden") and name.endswith("weight"):
            assert (parameter != 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
            assert len(values) <= 2 ** BITS["hidden"] - 1
        if name == "conv.0.weight" or name.endswith("bias"):
            assert (parameter != 0).float().mean().item() > 0.9
    assert training.accuracy(network, data, ColourStats.of(data.pixels))["top1"] > 0.9


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
    colour = ColourStats.of(data.pixels)

    def variation(network):
        return length_loss(torch.from_numpy(publish.features_of(network, data, colour))).item()

    with_it, _ = run(data, tmp_path / "a", replace(FAST, norm_weight=5.0))
    without, _ = run(data, tmp_path / "b")
    assert variation(with_it) < variation(without)


def test_sizes_must_agree(data):
    with pytest.raises(SimsearchError, match="95 labels"):
        TrainingSet(data.pixels, data.labels[:95], data.classes)


WORKER = """
import sys
from pathlib import Path
import numpy as np, torch
from simsearch.training.augment import ColourStats
from simsearch.training.losses import length_loss, neighbour_loss, similarity_loss
from tests.helpers.training import FAST, fresh
from simsearch.training.loop import train
from simsearch.training.distributed import ProcessGroup
from simsearch.training.data import TrainingSet
from dataclasses import replace
with np.load(sys.argv[1]) as file:
    data = TrainingSet(file["pixels"], file["labels"], ("r", "g", "b"))
network = fresh()
rows = []
config = replace(FAST, dropout=0.0, keep_hidden=0.5, objective="metric", norm_weight=0.5)
train(data, network, config, Path(sys.argv[2]), ColourStats.of(data.pixels), validation=data, log=rows.append)
world = ProcessGroup.join(torch.device("cpu"))
torch.save({"network": network.state_dict(), "losses": [r["loss"] for r in rows if r["event"] == "step"],
            "top1": [r["top1"] for r in rows if r["event"] == "epoch"]}, f"{sys.argv[2]}.{world.rank}of{world.size}")
"""


def test_two_processes_train_same_network_as_one(data, tmp_path):
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
    monkeypatch.setattr(ProcessGroup, "join", lambda device: ProcessGroup(0, 3))
    with pytest.raises(UsageError, match="16 images cannot be divided evenly among 3 processes"):
        run(data, tmp_path / "c")


def test_lenet5_outputs_float32_under_autocast():
    layer = RadialBasis(10)
    x = torch.randn(4, 84, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    torch.testing.assert_close(found, layer(x), rtol=0, atol=0)


def test_metric_objective_joins_a_label(data, tmp_path):
    config = replace(FAST, epochs=6, dropout=0.0, objective="metric", label_weight=0.0)
    network, _ = run(data, tmp_path / "c", config)
    assert precision(network, data) > 0.9
