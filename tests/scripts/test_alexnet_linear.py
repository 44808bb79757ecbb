"""scripts/reproduce/alexnet_linear.py: what it keeps of the convolutions, and what the last layers learn from."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simsearch.models import larger_input, registry, weights
from simsearch.training import compression

SCRIPTS = Path(__file__).parents[2] / "scripts" / "reproduce"
SHIPPED = Path(registry.__file__).parent / "weights_data" / registry.BUILTIN["alexnet"]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("alexnet_linear")
        for name in ("alexnet_linear", "alexnet", "alexnet_views", "alexnet_file", "judge", "pictures", "hashes"):
            sys.modules.pop(name, None)


def test_kept_inputs_give_what_enlarged_weights_give(script):
    random = np.random.default_rng(0)
    weight = random.standard_normal((4, 8 * 9), np.float32)
    maps = random.standard_normal((3, 8, 11, 11), np.float32)
    pooled = F.max_pool2d(torch.from_numpy(maps), 3, 2).flatten(1).numpy()
    expected = pooled @ larger_input.enlarged(weight, 8, pooled.shape[1]).T
    assert np.allclose(script.first_inputs(maps, 3) @ weight.T, expected, atol=1e-4)


def test_whitened_features_have_unit_length_and_even_directions(script):
    random = np.random.default_rng(1)
    features = random.standard_normal((400, 6)) * [9, 3, 1, 1, 1, 0.1] + 20
    plain, white = (script.whitened(features, 4, power).numpy() for power in (0.0, 1.0))
    assert white.shape == (400, 4)
    assert np.allclose(np.linalg.norm(white, axis=1), 1, atol=1e-5)
    spread = [np.linalg.eigvalsh(np.cov(rows.T)) for rows in (plain, white)]
    assert spread[0][-1] / spread[0][0] > 8 > 2 > spread[1][-1] / spread[1][0]


def test_shares_leave_out_the_picture_itself(script):
    squared = script.distances(torch.tensor([[0.0, 0], [1, 0], [0, 3]]))
    assert np.isclose(float(squared.mean()), 1)
    shares = script.log_shares(-squared).exp()
    assert torch.allclose(shares.diagonal(), torch.zeros(3))
    assert torch.allclose(shares.sum(1), torch.ones(3))
    assert shares[0, 1] > shares[0, 2]


def test_a_view_is_a_part_of_the_picture(script):
    random = np.random.default_rng(2)
    picture = np.full((160, 160, 3), (200, 40, 90), np.uint8)
    for _ in range(8):
        seen = script.view(picture, 64, random).astype(int)
        assert seen.shape == (64, 64, 3)
        assert np.abs(seen - seen[0, 0]).max() == 0
        assert np.abs(seen[0, 0] - picture[0, 0]).max() < 100


def test_views_are_kept_with_what_both_networks_say(script, tmp_path, monkeypatch):
    random = np.random.default_rng(4)
    np.save(tmp_path / "photos.npy", random.integers(0, 255, (6, 160, 160, 3), dtype=np.uint8))
    (tmp_path / "photos.labels.txt").write_text("none\n" * 6)
    (tmp_path / "shares.tsv").write_text("photos\t1\n")

    class Taught:
        side = 64

        def __init__(self, path):
            self.path = path

        def __call__(self, x):
            assert x.shape[1:] == (3, 64, 64) and -1 <= x.min() < x.max() <= 1.01
            return x.mean((2, 3)), None

    monkeypatch.setattr(script, "Teacher", Taught)
    options = Namespace(pictures=tmp_path, teacher=tmp_path, file=SHIPPED, work=tmp_path, side=3)
    script.make_views((options, 1, 5))
    views = np.load(tmp_path / "views-1.npz")
    assert {name: views[name].shape for name in views.files} == {"x": (5, 2304), "fc7": (5, 4096), "teach": (5, 3)}
    network = script.begin(SHIPPED)
    with torch.no_grad():
        again = network.hidden(torch.from_numpy(views["x"].astype(np.float32))).numpy()
    likeness = F.cosine_similarity(torch.from_numpy(again), torch.from_numpy(views["fc7"]).float())
    assert likeness.min() > 0.99  # int8 and float16


def test_last_layers_learn_and_the_others_stay(script, tmp_path, monkeypatch):
    random = np.random.default_rng(3)
    x, features, taught = (random.random((64, width)).astype(np.float16) for width in (2304, 4096, 20))
    np.savez(tmp_path / "views-0.npz", x=x, fc7=features, teach=taught)
    monkeypatch.setattr(script, "BATCH", 32)
    monkeypatch.setitem(compression.BITS, "hidden", script.BITS)
    monkeypatch.setattr(script, "whitened", lambda features, *_: F.normalize(torch.from_numpy(features).float()))
    known = [("known", random.random((8, 2304)).astype(np.float32), np.arange(8) % 2)]
    monkeypatch.setattr(script, "known_sets", lambda options: known)
    options = Namespace(
        file=SHIPPED, work=tmp_path, passes=2, rate=0.01, teaching=0.5, temperature=0.1, guesses=0.3, both=False, seed=1
    )
    script.train(options, [tmp_path / "views-0.npz"])
    made = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    card, before = weights.read_card(SHIPPED), weights.read_tensors(SHIPPED, as_trained=True)
    assert made["config"]["image_size"] == card.trained_at
    assert json.loads(json.dumps(made["config"]))["compress"]
    assert made["network"].keys() == before.keys()
    for name, tensor in made["network"].items():
        stays = name.startswith(("conv", "hidden.1"))
        assert torch.equal(tensor, torch.from_numpy(before[name])) == stays, name
    kept = made["network"]["hidden.4.weight"]
    assert abs(float((kept != 0).float().mean()) - 0.5) < 0.01
    assert len(kept.unique()) <= 2**script.BITS
    assert len(kept.unique()) > 32
