"""What the student of `alexnet.py` is shown, and what its teacher says to it: pictures, views of them, a network.

Shape letters: B pictures in a batch, P side of the stored pictures, S side of the student's input, T width of the
teacher's features.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from simsearch.training import augment
from simsearch.training.augment import ColourStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alexnet import Config

    from simsearch.training.config import TrainConfig

    Run = Callable[[list[np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]

CLASSES = [line.split("\t") for line in Path(__file__).with_name("imagenet.tsv").read_text().splitlines()]
"""ImageNet's 1000 classes in the teacher's order: WordNet id, name."""
COLOUR = ColourStats(
    torch.tensor([122.5, 115.5, 102.7]),
    torch.tensor([67.4, 65.8, 69.7]),
    torch.tensor([[6.2, -24.7, -63.1], [-12.4, -0.3, -66.0], [6.3, 23.4, -67.6]]),
)
"""Of Imagenette and Tiny-ImageNet; fixed, so that the pictures may become more while a training goes on."""
TAUGHT = ColourStats(torch.full((3,), 127.0), torch.full((3,), 128.0), COLOUR.axes)
"""How the teacher's input is normalised; the colours of a view change by the same axes."""
COARSE = (32, 48, 64, 96)
"""Sides in pixels that pictures are scaled down to where they lose their fine detail."""
NOISE = 25.0
"""The largest deviation, in grey levels of 255, of the noise that a picture may get."""


class Pictures:
    """Sources of pictures, drawn by share: each in an order of its own, and in another one when it is through."""

    def __init__(self, folder: Path, labelled: bool = False) -> None:
        rows = [line.split("\t") for line in (folder / "shares.tsv").read_text().splitlines()]
        known = {label: number for number, (label, _) in enumerate(CLASSES)}
        self.names, self.shards, self.labels, shares = [], [], [], []
        for name, share in rows:
            text = (folder / f"{name}.labels.txt").read_text().splitlines()
            labels = np.array([known.get(label, -1) for label in text])
            if labelled and labels.min() < 0:
                continue
            self.names.append(name)
            self.shards.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
            self.labels.append(labels)
            shares.append(float(share))
        self.shares = np.array(shares) / sum(shares)
        self.drawn = dict.fromkeys(self.names, 0)
        self.orders: dict[str, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def draw(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(count, P, P, 3) uint8, and the number of each one's class or -1."""
        pixels, labels = [], []
        counts = random.multinomial(count, self.shares)
        for name, shard, known, many in zip(self.names, self.shards, self.labels, counts, strict=True):
            for place in range(self.drawn[name], self.drawn[name] + int(many)):
                row = self._row(name, len(shard), place)
                pixels.append(shard[row])
                labels.append(known[row])
            self.drawn[name] += int(many)
        return np.stack(pixels), np.array(labels)

    def _row(self, name: str, size: int, place: int) -> int:
        """Row number `place` of an endless sequence of permutations."""
        turn, place = divmod(place, size)
        if self.orders.get(name, (-1, None))[0] != turn:
            self.orders[name] = turn, np.random.default_rng((turn, *name.encode())).permutation(size)
        return int(self.orders[name][1][place])


def _onnxruntime(path: Path) -> tuple[int, int, Run]:
    """Opens a teacher in ONNX Runtime: the side of its input, T, and a function of parts of a batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(parts: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [tuple(session.run(["features", "logits"], {"x": part})) for part in parts]

    return session.get_inputs()[0].shape[2], session.get_outputs()[0].shape[1], run


def _openvino(path: Path) -> tuple[int, int, Run]:
    """Opens a teacher in OpenVINO, on as many parts at a time as there are cores; returns what `_onnxruntime` does."""
    import openvino

    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16"}
    model = core.compile_model(core.read_model(path), "CPU", settings)
    queue = openvino.AsyncInferQueue(model)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def keep(request: Any, number: int) -> None:
        found[number] = tuple(request.get_tensor(name).data.copy() for name in ("features", "logits"))

    def run(parts: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        for number, part in enumerate(parts):
            queue.start_async({"x": part}, number)
        queue.wait_all()
        return [found.pop(number) for number in range(len(parts))]

    queue.set_callback(keep)
    side = model.input("x").partial_shape[2].get_length()
    return side, model.output("features").partial_shape[1].get_length(), run


class Teacher:
    """A network that sees what the student sees, finer if its input is larger.

    An ONNX file with `x` (B, 3, S, S), `features` (B, T) and `logits` (B, 1000). It is run by OpenVINO if that is
    installed, which is two and a half times as fast on processors with matrix units, else by ONNX Runtime.
    """

    PART = 32  # pictures at a time

    def __init__(self, path: Path) -> None:
        self.side, self.width, self.run = (_openvino if find_spec("openvino") else _onnxruntime)(path)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, side, side), normalised by TAUGHT, to features (B, T) and logits (B, 1000)."""
        given = x.contiguous().numpy()
        parts = self.run([given[n : n + self.PART] for n in range(0, len(given), self.PART)])
        features, logits = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        return features, logits

    def of_centres(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of the centres of pictures (B, P, P, 3) uint8."""
        return self(augment.centre(pixels, self.side, TAUGHT))


def coarsen(x: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Scales a share of pictures (B, 3, S, S) down to one of the sides COARSE and up again, as small ones would be."""
    x = x.clone()
    chosen = torch.rand(len(x), generator=generator) < share
    sides = torch.randint(len(COARSE), (len(x),), generator=generator)
    for number, side in enumerate(COARSE):
        rows = chosen & (sides == number)
        if rows.any():
            small = F.interpolate(x[rows], (side, side), mode="area")
            x[rows] = F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=False)
    return x


def mixing(count: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Weights (count, 1, 1, 1) of pictures in `mixed`: 1 for most, drawn between 0.5 and 1 for a share of them."""
    weights = 1 - torch.rand(count, generator=generator) / 2
    whole = torch.rand(count, generator=generator) >= share
    return torch.where(whole, 1.0, weights).reshape(-1, 1, 1, 1)


def mixed(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mixes each picture of (B, 3, S, S) with the one before it."""
    return x * weights + x.roll(1, 0) * (1 - weights)


def add_noise(x: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Adds Gaussian noise of a deviation between 0 and NOISE to a share of normalised pictures (B, 3, S, S)."""
    x = x.clone()
    rows = (torch.rand(len(x), generator=generator) < share).nonzero()[:, 0]
    deviation = NOISE * torch.rand(len(rows), 1, 1, 1, generator=generator) / COLOUR.std.view(1, 3, 1, 1)
    x[rows] += deviation * torch.randn(len(rows), *x.shape[1:], generator=generator)
    return x


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    shown: (B, 3, S, S), the pictures as the student sees them. labels: (B,), the numbers of their classes or -1.
    taught: (B, T) and soft: (B, 1000), the teacher's features and logits; None without a teacher.
    drawn: how many pictures of each source have been drawn, up to and with this batch.
    """

    shown: torch.Tensor
    labels: torch.Tensor
    taught: torch.Tensor | None
    soft: torch.Tensor | None
    drawn: dict[str, int]


def batch_of(config: Config, pictures: Pictures, teacher: Teacher | None, views: TrainConfig, step: int) -> Batch:
    """Draws the pictures of a step, changes them at random, and asks the teacher."""
    random = np.random.default_rng((config.seed, step))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    pixels, labels = (torch.from_numpy(part) for part in pictures.draw(config.batch, random))
    seen = augment.sample_augmentation(config.batch, pixels.shape[1], config.image_size, views, generator)
    x = augment.apply_augmentation(seen, pixels, config.image_size, COLOUR)
    weights = mixing(config.batch, config.mixup, generator) if config.mixup else None
    x = x if weights is None else mixed(x, weights)
    shown = coarsen(x, config.coarse, generator) if config.coarse else x
    shown = add_noise(shown, config.noise, generator) if config.noise else shown
    drawn = dict(pictures.drawn)
    if teacher is None:
        return Batch(shown, labels, None, None, drawn)
    finer = augment.apply_augmentation(seen, pixels, teacher.side, TAUGHT, torch.contiguous_format)
    finer = finer if weights is None else mixed(finer, weights)
    return Batch(shown, labels, *teacher(finer), drawn)


def batches(
    config: Config, pictures: Pictures, teacher: Teacher | None, views: TrainConfig, step: int
) -> Iterator[Batch]:
    """The batches from a step on; the next is prepared in a thread while the student learns from the one before."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(batch_of, config, pictures, teacher, views, step)
        while True:
            batch, step = ahead.result(), step + 1
            ahead = pool.submit(batch_of, config, pictures, teacher, views, step)
            yield batch
