"""The scripts of scripts/reproduce run, small."""

import ast
import gzip
import importlib
import io
import json
import os
import subprocess
import sys
import zipfile
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.helpers.filler import Filler
from tests.helpers.scripts import SCRIPTS


def python_scripts():
    """Every Python file under scripts/, with a suffix or without."""
    files = [path for path in sorted(SCRIPTS.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in files if path.suffix == ".py" or path.read_bytes().startswith(b"#!/usr/bin/env python")]


@pytest.mark.parametrize("path", python_scripts(), ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_names_scripts_take_from_simsearch_exist(path):
    """Also what it needs in a place that a trial at a tiny size does not reach."""
    tree = ast.parse(path.read_text())
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "simsearch":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if not hasattr(module, alias.name) or isinstance(getattr(module, alias.name), ModuleType):
                    modules[alias.asname or alias.name] = importlib.import_module(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"{node.value.id}.{node.attr}, line {node.lineno}"


def run(script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPTS / "reproduce" / f"{script}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def mnist(tmp_path):
    """Drawn digits in MNIST's files: a bar whose place is the label."""
    random = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 60)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = random.integers(0, 40, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 + 2 * label : 6 + 2 * label, 4:24] = 250
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (tmp_path / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return tmp_path


def test_lenet5(mnist):
    work = mnist / "work"
    arguments = (mnist, "--work", work, "--seeds", 2, "--set", "epochs=2", "--set", "batch_size=20")
    out = run("lenet5", *arguments)
    assert out.count("of 60 wrong") == 4
    assert "distorted: mean" in out
    assert "index of 60 digits, 84 features each" in out
    with Image.open(work / "robustness.png") as figure:
        assert figure.width == 1440
    assert out.count("error in %") == 4
    again = run("lenet5", *arguments)  # finished seeds are kept
    kept = [line.split("(")[0] for line in out.splitlines() if "wrong" in line]
    assert kept == [line.split("(")[0] for line in again.splitlines() if "wrong" in line]


def red_and_blue(folder, count, side=32):
    """Noisy pictures of two classes, which their colour tells apart."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / ("red", "blue")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 150, (side, side, 3), dtype=np.uint8)
        pixels[:, :, (number % 2) * 2] += 60
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def test_presets(tmp_path):
    pictures = red_and_blue(tmp_path / "pictures", 128, 72)
    out = run("presets", pictures, "--val", pictures, "--image-size", 64, "--most", 2, "--fast-epochs", 3, "--eager")
    assert out.count("fast  seed 0") == out.count("paper seed 0") == 1
    assert out.count("seed 0 epoch") in (4, 5)  # a schedule runs to its end, the paper's may be ended by the target
    assert "fast  seed 0: 50% after 1 epochs" in out
    assert "`fast` is" in out or "no ratio" in out


def archive(path, count):
    """Noisy pictures of four classes in a .zip archive."""
    random = np.random.default_rng(0)
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for number in range(count):
            pixels = random.integers(0, 120, (72, 72, 3), dtype=np.uint8)
            pixels[..., number % 3] += np.uint8(100 if number % 4 < 3 else 0)
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "png")
            file.writestr(f"n{number % 4}/{path.stem}-{number}.png", data.getvalue())


def test_weights_go_on_where_they_were_stopped(tmp_path):
    """Each call that has no minutes left does a step."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train-0", "train-1", "train-2", "train-3", "val"):
        archive(data / "tiny-imagenet" / f"{name}.zip", 8)
    for name in ("train", "val"):
        archive(data / "imagenette160" / f"{name}.zip", 8)
    (data / "wordnet.tsv").write_text("".join(f"n{number}\tkind {number}\n" for number in range(4)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": str(tmp_path)}  # no compiler, so nothing is compiled
    environment.pop("CXX", None)

    command = [
        sys.executable,
        str(SCRIPTS / "reproduce" / "weights.py"),
        str(data),
        "--only",
        "alexnet-labels",
        "--image-size",
        "63",
    ]
    command += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), "--minutes", "0"]
    for step in (1, 2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 75, done.stderr[-3000:]
        assert f"first: stopped at step {step} of 5; the same command goes on" in done.stdout


def test_relu_vs_tanh(tmp_path):
    work = tmp_path / "work"
    out = run(
        "relu_vs_tanh",
        red_and_blue(tmp_path / "pictures", 256),
        "--work",
        work,
        "--seeds",
        2,
        "--rates",
        0.01,
        0.05,
        "--most",
        30,
    )
    assert "the paper says 6" in out
    assert (work / "relu_vs_tanh-paper.png").stat().st_size > 1000
    runs = [json.loads(path.read_text()) for path in work.glob("*.json")]
    assert {one["unit"] for one in runs} == {"relu", "tanh"}
    for one in runs:
        if one["epochs"] is not None:
            assert one["errors"][-1] <= 25 < one["errors"][-2]
            assert len(one["errors"]) - 2 <= one["epochs"] <= len(one["errors"]) - 1


def test_codes(tmp_path):
    filler = Filler(tmp_path / "index", 64)
    centres = np.random.default_rng(0).normal(0, 3, (40, 64))
    filler.add(np.maximum(centres[np.arange(2600) % 40] + np.random.default_rng(1).normal(0, 1, (2600, 64)), 0))
    arguments = (filler.path, "--bits", 64, "--sample", 600, "--work", tmp_path / "work")
    out = run("codes", *arguments)
    assert "1,000 of them queries, 600 to learn from" in out
    recalls = out.split("recall@10 after ranking 200, by bits\n")[1].split("\n\n")[0].splitlines()
    found = {line.split()[0]: float(line.split()[1]) for line in recalls[1:]}
    assert set(found) == {"dbn", "random", "similar", "lsh", "itq", "pq", "rabitq"}
    assert min(found.values()) > 0.2  # by chance 200 / 1600, after 60 steps of learning
    assert max(found.values()) > 0.9
    began = (tmp_path / "work" / "2600-600-itq-64.json").stat().st_mtime_ns
    assert "itq" in run("codes", *arguments, "--only", "itq")
    assert (tmp_path / "work" / "2600-600-itq-64.json").stat().st_mtime_ns == began  # nothing is done twice
