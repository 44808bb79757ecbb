"""Random patches, reflections, distortions and colour changes of a batch of training images, computed on the device.

Krizhevsky et al. 2012, section 4.1. Shape letters: B batch, P side of the stored images, S side of the network's input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from simsearch.training.config import TrainConfig


@dataclass(frozen=True)
class ColourStats:
    """Statistics of the training pixels by channel (R, G, B), on the scale 0 to 255.

    mean, std: (3,). axes: (3, 3), whose columns are the principal components of colour (eigenvectors of the
    covariance), each multiplied by the standard deviation along it.
    """

    mean: Tensor
    std: Tensor
    axes: Tensor

    @classmethod
    def of(cls, pixels: Any) -> ColourStats:
        """Returns the statistics of images (N, P, P, 3) uint8, measured on up to 4,000 evenly spaced images."""
        sample = np.arange(0, len(pixels), max(1, len(pixels) // 2000))
        count, sums, products = 0, np.zeros(3), np.zeros((3, 3))  # integers in float64: exact
        for start in range(0, len(sample), 32):
            x = pixels[sample[start : start + 32]].reshape(-1, 3).astype(np.float64)
            count, sums, products = count + len(x), sums + x.sum(0), products + x.T @ x
        mean = sums / count
        covariance = products / count - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        axes = vectors * np.sqrt(np.maximum(values, 0))
        std = np.sqrt(np.maximum(covariance.diagonal(), 1.0))  # images of a single colour would divide by 0
        return cls(*(torch.tensor(x, dtype=torch.float32) for x in (mean, std, axes)))

    @classmethod
    def fixed(cls, mean: float, std: float) -> ColourStats:
        """Returns statistics with one mean and standard deviation for all three channels, and axes of 0."""
        return cls(torch.full((3,), mean), torch.full((3,), std), torch.zeros(3, 3))

    def to(self, device: torch.device) -> ColourStats:
        """Returns a copy on the device."""
        return ColourStats(self.mean.to(device), self.std.to(device), self.axes.to(device))


@dataclass(frozen=True)
class Augmentation:
    """The random changes that turn each stored image of a batch into an input of the network, called a view.

    theta: (B, 2, 3), an affine map from positions in the view to positions in the stored image, both from -1 to 1.
    shift: (B, 3), the change along each principal component of colour; None if colours do not change.
    exact: True if each view is a patch of whole pixels, possibly reflected, so that nothing is interpolated.
    """

    theta: Tensor
    shift: Tensor | None
    exact: bool

    def each(self, change: Callable[[Tensor], Tensor]) -> Augmentation:
        """Returns a copy with `change` applied to `theta` and `shift`."""
        return Augmentation(change(self.theta), None if self.shift is None else change(self.shift), self.exact)

    def __getitem__(self, part: slice) -> Augmentation:
        return self.each(lambda tensor: tensor[part])


def sample_augmentation(
    batch: int, stored: int, side: int, config: TrainConfig, generator: torch.Generator
) -> Augmentation:
    """Draws random views for a batch of images.

    batch: B, the number of images in all processes together. stored, side: P and S, in pixels. config: the kinds and
    sizes of changes.
    generator: of random numbers, on the CPU. Views are drawn on the CPU for the whole batch, so that they do not depend
    on the device or the number of processes.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, generator=generator) * (high - low) + low

    if config.patches == "scaled":
        area, ratio = uniform(config.smallest_patch, 1), torch.exp(uniform(-math.log(4 / 3), math.log(4 / 3)))
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        x, y = (1 - width) * uniform(-1, 1), (1 - height) * uniform(-1, 1)
    else:  # a square that starts at a whole pixel
        room = stored - side
        width = height = torch.full((batch,), side / stored)
        x, y = ((torch.rand(batch, generator=generator) * (room + 1)).floor() * 2 - room for _ in range(2))
        x, y = x / stored, y / stored
    if config.reflections:
        width = torch.where(uniform(-1, 1) < 0, -width, width)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width, x
    theta[:, 1, 1], theta[:, 1, 2] = height, y
    distorted = bool(config.shift or config.rotation or config.shear or config.zoom)
    if distorted:
        angle = uniform(-1, 1) * math.radians(config.rotation)
        scale = torch.exp(uniform(-1, 1) * math.log1p(config.zoom))
        squeeze = torch.exp(uniform(-1, 1) * math.log1p(config.zoom))
        shear = uniform(-1, 1) * config.shear
        cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
        turn = torch.stack([cosine, -sine, sine, cosine], 1).view(-1, 2, 2)
        lean = torch.stack([squeeze, shear, torch.zeros(batch), 1 / squeeze], 1).view(-1, 2, 2)
        theta[:, :, :2] = theta[:, :, :2] @ turn @ lean
        theta[:, :, 2] += torch.stack([uniform(-1, 1), uniform(-1, 1)], 1) * 2 * config.shift
    shift = torch.randn(batch, 3, generator=generator) * config.colour if config.colour else None
    return Augmentation(theta, shift, config.patches == "fixed" and not distorted)


def apply_augmentation(
    views: Augmentation,
    pixels: Tensor,
    side: int,
    colour: ColourStats,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Cuts the views out of the images: (B, P, P, 3) uint8 -> (B, 3, S, S) float32, normalised by `colour`.

    memory_format: how the result is stored.
    """
    device, stored = pixels.device, pixels.shape[1]
    theta = views.theta.to(device)
    if views.exact:  # indexing is faster than interpolation and keeps the pixel values
        rows = ((theta[:, 1, 2] + 1) * stored - side).div(2).round().long()
        columns = ((theta[:, 0, 2] + 1) * stored - side).div(2).round().long()
        steps = torch.arange(side, device=device)
        flipped = torch.where(theta[:, 0, 0, None] < 0, steps.flip(0)[None], steps[None])
        i, j = rows[:, None] + steps, columns[:, None] + flipped
        which = torch.arange(len(pixels), device=device)[:, None, None]
        x = pixels[which, i[:, :, None], j[:, None, :]].permute(0, 3, 1, 2).float()
    else:
        source = pixels.permute(0, 3, 1, 2).float()
        x = F.grid_sample(source, _grid(theta, side), padding_mode="border", align_corners=False)
    scale, offset = 1 / colour.std, -colour.mean[None]
    if views.shift is not None:
        offset = offset + views.shift.to(device) @ colour.axes.T
    x = torch.addcmul((offset * scale)[:, :, None, None], x, scale[:, None, None])
    return x.contiguous(memory_format=memory_format)


def _grid(theta: Tensor, side: int) -> Tensor:
    """Returns, for each pixel of the views, its position in the stored image: (B, S, S, 2), from -1 to 1.

    theta: as in `Augmentation`.
    Computes the same as `F.affine_grid`, but without a matrix product, which TF32 would round to a tenth of a pixel.
    """
    centres = (torch.arange(side, device=theta.device) * 2 + 1) / side - 1
    x, y = centres[None, None, :, None], centres[None, :, None, None]
    along, down, origin = (theta[:, None, None, :, number] for number in range(3))
    return x * along + y * down + origin


def centre_pixels(pixels: Tensor, side: int) -> Tensor:
    """Cuts out the centre patches, as at inference: (B, P, P, 3) uint8 -> (B, S, S, 3) uint8.

    If the stored images are smaller than the patches (P < S), a square of side 7/8 P is cut out of each image's centre
    and enlarged to S pixels.
    """
    stored = pixels.shape[1]
    cut = side if stored >= side else round(stored * 7 / 8)
    start = (stored - cut) // 2
    patch = pixels[:, start : start + cut, start : start + cut]
    if cut == side:
        return patch
    channels_first = patch.permute(0, 3, 1, 2).float()
    larger = F.interpolate(channels_first, (side, side), mode="bicubic", align_corners=False)
    return larger.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def centre(pixels: Tensor, side: int, colour: ColourStats) -> Tensor:
    """Cuts out the centre patches and normalises them: (B, P, P, 3) uint8 -> (B, 3, S, S) float32; P may be below S."""
    return normalise(centre_pixels(pixels, side).permute(0, 3, 1, 2).float(), colour)


def normalise(x: Tensor, colour: ColourStats) -> Tensor:
    """Normalises pixels on the scale 0 to 255: subtracts the mean and divides by the standard deviation.

    x: (B, 3, S, S). The result has the same shape and is stored with channels last.
    """
    x = (x - colour.mean[:, None, None]) / colour.std[:, None, None]
    return x.contiguous(memory_format=torch.channels_last)
