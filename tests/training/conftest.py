"""Fixtures of the training tests: images of three colours and a finished run."""

import numpy as np
import pytest

from simsearch.training.data import TrainingSet
from tests.helpers.runs import COLOURS, QUICK, draw, simsearch_


@pytest.fixture(scope="module")
def data():
    """Three colours, noisy."""
    random = np.random.default_rng(0)
    labels = np.arange(96) % 3
    pixels = random.normal(60, 20, (96, 72, 72, 3))
    pixels[np.arange(96), :, :, labels] += 120
    teacher = np.eye(3)[labels] + random.normal(0, 0.05, (96, 3))
    return TrainingSet(np.clip(pixels, 0, 255).astype(np.uint8), labels, ("r", "g", "b"), teacher.astype(np.float16))


@pytest.fixture
def pics(tmp_path):
    for label in COLOURS:
        draw(tmp_path / "pics", label, 12)
    return tmp_path / "pics"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights of a small network that tells three colours apart, and the pictures."""
    folder = tmp_path_factory.mktemp("trained")
    for label in COLOURS:
        draw(folder / "pics", label, 12)
    done = simsearch_("train", folder / "pics", "-o", folder / "w.safetensors", *QUICK)
    assert done.exit_code == 0, done.output
    return folder / "w.safetensors", folder / "pics"
