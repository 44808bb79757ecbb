"""The command line called in this process, on a small index of a tiny network."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from simsearch.cli.main import main


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def run(capfd, monkeypatch, index):
    """Runs a command in this process; the index is named unless the test names one."""
    monkeypatch.setenv("SIMSEARCH_INDEX", str(index))
    capfd.readouterr()

    def call(*arguments, stdin=None):
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(exit.value.code, out, err)

    return call


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures of four colours in class folders."""
    random = np.random.default_rng(0)
    for label, colour in {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}.items():
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for number in range(4):
            array = np.clip(np.array(colour) + random.normal(0, 30, (80, 100, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(array).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def index(tmp_path, pictures, tiny_weights):
    path = tmp_path / "index"
    with pytest.raises(SystemExit) as exit:
        main(["build", str(pictures), "-i", str(path), "--model", str(tiny_weights)])
    assert exit.value.code == 0
    return path
