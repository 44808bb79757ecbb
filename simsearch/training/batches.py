"""The batches of a training: which images, in which order, gathered ahead of the device that computes."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simsearch.common import machine
from simsearch.training import augment

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from simsearch.training.config import TrainConfig
    from simsearch.training.data import TrainingSet
    from simsearch.training.distributed import ProcessGroup
    from simsearch.training.loop import TrainingState

AHEAD = 4
"""Batches that threads gather while a GPU computes; a CPU is the slower part, and one is enough."""

TOGETHER = 4
"""Images of a label that go into a batch together, so that each has others to be near to."""


def batches(data: TrainingSet, training: TrainingState, world: ProcessGroup, batch: int) -> Iterator[tuple[Any, ...]]:
    """This process's share of each batch until training is done: pixels, labels and teacher on the device, views.

    While a batch is computed, threads gather the next. What a GPU is to get lies in pinned memory, from where copies
    queue up behind the work there; from elsewhere each would wait until all of that is done.
    """
    config, device, per_epoch = training.config, training.device, training.steps_per_epoch
    share = batch // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    stored = data.pixels.shape[1]
    cuda = device.type == "cuda"
    order = functools.lru_cache(2)(lambda epoch: epoch_order(data.labels, config, epoch))

    def gather(step: int) -> tuple[list[Tensor], augment.Augmentation]:
        epoch, place = divmod(step, per_epoch)
        rows = np.sort(order(epoch)[place * batch : (place + 1) * batch])[mine]
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        views = augment.sample_augmentation(batch, stored, config.image_size, config, generator)[mine]
        arrays = [data.pixels[rows], data.labels[rows]] + ([] if data.teacher is None else [data.teacher[rows]])
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        if cuda:
            return [tensor.pin_memory() for tensor in tensors], views.each(torch.Tensor.pin_memory)
        return tensors, views

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    threads = min(AHEAD, machine.available_cores()) if cuda else 1
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        step = training.state.step
        ahead = deque(pool.submit(gather, number) for number in range(step, step + threads))
        while not training.done:
            tensors, views = ahead.popleft().result()
            ahead.append(pool.submit(gather, training.state.step + threads))
            pixels, labels, *teacher = map(moved, tensors)
            yield pixels, labels, teacher[0] if teacher else None, views.each(moved)


def epoch_order(labels: NDArray[np.int64], config: TrainConfig, epoch: int) -> NDArray[np.int64]:
    """The rows of an epoch, each once; for the metric objective, images of a label come a few at a time."""
    random = np.random.default_rng((config.seed, epoch))
    order = random.permutation(len(labels))
    if config.objective != "metric":
        return order
    order = order[np.argsort(labels[order], kind="stable")]
    groups = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
    return np.concatenate([groups[number] for number in random.permutation(len(groups))])
