"""scripts/reproduce/alexnet.py, from pictures to a file of weights, at a tiny size."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from simsearch.models import weights

SCRIPTS = Path(__file__).parents[2] / "scripts" / "reproduce"


class Fake:
    """A teacher that sees the mean colours of quarters, of pictures finer than the student's."""

    def __init__(self, path):
        self.width, self.side = 12, 96

    def __call__(self, x):
        assert x.shape[2] == self.side
        features = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        logits = torch.zeros(len(x), 1000)
        logits[:, :12] = features
        return features, logits

    def of_centres(self, pixels):
        x = pixels.permute(0, 3, 1, 2).float() / 128 - 1
        return self(torch.nn.functional.interpolate(x, (self.side, self.side)))


@pytest.fixture(scope="module")
def script():
    """The module `alexnet` beside which `alexnet_file` is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        module = importlib.import_module("alexnet")
        patch.setattr(module, "Teacher", Fake)
        yield module
        for name in ("alexnet", "alexnet_views", "alexnet_file"):
            sys.modules.pop(name, None)


@pytest.fixture
def views(script):
    return sys.modules["alexnet_views"]


@pytest.fixture
def shipped(script, pictures, tmp_path, monkeypatch):
    """Writes the file of a training, measured on the pictures held out alone."""
    module = importlib.import_module("alexnet_file")
    held = module.source(pictures, "held-out")
    monkeypatch.setattr(module, "checks", lambda options, recipe: [("held-out", held)])
    monkeypatch.setattr(module, "some_of", lambda folder, count: held)

    def ship(work, note=None, image_size=None):
        file = tmp_path / f"{work.name}.safetensors"
        module.ship(
            argparse.Namespace(
                pictures=pictures,
                work=work,
                output=file,
                data=None,
                note=note,
                teacher="a fake",
                manifest=None,
                image_size=image_size,
            )
        )
        return file

    return ship


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two sources of coloured noise, one with ImageNet's labels and one without, and some held out."""
    folder, random = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for name, count, labels in (
        ("one", 40, ["n01440764", "n02102040"]),
        ("two", 24, ["x"]),
        ("held-out", 16, ["n01440764"]),
    ):
        colours = random.integers(0, 255, (count, 1, 1, 3))
        noise = random.integers(-40, 40, (count, 73, 73, 3))
        np.save(folder / f"{name}.npy", np.clip(colours + noise, 0, 255).astype(np.uint8))
        (folder / f"{name}.labels.txt").write_text("".join(f"{labels[n % len(labels)]}\n" for n in range(count)))
    (folder / "shares.tsv").write_text("one\t3\ntwo\t1\n")
    return folder


@pytest.fixture
def run(script, pictures, monkeypatch):
    def call(work, start=None, more=None, begin=None, **settings):
        small = {"image_size": 64, "batch": 8, "queue": 32, "warmup": 2, **settings}
        options = argparse.Namespace(
            pictures=pictures,
            work=work,
            teacher=Path("none"),
            start=start,
            more=more,
            begin=begin,
            save_minutes=1e9,
            compile=False,
        )
        script.train(script.Config(**small), options)
        return torch.load(work / "checkpoint.pt", weights_only=True)

    monkeypatch.setattr(script, "TOLD", 1)
    return call


def same(one, other):
    return all(torch.equal(one["network"][name], value) for name, value in other["network"].items())


def test_stopped_training_goes_on_unchanged(run, tmp_path):
    whole = run(tmp_path / "whole", steps=4)
    run(tmp_path / "parts", steps=2)
    assert not same(whole, torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True))
    parts = run(tmp_path / "parts", steps=4)
    assert same(whole, parts)
    assert parts["numbers"] == [4, 32, 0]
    rows = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["alike"] >= 0 and row["soft"] >= 0 for row in rows)


def test_regression_and_orthogonal_steps(run, tmp_path):
    new = {"regression": 4.0, "orthogonal": 0.15, "coarse": 0.3, "peaks": 0.01, "mixup": 0.5}
    run(tmp_path / "stable", steps=2)
    whole = run(tmp_path / "whole", start=tmp_path / "stable", more=3, **new)
    run(tmp_path / "parts", start=tmp_path / "stable", more=2, **new)
    content = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert content["head"][0]["linear.weight"].any()
    content["config"]["steps"] = 5
    torch.save(content, tmp_path / "parts" / "checkpoint.pt")
    assert same(whole, run(tmp_path / "parts", more=3, **new))
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert all(0 < row["cosine"] < 8 and row["peaks"] >= 0.01 for row in rows)


def test_regression_begins_by_least_squares(script):
    torch.manual_seed(0)
    head = script.Head(6, 4)
    features, line = torch.rand(50, 6), torch.randn(6, 4)
    taught = torch.nn.functional.normalize(features) @ line
    assert head(features, taught).item() == 1
    head.fit(features, taught, ridge=1e-6)
    assert head(features, taught).item() < 0.01


def test_a_share_of_pictures_is_mixed_with_the_one_before(views):
    x = torch.arange(400.0).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    weights = views.mixing(400, 0.25, torch.Generator().manual_seed(0))
    assert 0.5 <= weights.min() < 0.6
    assert 70 < (weights < 1).sum() < 130
    shown = views.mixed(x, weights)
    assert torch.equal(shown[weights.flatten() == 1], x[weights.flatten() == 1])
    torch.testing.assert_close(shown[1:], x[1:] - (1 - weights[1:]).expand(-1, 3, 4, 4))


def test_labels_are_not_mixed(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["alexnet.py", "sets", "work", "--objective", "labels", "--mixup", "0.5"])
    with pytest.raises(SystemExit):
        script.main()
    assert "labels are not mixed" in capsys.readouterr().err


def test_coarse_pictures_lose_detail_and_keep_their_mean(views):
    x = torch.rand(40, 3, 128, 128)
    shown = views.coarsen(x, 0.5, torch.Generator().manual_seed(0))
    changed = (shown != x).flatten(1).any(1)
    assert 10 < changed.sum() < 30
    assert (shown[changed].flatten(2).std(2) < 0.7 * x[changed].flatten(2).std(2)).all()
    assert torch.allclose(shown.mean((2, 3)), x.mean((2, 3)), atol=0.01)
    assert not torch.equal(shown, x)


def test_branch_cools_is_compressed_and_ships(run, shipped, tmp_path):
    run(tmp_path / "stable", steps=3)
    cooled = run(tmp_path / "cooled", start=tmp_path / "stable", more=2, cooldown=2)
    assert cooled["numbers"][0] == 5
    rows = [json.loads(line) for line in (tmp_path / "cooled" / "log.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == [0.1, 0.05]
    run(tmp_path / "small", start=tmp_path / "cooled", more=4, cooldown=4, compress=True, rate=0.001, keep_hidden=0.25)
    file = shipped(tmp_path / "small")
    card, tensors = weights.read_card(file), weights.read_tensors(file)
    assert len(card.classes) == 1000
    assert card.classes[0] == "tench"
    assert card.labels[0] == "n01440764"
    assert card.training["images seen"] == 72
    assert sorted(tensors) == sorted(
        f"{layer}.{part}"
        for part in ("weight", "bias")
        for layer in ("conv.0", "conv.4", "conv.8", "conv.10", "conv.12", "hidden.1", "hidden.4", "classifier")
    )
    kept = np.count_nonzero(tensors["hidden.4.weight"]) / tensors["hidden.4.weight"].size
    assert abs(kept - 0.25) < 0.01
    assert len(np.unique(tensors["hidden.4.weight"])) <= 32
    assert file.stat().st_size < 16 * 2**20


def test_labels_alone(run, tmp_path):
    content = run(tmp_path / "labels", steps=2, objective="labels")
    assert list(content["drawn"]) == ["one"]  # the source whose labels are ImageNet's


def test_source_is_drawn_whole_before_repeats(views, pictures):
    source = views.Pictures(pictures)
    rows = [source._row("one", 40, place) for place in range(80)]
    assert sorted(rows[:40]) == sorted(rows[40:]) == list(range(40))
    assert rows[:40] != rows[40:]


def test_unnormalised_weights_begin_a_training(run, shipped, tmp_path):
    run(tmp_path / "first", steps=1)
    dense = shipped(tmp_path / "first", note="noise")
    assert weights.read_card(dense).training["begun from"] == "noise"
    content = run(tmp_path / "second", steps=1, begin=dense, regression=4.0)
    row = json.loads((tmp_path / "second" / "log.jsonl").read_text())
    assert 0 < row["cosine"] < 3.9  # 4 if the head knew nothing
    assert abs(float(content["network"]["conv.0.layer.weight"].std()) - 0.01) < 0.01
