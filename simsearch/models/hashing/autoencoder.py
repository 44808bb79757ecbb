"""Training binary codes: a deep autoencoder, pre-trained layer by layer as a deep belief network.

Each layer is a restricted Boltzmann machine trained by one step of contrastive divergence on the layer below
(Hinton, Osindero, Teh 2006; Hinton & Salakhutdinov: "Reducing the dimensionality of data with neural networks", Science
2006). The first one has Gaussian visible units of variance 1, the others binary ones. The stack is unrolled into an
autoencoder and fine-tuned by backpropagation; its code layer is rounded to 0 and 1 on the way forward, which the way
back ignores (Krizhevsky & Hinton, ESANN 2011). A second loss, off unless asked for, keeps distances: see `_apart`.

Letters: B images of a batch, D dimension, n layers, h hidden activations.
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

from simsearch.errors import SimsearchError
from simsearch.models.hashing.encoder import HashEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray
from simsearch.common.progress import Progress


@dataclass(frozen=True)
class HashConfig:
    """bits: of the code; hidden: the layers before it. Epochs are passes over the sample."""

    bits: int = 256
    hidden: tuple[int, ...] = (1024, 512)
    pretrain_epochs: int = 3  # 0: start from random weights
    epochs: int = 5
    batch: int = 128
    rbm_rate: float = 0.05  # of binary units
    gaussian_rate: float = 0.8  # over the data's largest variance along any direction; at 4 it was seen to diverge
    momentum: float = 0.9
    decay: float = 2e-4  # Hinton's practical guide
    rate: float = 1e-3  # of Adam, falling to 0 along a cosine
    similarity: float = 0.0  # weight of the loss that keeps distances
    seed: int = 0


class Layer(NamedTuple):
    """weight: (d_in, d_out); up: (d_out,), down: (d_in,), the biases of hidden and of visible units."""

    weight: Tensor
    up: Tensor
    down: Tensor


def train(
    sample: NDArray[np.floating], config: HashConfig, progress: Progress = lambda done, total: None
) -> HashEncoder:
    """Codes learned from a (n, D) sample. progress: images gone through, in all epochs, and their number."""
    start = time.monotonic()
    x = torch.from_numpy(np.asarray(sample, np.float32))
    mean = x.mean(0)
    scale = 1 / max(float((x - mean).pow(2).mean().sqrt()), 1e-6)  # one for all: distances must keep their shape
    x = (x - mean) * scale
    sizes = (x.shape[1], *config.hidden, config.bits)
    total = images(config, len(x))
    done = 0

    def advanced(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    with torch.random.fork_rng(devices=[]), _products():
        torch.manual_seed(config.seed)
        layers = [_fresh(a, b) for a, b in itertools.pairwise(sizes)]
        layers = _pretrained(x, layers, config, advanced) if config.pretrain_epochs else _scaled(x[:2048], layers)
        layers, loss = _tuned(x, layers, config, advanced)
    facts = {**asdict(config), "images": len(x), "loss": loss, "seconds": round(time.monotonic() - start, 1)}
    return HashEncoder(
        mean.numpy(),
        scale,
        tuple(layer.weight.numpy() for layer in layers),
        tuple(layer.up.numpy() for layer in layers),
        facts,
    )


def images(config: HashConfig, count: int) -> int:
    """How many images go through in all epochs of a training on `count`."""
    return (config.pretrain_epochs * (len(config.hidden) + 1) + config.epochs) * count


def _products() -> AbstractContextManager[object]:
    """Matrix products in bfloat16 where the processor has instructions for them, else in float32."""
    able = (getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    return torch.autocast("cpu", torch.bfloat16, enabled=any(able), cache_enabled=False)  # weights change at each step


def _fresh(visible: int, hidden: int) -> Layer:
    weight = torch.randn(visible, hidden) * (1 / visible**0.5)
    return Layer(weight, torch.zeros(hidden), torch.zeros(visible))


def _batches(count: int, size: int) -> Iterator[Tensor]:
    """Places in random order, `size` at a time; the last ones are left out if they are fewer than half of that."""
    order = torch.randperm(count)
    for start in range(0, count, size):
        part = order[start : start + size]
        if 2 * len(part) >= min(size, count):
            yield part


def _scaled(x: Tensor, layers: Sequence[Layer]) -> list[Layer]:
    """Random layers whose units lie around their thresholds: over x, what they sum up has mean 0 and deviation 1.

    In the manner of Mishkin & Matas (ICLR 2016). Sums of activations, which are positive, would leave most bits fixed.
    """
    found = []
    for weight, up, down in layers:
        sums = x @ weight
        deviation = sums.std(0).clamp(min=1e-6)
        found.append(Layer(weight / deviation, up - sums.mean(0) / deviation, down))
        x = torch.sigmoid(x @ found[-1].weight + found[-1].up)
    return found


LARGEST = 1e3

"""A weight beyond this has run away."""


def _pretrained(x: Tensor, layers: Sequence[Layer], config: HashConfig, advanced: Callable[[int], None]) -> list[Layer]:
    """Each layer as a restricted Boltzmann machine over the one below, whose probabilities are its data."""
    found = []
    for number, layer in enumerate(layers):
        rate = _gaussian_rate(x, config) if number == 0 else None
        while (learned := _machine(x, layer, config, rate, advanced)) is None:
            if rate is None or rate < 1e-4:
                raise SimsearchError("the codes' network diverges on these features", hint="tune without --codes")
            rate /= 4  # of whitened features, say, which vary alike in all of a few dimensions
        found.append(learned)
        x = torch.cat([torch.sigmoid(part @ learned.weight + learned.up) for part in torch.split(x, 2048)])
    return found


def _machine(
    x: Tensor, layer: Layer, config: HashConfig, rate: float | None, advanced: Callable[[int], None]
) -> Layer | None:
    """What the layer learns from (n, d_in) data; None if it diverges."""
    machine = _Machine(Layer(*(part.clone() for part in layer)), config, rate)
    for epoch in range(config.pretrain_epochs):
        machine.momentum = 0.5 if epoch == 0 else config.momentum
        for part in _batches(len(x), config.batch):
            if not machine.step(x[part]):
                return None
            advanced(len(part))
    return machine.layer if bool(machine.layer.weight.abs().max() < LARGEST) else None


def _gaussian_rate(x: Tensor, config: HashConfig) -> float:
    """The rate at which Gaussian units learn from centred (n, D) data, by power iteration."""
    direction = torch.ones(x.shape[1])
    variance = torch.ones(())
    for _ in range(10):
        direction = x.T @ (x @ direction) / len(x)
        variance = direction.norm().clamp(min=1e-6)
        direction = direction / variance
    return min(0.02, config.gaussian_rate / float(variance))


class _Machine:
    """A restricted Boltzmann machine that learns by one step of contrastive divergence with momentum.

    gaussian: the rate, if the visible units are Gaussian.
    """

    def __init__(self, layer: Layer, config: HashConfig, gaussian: float | None = None) -> None:
        self.layer, self.config, self.gaussian = layer, config, gaussian
        self.momentum = config.momentum
        rate = config.rbm_rate if gaussian is None else gaussian
        self._optimizer = torch.optim.SGD(list(layer), rate, momentum=config.momentum, fused=True)

    @torch.no_grad()
    def step(self, data: Tensor) -> bool:
        """data: (B, d_in), of mean 0 and variance about 1 for Gaussian units, else probabilities. False: diverged."""
        weight, up, down = self.layer
        h = torch.sigmoid(data @ weight + up)  # (B, d_out)
        if not torch.isfinite(h).all():
            return False
        states = torch.bernoulli(h)
        seen = states @ weight.T + down
        if self.gaussian is None:
            seen = torch.sigmoid(seen)
        again = torch.sigmoid(seen @ weight + up)
        # <v h> of the data less that of what they were turned into, as one product, whose sums are not rounded between
        agreement = torch.cat([data, -seen]).T @ torch.cat([h, again])  # (d_in, d_out)
        weight.grad = self.config.decay * weight - agreement / len(data)
        up.grad, down.grad = (again - h).mean(0), (seen - data).mean(0)
        self._optimizer.param_groups[0]["momentum"] = self.momentum
        self._optimizer.step()
        return True


class _Rounded(torch.autograd.Function):
    """0 or 1 forward, the identity back."""

    @staticmethod
    def forward(_: object, probability: Tensor) -> Tensor:
        return (probability > 0.5).to(probability.dtype)

    @staticmethod
    def backward(_: object, slope: Tensor) -> Tensor:
        return slope


def _tuned(
    x: Tensor, layers: Sequence[Layer], config: HashConfig, advanced: Callable[[int], None]
) -> tuple[list[Layer], float]:
    """The unrolled autoencoder after fine-tuning, and the last epoch's mean squared error of a value."""
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
            seen = code
            for number, (weight, bias) in enumerate(downs):
                seen = seen @ weight + bias
                if number < len(downs) - 1:
                    seen = torch.sigmoid(seen)
            error = F.mse_loss(seen, data)
            whole = error
            if config.similarity:
                whole = error + config.similarity * _apart(data, code)
            optimizer.zero_grad(set_to_none=True)
            whole.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            errors.append(float(error.detach()))
            advanced(len(part))
        loss = float(np.mean(errors))
    return [Layer(w.detach(), b.detach(), torch.zeros(0)) for w, b in ups], loss


def _apart(data: Tensor, code: Tensor) -> Tensor:
    """How badly the codes' distances follow those of the data, over all pairs of a batch."""
    wanted = torch.cdist(data, data)
    wanted = wanted / wanted.mean()
    signs = 2 * code - 1
    hamming = (1 - signs @ signs.T / code.shape[1]) / 2  # (B, B), from 0 to 1
    found = hamming / hamming.mean().detach().clamp(min=1e-3)
    weight = torch.exp(-2 * wanted)
    return (weight * (found - wanted).pow(2)).sum() / weight.sum()
