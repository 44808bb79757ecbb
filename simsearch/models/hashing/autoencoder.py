"""Trains a deep autoencoder that gives binary codes. Its layers are pre-trained one by one, as a deep belief network.

First, each layer is trained as a restricted Boltzmann machine on the outputs of the layer below, by contrastive
divergence with one step (Hinton, Osindero, Teh 2006; Hinton & Salakhutdinov: "Reducing the dimensionality of data with
neural networks", Science 2006). The visible units of the first machine are Gaussian with variance 1; those of the other
machines are binary. Then the layers become the encoder of an autoencoder and, in reverse order, its decoder; both are
fine-tuned by backpropagation. The code is rounded to 0 and 1 in the forward pass only (Krizhevsky & Hinton, ESANN
2011). An optional second loss makes distances between codes resemble distances between features: see `_distance_loss`.

Shape letters: n images of the sample, B images of a batch, D dimension of the features, d_in inputs and d_out outputs
of a layer, h activations of a layer.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from simsearch.common.progress import Progress
from simsearch.errors import SimsearchError
from simsearch.models.hashing.encoder import HashEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class HashConfig:
    """The settings of a training.

    bits: the length of a code. hidden: the widths of the layers before the code layer.
    """

    bits: int = 256
    hidden: tuple[int, ...] = (1024, 512)
    pretrain_epochs: int = 3  # 0 omits pre-training: fine-tuning starts from random weights
    epochs: int = 5
    batch: int = 128
    rbm_rate: float = 0.05  # learning rate of binary units
    gaussian_rate: float = 0.8  # learning rate of Gaussian units times the data's largest variance; 4 diverged
    momentum: float = 0.9
    decay: float = 2e-4  # weight decay, as in Hinton's practical guide to training RBMs
    rate: float = 1e-3  # learning rate of Adam in fine-tuning, falling to 0 along a cosine
    similarity: float = 0.0  # weight of the loss that preserves distances
    seed: int = 0


class Layer(NamedTuple):
    """One layer of the autoencoder.

    weight: (d_in, d_out). up: (d_out,), the biases of its outputs (hidden units).
    down: (d_in,), the biases of its inputs (visible units), for computing inputs from outputs.
    """

    weight: Tensor
    up: Tensor
    down: Tensor


def train(
    sample: NDArray[np.floating], config: HashConfig, progress: Progress = lambda done, total: None
) -> HashEncoder:
    """Trains an encoder of binary codes on a sample of features (n, D).

    progress: called after each batch with the number of images processed so far and the expected total. An image counts
    once for each epoch.
    Raises SimsearchError if the training diverges.
    """
    start = time.monotonic()
    x = torch.from_numpy(np.asarray(sample, np.float32))
    mean = x.mean(0)
    # One factor for all dimensions, so that distances keep their proportions.
    scale = 1 / max(float((x - mean).pow(2).mean().sqrt()), 1e-6)
    x = (x - mean) * scale
    sizes = (x.shape[1], *config.hidden, config.bits)
    total = images(config, len(x))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    with torch.random.fork_rng(devices=[]), _fast_products():
        torch.manual_seed(config.seed)
        layers = [_random_layer(a, b) for a, b in itertools.pairwise(sizes)]
        layers = _pretrain(x, layers, config, advance) if config.pretrain_epochs else _scale_layers(x[:2048], layers)
        layers, loss = _fine_tune(x, layers, config, advance)
    facts = {**asdict(config), "images": len(x), "loss": loss, "seconds": round(time.monotonic() - start, 1)}
    return HashEncoder(
        mean.numpy(),
        scale,
        tuple(layer.weight.numpy() for layer in layers),
        tuple(layer.up.numpy() for layer in layers),
        facts,
    )


def images(config: HashConfig, count: int) -> int:
    """Returns the number of images processed in all epochs of a training on `count` images."""
    return (config.pretrain_epochs * (len(config.hidden) + 1) + config.epochs) * count


def _fast_products() -> AbstractContextManager[object]:
    """Returns a context in which torch multiplies matrices in bfloat16, if the processor has instructions for that."""
    supported = (getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    # Without the cache of converted weights, since the weights change.
    return torch.autocast("cpu", torch.bfloat16, enabled=any(supported), cache_enabled=False)


def _random_layer(visible: int, hidden: int) -> Layer:
    """Returns a layer with Gaussian weights of standard deviation 1 / sqrt(visible), and zero biases."""
    weight = torch.randn(visible, hidden) * (1 / visible**0.5)
    return Layer(weight, torch.zeros(hidden), torch.zeros(visible))


def _batches(count: int, size: int) -> Iterator[Tensor]:
    """Yields the row numbers from 0 to `count` - 1 in random order, in batches of `size`.

    A last batch of less than half this size is left out, unless it is the only batch.
    """
    order = torch.randperm(count)
    for start in range(0, count, size):
        part = order[start : start + size]
        if 2 * len(part) >= min(size, count):
            yield part


def _scale_layers(x: Tensor, layers: Sequence[Layer]) -> list[Layer]:
    """Adjusts random layers so that the weighted sum of each unit has mean 0 and standard deviation 1 over x (n, D).

    The weights are scaled, as by Mishkin & Matas (ICLR 2016), and the biases are shifted. Otherwise most bits would be
    the same for all images: activations are positive, so a unit's sum would have the same sign for most images.
    """
    scaled = []
    for weight, up, down in layers:
        sums = x @ weight
        std = sums.std(0).clamp(min=1e-6)
        scaled.append(Layer(weight / std, up - sums.mean(0) / std, down))
        x = torch.sigmoid(x @ scaled[-1].weight + scaled[-1].up)
    return scaled


MAX_WEIGHT = 1e3
"""A layer has diverged if the absolute value of one of its weights reaches this limit."""


def _pretrain(x: Tensor, layers: Sequence[Layer], config: HashConfig, advance: Callable[[int], None]) -> list[Layer]:
    """Trains each layer as a restricted Boltzmann machine on the output probabilities of the layer below.

    x: (n, D), the inputs of the first layer. advance: called with the number of images of each batch.
    Raises SimsearchError if a layer diverges.
    """
    pretrained = []
    for number, layer in enumerate(layers):
        rate = _gaussian_rate(x, config) if number == 0 else None
        while (learned := _train_rbm(x, layer, config, rate, advance)) is None:
            if rate is None or rate < 1e-4:
                raise SimsearchError("the training of codes diverges on these features", hint="tune without codes")
            rate /= 4  # it is too high for whitened features, for example: their few dimensions have equal variance
        pretrained.append(learned)
        x = torch.cat([torch.sigmoid(part @ learned.weight + learned.up) for part in torch.split(x, 2048)])
    return pretrained


def _train_rbm(
    x: Tensor, layer: Layer, config: HashConfig, rate: float | None, advance: Callable[[int], None]
) -> Layer | None:
    """Trains one layer as a restricted Boltzmann machine on x (n, d_in); returns None if it diverges.

    rate: the learning rate if the visible units are Gaussian; None if they are binary.
    """
    machine = _BoltzmannMachine(Layer(*(part.clone() for part in layer)), config, rate)
    for epoch in range(config.pretrain_epochs):
        machine.momentum = 0.5 if epoch == 0 else config.momentum
        for part in _batches(len(x), config.batch):
            if not machine.step(x[part]):
                return None
            advance(len(part))
    return machine.layer if bool(machine.layer.weight.abs().max() < MAX_WEIGHT) else None


def _gaussian_rate(x: Tensor, config: HashConfig) -> float:
    """Returns the learning rate for Gaussian units on centred data x (n, D).

    It is `config.gaussian_rate`, divided by the largest variance of the data along any direction, but at most 0.02.
    Power iteration finds that variance.
    """
    direction = torch.ones(x.shape[1])
    variance = torch.ones(())
    for _ in range(10):
        direction = x.T @ (x @ direction) / len(x)
        variance = direction.norm().clamp(min=1e-6)
        direction = direction / variance
    return min(0.02, config.gaussian_rate / float(variance))


class _BoltzmannMachine:
    """A restricted Boltzmann machine, trained by one step of contrastive divergence with momentum.

    gaussian: the learning rate if the visible units are Gaussian; None if they are binary.
    """

    def __init__(self, layer: Layer, config: HashConfig, gaussian: float | None = None) -> None:
        self.layer, self.config, self.gaussian = layer, config, gaussian
        self.momentum = config.momentum
        rate = config.rbm_rate if gaussian is None else gaussian
        self._optimizer = torch.optim.SGD(list(layer), rate, momentum=config.momentum, fused=True)

    @torch.no_grad()
    def step(self, data: Tensor) -> bool:
        """Learns from one batch of data (B, d_in); returns false if the weights have diverged.

        data: for Gaussian units, of mean 0 and variance about 1; for binary units, probabilities.
        """
        weight, up, down = self.layer
        h = torch.sigmoid(data @ weight + up)  # (B, d_out)
        if not torch.isfinite(h).all():
            return False
        states = torch.bernoulli(h)
        visible = states @ weight.T + down
        if self.gaussian is None:
            visible = torch.sigmoid(visible)
        hidden = torch.sigmoid(visible @ weight + up)
        # <v h> of the data minus <v h> of the reconstruction, in one product, so that they are not rounded separately
        agreement = torch.cat([data, -visible]).T @ torch.cat([h, hidden])  # (d_in, d_out)
        weight.grad = self.config.decay * weight - agreement / len(data)
        up.grad, down.grad = (hidden - h).mean(0), (visible - data).mean(0)
        self._optimizer.param_groups[0]["momentum"] = self.momentum
        self._optimizer.step()
        return True


class _Rounded(torch.autograd.Function):
    """Rounds probabilities to 0 or 1; the gradient passes unchanged (straight-through estimator)."""

    @staticmethod
    def forward(_: object, probability: Tensor) -> Tensor:
        return (probability > 0.5).to(probability.dtype)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return gradient


def _fine_tune(
    x: Tensor, layers: Sequence[Layer], config: HashConfig, advance: Callable[[int], None]
) -> tuple[list[Layer], float]:
    """Fine-tunes encoder and decoder together on x (n, D).

    Returns the layers of the encoder, and the mean squared error of the reconstruction in the last epoch.
    advance: called with the number of images of each batch.
    """
    ups = [[layer.weight.clone(), layer.up.clone()] for layer in layers]
    downs = [[layer.weight.T.clone(), layer.down.clone()] for layer in reversed(layers)]
    parameters = [tensor.requires_grad_() for pair in (*ups, *downs) for tensor in pair]
    optimizer = torch.optim.Adam(parameters, config.rate, fused=True)
    steps = max(1, config.epochs * -(-len(x) // config.batch))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = 0.0
    for _ in range(config.epochs):
        errors = []
        for part in _batches(len(x), config.batch):
            data = x[part]
            h = data
            for weight, bias in ups:
                h = torch.sigmoid(h @ weight + bias)
            code = _Rounded.apply(h)
            output = code
            for number, (weight, bias) in enumerate(downs):
                output = output @ weight + bias
                if number < len(downs) - 1:
                    output = torch.sigmoid(output)
            error = F.mse_loss(output, data)
            total = error
            if config.similarity:
                total = error + config.similarity * _distance_loss(data, code)
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            errors.append(float(error.detach()))
            advance(len(part))
        loss = float(np.mean(errors))
    return [Layer(w.detach(), b.detach(), torch.zeros(0)) for w, b in ups], loss


def _distance_loss(data: Tensor, code: Tensor) -> Tensor:
    """Returns a loss, a scalar, for differences between distances of data (B, D) and distances of codes (B, bits).

    Both kinds of distances are divided by their mean. The loss is the weighted mean of the squared differences over all
    pairs of a batch; pairs that are near in the data have more weight.
    """
    target = torch.cdist(data, data)
    target = target / target.mean()
    signs = 2 * code - 1
    hamming = (1 - signs @ signs.T / code.shape[1]) / 2  # (B, B), from 0 to 1
    found = hamming / hamming.mean().detach().clamp(min=1e-3)
    weight = torch.exp(-2 * target)
    return (weight * (found - target).pow(2)).sum() / weight.sum()
