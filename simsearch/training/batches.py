"""Yields the batches of a training in random order; threads prepare them while the device computes.

Shape letters: N training images, P side of the stored images, b images of a batch in this process, T width of the
teacher's features.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simsearch.common import machine
from simsearch.training import augment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.training.config import TrainConfig
    from simsearch.training.data import TrainingSet
    from simsearch.training.distributed import ProcessGroup
    from simsearch.training.state import TrainingState

PREFETCH = 4
"""Largest number of batches that threads prepare while a GPU computes.

On the CPU one batch is enough, since computing takes longer than preparing.
"""

IMAGES_PER_LABEL = 4
"""Number of images of one label that the metric objective puts into a batch together.

This objective moves images of one label closer to each other, so a batch must have several of them.
"""


class Batch(NamedTuple):
    """The images of one training step in this process, on the device.

    pixels: (b, P, P, 3) uint8. labels: (b,) int64. teacher: (b, T) features that a teacher network computed, or None.
    views: the random crops, reflections and colour changes of the b images.
    """

    pixels: Tensor
    labels: Tensor
    teacher: Tensor | None
    views: augment.Augmentation


def batches(data: TrainingSet, training: TrainingState, world: ProcessGroup, batch: int) -> Iterator[Batch]:
    """Yields this process's part of each batch until `training.done`.

    The caller increases `training.state.step` by 1 for each batch, before it asks for the next one.
    batch: the number of images of a step in all processes together.
    Threads prepare the next batches in advance. For a GPU, they put the batches into pinned memory, because copies from
    other memory would wait until the GPU has finished its work.
    """
    config, device, per_epoch = training.config, training.device, training.steps_per_epoch
    count = batch // world.size
    mine = slice(world.rank * count, (world.rank + 1) * count)
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

    def to_device(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    threads = min(PREFETCH, machine.available_cores()) if cuda else 1
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        step = training.state.step
        ahead = deque(pool.submit(gather, number) for number in range(step, step + threads))
        while not training.done:
            tensors, views = ahead.popleft().result()
            ahead.append(pool.submit(gather, training.state.step + threads))
            pixels, labels, *teacher = map(to_device, tensors)
            yield Batch(pixels, labels, teacher[0] if teacher else None, views.each(to_device))


def epoch_order(labels: NDArray[np.int64], config: TrainConfig, epoch: int) -> NDArray[np.int64]:
    """Returns the random order in which an epoch takes the rows of the training set: (N,).

    For the objective "metric", images are first sorted by label and divided into groups of `IMAGES_PER_LABEL`; then the
    groups are put in random order. So the images of a group have the same label, except at a border of two labels.
    """
    random = np.random.default_rng((config.seed, epoch))
    order = random.permutation(len(labels))
    if config.objective != "metric":
        return order
    order = order[np.argsort(labels[order], kind="stable")]
    groups = [order[start : start + IMAGES_PER_LABEL] for start in range(0, len(order), IMAGES_PER_LABEL)]
    return np.concatenate([groups[number] for number in random.permutation(len(groups))])
