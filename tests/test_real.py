"""The shipped weights on real photographs, and on drawn ones where there are none."""

import numpy as np
import pytest

import simsearch
from simsearch.images import decode
from simsearch.images.samples import generate
from simsearch.models import registry
from simsearch.models.onnx import runtime
from simsearch.models.torch import runtime as torch_runtime
from tests.helpers.data import DATA

COREL = DATA / "corel"
real = pytest.mark.skipif(not COREL.is_dir(), reason=f"the photographs of {COREL} are not there")


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def photographs():
    files = sorted(COREL.glob("*/*.jpeg"))[::100]
    return [decode.decode_image(path.read_bytes()).image for path in files]


def drawn():
    return [generate.draw(kind, 0) for kind in list(generate.KINDS)[:12]]


@pytest.mark.parametrize("pictures", [pytest.param(photographs, marks=real), drawn])
@pytest.mark.parametrize("name", list(registry.BUILTIN))
def test_both_engines_agree(name, pictures):
    found = registry.find_weights(name)
    pixels = np.stack([found.card.recipe.pixels(image) for image in pictures()])
    onnx = runtime.OnnxModel(found).features(pixels)
    torch = torch_runtime.TorchModel(found, "cpu").features(pixels)
    assert onnx.shape == (len(pixels), 4096)
    assert onnx.min() >= 0
    assert cosine(onnx, torch).min() >= 0.9999
    assert cosine(onnx, runtime.OnnxModel(found, few=True).features(pixels)).min() >= 0.9999


@real
def test_photographs_of_one_kind_are_near(tmp_path):
    """On five categories: more than half of the six nearest are of the query's, three times what chance gives."""
    folders = [COREL / name for name in sorted(path.name for path in COREL.iterdir())[:5]]
    manifest = tmp_path / "photographs.csv"
    lines = [f"{path},{folder.name}" for folder in folders for path in sorted(folder.iterdir())[:40]]
    manifest.write_text("path,label\n" + "\n".join(lines) + "\n")
    with simsearch.build(manifest, tmp_path / "index", allow_outside=True) as engine:
        assert len(engine) == 200
        found = engine.search_many(list(range(1, 201)), k=6)
        shares = [
            np.mean([match.label == engine.item(number).label for match in matches])
            for number, matches in enumerate(found, 1)
        ]
    assert np.mean(shares) > 0.5


def test_a_drawn_picture_finds_its_kind(tmp_path):
    generate.generate(tmp_path / "drawn", 240)
    with simsearch.build(tmp_path / "drawn", tmp_path / "index") as engine:
        found = engine.search_many(list(range(1, 241)), k=6)
        labels = {number: engine.item(number).label for number in range(1, 241)}
    precision = np.mean([labels[m.id] == labels[n] for n, matches in enumerate(found, 1) for m in matches])
    assert precision > 10 / 30  # ten times what chance gives


def test_indexed_picture_has_distance_zero(tmp_path):
    generate.generate(tmp_path / "drawn", 60)
    with simsearch.build(tmp_path / "drawn", tmp_path / "index") as engine:
        for path in sorted((tmp_path / "drawn").rglob("*.jpg"))[::10]:
            match = engine.search(path, k=1)[0]
            assert match.path == str(path)
            assert match.distance < 1e-2
            assert match.similarity > 0.999
