"""Writes a trained network to a weights file, optionally compressed; reads the file back and measures its accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simsearch.evaluation.metrics import LabelledFeatures, retrieval
from simsearch.models import weights
from simsearch.models.networks.build import build_network
from simsearch.models.onnx import int8_calibration
from simsearch.models.registry import ARCHITECTURES
from simsearch.search import similarity
from simsearch.training import augment
from simsearch.training.augment import ColourStats
from simsearch.training.compression import BITS, compressed
from simsearch.training.loop import accuracy

if TYPE_CHECKING:
    from simsearch.models.networks.base import Network
    from simsearch.models.training_record import TrainingRecord
    from simsearch.training.data import TrainingSet


@torch.no_grad()
def publish(
    network: Network,
    card: weights.ModelCard,
    output: Path,
    checks: Mapping[str, TrainingSet],
    colour: ColourStats,
    *,
    compress: bool,
    trained_on: TrainingSet | None = None,
    record: TrainingRecord | None = None,
) -> dict[str, dict[str, float]]:
    """Writes the weights file; returns, for the name of each image set, a dict from names of metrics to their values.

    The metrics are measured on the network as read back from the file, and stored in the file too.

    card: the description of the model for the file. checks: the image sets to measure on; the keys are their names.
    compress: True to share and Huffman-code the weights (`models.deep_compression`).
    trained_on: the training images. For AlexNet, the ranges of activations that int8 needs are measured on some of
    them.
    record: the pictures that were trained on and those held out, to store in the file.
    """
    network = network.cpu().eval()
    tensors = {name: value.detach().float().numpy() for name, value in network.state_dict().items()}
    bits = {name: BITS[name.split(".")[0]] for name in tensors if compress and compressed(name)}
    weights.write(output, card, tensors, bits, record)
    decoded = weights.read_tensors(output)
    if card.trained_at:
        network = build_network(card.architecture, ARCHITECTURES[card.architecture](**card.arguments)).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in decoded.items()})
    metrics: dict[str, dict[str, float]] = {}
    distances: tuple[float, ...] = card.distances
    for number, (name, data) in enumerate(checks.items()):
        scores = accuracy(network, data, colour)
        features = features_of(network, data.select(sample_rows(len(data))), colour)
        labels = data.labels[sample_rows(len(data))]
        found = retrieval(LabelledFeatures(features, labels))
        metrics[name] = dict(scores)
        if np.bincount(labels).mean() > 6:  # with fewer, the six nearest cannot all have the right label
            metrics[name] |= {"P@6": float(found["P@6"].mean()), "mAP": float(np.nanmean(found["AP"]))}
        if not number:
            distances = similarity.quantiles(features[:512].astype(np.float16))
    total = sum(value.size for value in tensors.values())
    kept = sum(np.count_nonzero(value) for value in tensors.values())
    shown = {name: ", ".join(format_metric(*pair) for pair in scores.items()) for name, scores in metrics.items()}
    training = {**card.training, **({"weights kept": f"{kept / total:.1%} of {total:,}"} if compress else {})}
    card = replace(card, metrics={**shown, **card.metrics}, distances=distances, training=training)
    weights.write(output, card, tensors, bits, record)
    if trained_on is not None and card.architecture == "alexnet" and len(trained_on) >= int8_calibration.MIN_IMAGES:
        some = trained_on.select(sample_rows(len(trained_on), int8_calibration.MAX_IMAGES))
        int8_calibration.calibrate_file(output, _centres(some, card.recipe.crop))
    return metrics


def _centres(data: TrainingSet, side: int) -> np.ndarray[Any, Any]:
    """Returns the centre patches of all images of a set: (N, side, side, 3) uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(data.pixels[:]))
    return np.ascontiguousarray(augment.centre_pixels(pixels, side).numpy())


@torch.no_grad()
def features_of(
    network: Network, data: TrainingSet, colour: ColourStats, batch_size: int = 256
) -> np.ndarray[Any, Any]:
    """Returns the features of the centre patches of all images of a set: (N, D) float32."""
    network.eval()
    device = next(network.parameters()).device
    colour, rows = colour.to(device), []
    for start in range(0, len(data), batch_size):
        pixels = torch.from_numpy(np.ascontiguousarray(data.pixels[start : start + batch_size])).to(device)
        rows.append(network.features(augment.centre(pixels, network.config.image_size, colour)).float().cpu().numpy())
    return np.concatenate(rows)


def sample_rows(count: int, most: int = 4096) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns up to `most` row numbers between 0 and `count` - 1, evenly spaced and ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def format_metric(name: str, value: float) -> str:
    """Returns a metric as text to show: "top-1 56.2%", "mAP 0.412"."""
    shown = {"top1": "top-1", "top5": "top-5"}.get(name)
    return f"{shown} {value:.1%}" if shown else f"{name} {value:.3f}"
