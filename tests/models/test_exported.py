"""Networks of torchvision in ONNX Runtime, with random weights, since the official ones would be downloaded."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

import simsearch
from simsearch.common.cache import cache_dir
from simsearch.errors import UsageError
from simsearch.installation import install_line
from simsearch.models import load
from simsearch.models.onnx import exported
from simsearch.models.torch import export
from simsearch.models.torch.torchvision import TorchvisionModel
from simsearch.models.trial import lowest_cosine, trial_pixels

QUERY = """
import sys
from simsearch.cli.main import main
try: main(sys.argv[1:])
except SystemExit as end: assert not end.code, end.code
assert not {"torch", "torchvision"} & set(sys.modules)
"""


@pytest.fixture(autouse=True)
def untrained(tmp_path, monkeypatch):
    """Seeded weights, a cache of the test's own, and a count of the networks made."""
    original, made = torchvision.models.get_model, []

    def get_model(name, weights):
        made.append(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return original(name, weights=None)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path / "cache"))
    return made


def test_same_features_as_torch(untrained, caplog):
    with caplog.at_level("INFO"):
        model = load.load_model("torchvision/resnet18", "cpu")
    assert "converting torchvision/resnet18 to ONNX, once" in caplog.text
    reference = TorchvisionModel("torchvision/resnet18", "cpu")
    assert (model.engine, reference.engine) == ("onnxruntime-cpu", "torch-cpu")
    for name in ("name", "weights_sha256", "dimension", "recipe"):
        assert getattr(model, name) == getattr(reference, name)
    pixels = trial_pixels(224)
    found, expected = model.features(pixels), reference.features(pixels)
    assert lowest_cosine(found, expected) >= 0.9999
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert model.features(pixels[:0]).shape == (0, 512)


def test_a_network_is_converted_once(untrained):
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: load.load_model("torchvision/mobilenet_v3_small", "cpu"), range(2)))
    assert both[0].weights_sha256 == both[1].weights_sha256
    count = len(untrained)
    few = load.load_model("torchvision/mobilenet_v3_small", "cpu", images=1)
    assert len(untrained) == count
    pixels = trial_pixels(few.recipe.crop)
    assert lowest_cosine(few.features(pixels), both[0].features(pixels)) > 0.9999
    assert [path.name for path in cache_dir().iterdir()] == [exported.folder_name(few.name)]


def test_a_query_imports_no_torch(photos, tmp_path):
    index = tmp_path / "index"
    simsearch.build(photos, index, "torchvision/mobilenet_v3_small").close()
    for arguments in (
        ["query", photos / "rose" / "0.png", "--crop", "0,0,9,9", "-i", index],
        ["build", photos, "-i", tmp_path / "other", "--model", "torchvision/mobilenet_v3_small"],
    ):
        command = [sys.executable, "-c", QUERY, *map(os.fspath, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_damaged_graphs_are_made_again(untrained):
    name = "torchvision/mobilenet_v3_small"
    load.load_model(name, "cpu")
    folder = cache_dir() / exported.folder_name(name)
    for file, content in ((exported.GRAPH, b"x"), (exported.FACTS, b"{"), (exported.FACTS, b'{"a": 1}')):
        (folder / file).write_bytes(content)
        assert load.load_model(name, "cpu").engine == "onnxruntime-cpu"
    assert len(untrained) == 4
    assert sorted(path.name for path in folder.iterdir()) == [exported.FACTS, exported.GRAPH]


def test_networks_that_stay_in_torch(untrained, monkeypatch, caplog):
    """A network that cannot be converted, or computes something else, is only tried once."""

    def fails(*_):
        raise RuntimeError("no operator\nfor this")

    name = "torchvision/mobilenet_v3_small"
    monkeypatch.setattr(export, "_write", fails)
    with caplog.at_level("INFO"):
        assert load.load_model(name, "cpu").engine == "torch-cpu"
    assert "runs in torch, since it cannot be converted: RuntimeError: no operator for this" in caplog.text
    count = len(untrained)
    assert load.load_model(name, "cpu").engine == "torch-cpu"
    assert len(untrained) == count + 1  # in torch


def test_features_that_differ_stay_in_torch(monkeypatch):
    monkeypatch.setattr(export, "AGREEMENT", 1.1)
    name = "torchvision/mobilenet_v3_small"
    for _ in range(2):
        assert load.load_model(name, "cpu").engine == "torch-cpu"
    folder = cache_dir() / exported.folder_name(name)
    assert "lowest cosine" in json.loads((folder / exported.FACTS).read_text())["problem"]


def test_without_the_exporter(monkeypatch, caplog):
    finder = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(export, "importlib", finder)
    with caplog.at_level("INFO"):
        assert load.load_model("torchvision/mobilenet_v3_small", "cpu").engine == "torch-cpu"
    assert install_line("onnx") in caplog.text
    assert not list(cache_dir().glob("*"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", "nonesuch", "list_models"])
def test_names_that_are_no_network(name):
    with pytest.raises(UsageError, match="no image classifier called"):
        load.load_model(f"torchvision/{name}", "cpu")


def test_versions_are_part_of_the_key(monkeypatch, tmp_path):
    before = exported.folder_name("torchvision/resnet18")
    (tmp_path / "version.py").write_text("__version__ = '9'")
    other = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: other)
    assert exported.folder_name("torchvision/resnet18") != before


def test_int8_is_refused():
    with pytest.raises(UsageError, match="int8"):
        load.load_model("torchvision/mobilenet_v3_small", "cpu", precision="int8")
