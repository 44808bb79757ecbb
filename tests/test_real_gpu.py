"""On a GPU, where there is one: the same features as on the CPU, from pixels and from JPEGs, and the same matches."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest

import simsearch
from simsearch.images.samples import generate
from simsearch.models import load, registry
from simsearch.models.onnx.runtime import OnnxModel

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    products: np.ndarray = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return products


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generate.generate(folder, 300)
    return folder


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_features_are_those_of_the_cpu(precision: str, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setenv("SIMSEARCH_PRECISION", precision)
    cpu, gpu = OnnxModel(registry.find_weights(registry.DEFAULT)), load.load_model(registry.DEFAULT, "cuda")
    files = sorted(pictures.rglob("*.jpg"))[:64]
    pixels = np.stack([cpu.recipe.pixels(Image.open(file).convert("RGB")) for file in files])
    expected = cpu.features(pixels)
    for size in (64, 1, 64, 1, 64, 1, 64, 1):  # the last ones replay a recording
        found = gpu.features(pixels[:size])
        assert cosines(found, expected[:size]).min() > (0.9995 if precision == "auto" else 0.999999)
    wrong: list[float] = []

    def many() -> None:
        wrong.extend(1 - float(cosines(gpu.features(pixels[:7]), expected[:7]).min()) for _ in range(20))

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 80
    assert max(wrong) < 0.0005


def test_a_build_gives_the_items_of_the_cpu(pictures: Path, tmp_path: Path) -> None:
    from PIL import Image

    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(next(pictures.rglob("*.jpg"))).save(turned, "JPEG", exif=exif, quality=95)
    (pictures / "turned.jpg").write_bytes(turned.getvalue())
    (pictures / "broken.jpg").write_bytes(turned.getvalue()[:300] + b"\xff\xd9")
    engines = [
        simsearch.build(pictures, tmp_path / device, load.load_model(registry.DEFAULT, device), device=device)
        for device in ("cpu", "cuda")
    ]
    rows = []
    for engine in engines:
        with engine.reading() as reader:
            items = list(reader.items())
        rows.append(
            (
                [(item.path, item.digest, item.width, item.height) for item in items],
                engine.shards.read(np.array([item.row for item in items])).astype(np.float32),
            )
        )
    assert rows[0][0] == rows[1][0]
    assert engines[0].failures() == engines[1].failures()
    close = cosines(rows[0][1], rows[1][1])
    assert np.median(close) > 0.999
    assert close.min() > 0.99
    file = next(pictures.rglob("*.jpg"))
    cpu, gpu = ([match.id for match in engine.search(file, 6)] for engine in engines)
    assert len(set(cpu) & set(gpu)) >= 5
    for engine in engines:
        engine.close()
