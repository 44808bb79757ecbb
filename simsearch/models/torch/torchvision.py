"""Networks of torchvision with their official weights, as feature extractors without the last linear layer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import UsageError
from simsearch.images.preprocessing import Preprocessing
from simsearch.models.onnx.exported import no_such_network
from simsearch.models.torch.runtime import TorchRunner

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn


class TorchvisionModel:
    """The model `torchvision/<name>`, with the preprocessing that torchvision publishes for the network.

    Its features are the input of the last linear layer. torchvision downloads the weights once. On the CPU,
    `simsearch.models.onnx.exported` is used instead if possible.
    network: the network without its last linear layer, in float32.
    Raises UsageError for an unknown name, for a network without a linear layer, and if the download fails.
    """

    distances: tuple[float, ...] = ()

    def __init__(self, name: str, device: str) -> None:
        import torchvision

        short_name = name.removeprefix("torchvision/")
        try:
            entry = torchvision.models.get_model_weights(short_name).DEFAULT
        except (ValueError, AttributeError):
            raise no_such_network(short_name) from None
        try:
            network = torchvision.models.get_model(short_name, weights=entry)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a broken download is a RuntimeError
            hint = f"without an internet connection, put the file {entry.url} into torch's hub cache"
            raise UsageError(f"the weights of {name} cannot be fetched: {error}", hint=hint) from error
        self.name = name
        self.weights_sha256 = _digest(network)
        self.dimension = cut_classifier(network)
        self.recipe = recipe_of(entry.transforms())
        self._runner = TorchRunner(self.recipe, device)
        self.lanes = self._runner.lanes
        self.network = self._runner.prepare(network)
        self._fastest, self.engine = self._runner.fastest(self.network, lambda network: network)
        self.decoder = self._runner.decoder()

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the features of pixels (B, S, S, 3) uint8: the input of the last linear layer, (B, D) float32."""
        return self._runner.run(self._fastest, pixels)


def cut_classifier(network: nn.Module) -> int:
    """Replaces the last linear layer by the identity, in place, and returns the width D of its input.

    Raises UsageError if the network has no linear layer.
    """
    from torch import nn

    linear = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UsageError(f"{type(network).__name__} has no linear layer, whose input would be the features")
    name, layer = linear[-1]
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return layer.in_features


def recipe_of(transforms: Any) -> Preprocessing:
    """Converts torchvision's preprocessing, for pixels from 0 to 1, into `Preprocessing`, for pixels from 0 to 255."""
    scale = [tuple(255.0 * value for value in values) for values in (transforms.mean, transforms.std)]
    return Preprocessing(
        resize=max(transforms.resize_size[0], transforms.crop_size[0]),
        crop=transforms.crop_size[0],
        mean=scale[0],
        std=scale[1],
        interpolation=transforms.interpolation.value,
    )


def _digest(network: nn.Module) -> str:
    """Returns the SHA-256 of the names and values of all tensors of a network, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
