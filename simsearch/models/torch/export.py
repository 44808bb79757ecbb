"""Exports networks of torchvision to ONNX (`simsearch.models.onnx.exported` runs them)."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from simsearch.errors import MissingExtraError
from simsearch.models.onnx.exported import FACTS, GRAPH, Facts
from simsearch.models.onnx.session import open_session
from simsearch.models.torch.torchvision import TorchvisionModel
from simsearch.models.trial import lowest_cosine, trial_pixels

if TYPE_CHECKING:
    from simsearch.images.preprocessing import Preprocessing

log = logging.getLogger(__name__)

AGREEMENT = 0.9999
"""ONNX Runtime is used if the cosine between its features and those of torch is at least this."""

_OPERATOR_SET = 17


class _FromPixels(nn.Module):
    """A network preceded by the recipe's normalisation. Input: (B, S, S, 3) uint8. Output: (B, D) float32."""

    def __init__(self, network: nn.Module, recipe: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(recipe.mean))
        self.register_buffer("std", torch.tensor(recipe.std))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = ((pixels.float() - self.get_buffer("mean")) / self.get_buffer("std")).permute(0, 3, 1, 2)
        features: torch.Tensor = self.network(x).flatten(1)
        return features


def export(name: str, folder: Path) -> None:
    """Writes the ONNX graph of a network and its `Facts` into a folder.

    If the network can be used in ONNX Runtime, the field `problem` of the facts is empty. Otherwise, it has the
    reason: the network cannot be exported (then there is no graph), or ONNX Runtime computes other features than torch
    (see AGREEMENT).
    name: `torchvision/NAME`.
    Raises UsageError for an unknown name and if the download fails, and MissingExtraError if the package `onnx` is
    missing.
    """
    model = TorchvisionModel(name, "cpu")
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError(f"running {name} without torch", "onnx")
    log.info("converting %s to ONNX, once", name)
    partial, crc32 = folder / f".{GRAPH}.partial", 0
    try:
        _write(_FromPixels(model.network, model.recipe), model.recipe.crop, partial)
        pixels = trial_pixels(model.recipe.crop)
        found = open_session(partial).run(["features"], {"pixels": pixels})[0]
        cosine = lowest_cosine(model.features(pixels), found)
        problem = "" if cosine >= AGREEMENT else f"the lowest cosine of its features is {cosine:.5f}"
        crc32 = zlib.crc32(partial.read_bytes())
        partial.replace(folder / GRAPH)
    except OSError:
        raise
    except Exception as error:  # torch and onnxruntime raise many types, depending on the network
        problem = f"{type(error).__name__}: {str(error)[:500]}"
    finally:
        partial.unlink(missing_ok=True)
    if problem:
        log.info("%s runs in torch, since it cannot be converted: %s", name, " ".join(problem.split())[:120])
    facts = Facts(model.weights_sha256, model.dimension, model.recipe.to_dict(), crc32, problem)
    unfinished = folder / f".{FACTS}.partial"
    unfinished.write_text(json.dumps(asdict(facts)))
    os.replace(unfinished, folder / FACTS)


def _write(network: nn.Module, side: int, path: Path) -> None:
    """Exports a network as an ONNX file that takes any number of images. side: the side of the images, in pixels."""
    pixels = torch.zeros((2, side, side, 3), dtype=torch.uint8)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the exporter cannot convert the fast path
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network.eval(),
                (pixels,),
                path,
                input_names=["pixels"],
                output_names=["features"],
                dynamic_axes={"pixels": {0: "batch"}, "features": {0: "batch"}},
                opset_version=_OPERATOR_SET,
                dynamo=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
