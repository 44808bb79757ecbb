"""Runs of `simsearch train` on images of three colours."""

import json

import numpy as np
from click.testing import CliRunner
from PIL import Image

from simsearch.cli.main import main
from simsearch.training import job as training_job

COLOURS = {"red": 0, "green": 1, "blue": 2}
QUICK = ("--model", "convnet4", "--epochs", "4", "--set", "batch_size=8")


def draw(folder, label, count, seed=0):
    random = np.random.default_rng((seed, COLOURS[label]))
    (folder / label).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        pixels[:, :, COLOURS[label]] += 150
        Image.fromarray(pixels).save(folder / label / f"{seed}-{number}.png")


def simsearch_(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def rows(path, event="step"):
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["event"] == event]


def refused(done, *words):
    assert done.exit_code == 2, done.output
    assert done.output.startswith("error: ") or "\nerror: " in done.output
    for word in words:
        assert word in done.output


def job(pics, output, *changes, **rest):
    settings = ["batch_size=8", "epochs=4", *changes]
    return training_job.prepare_job([str(pics)], output, architecture="convnet4", changes=settings, **rest)
