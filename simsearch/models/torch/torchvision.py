"""torchvision's networks with their official weights, as feature extractors: everything but the last linear layer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import UsageError
from simsearch.images.preprocessing import Preprocessing
from simsearch.models.torch.runtime import TorchRunner

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn


class TorchvisionModel:
    """`torchvision/<name>`: penultimate features, with the preprocessing that torchvision publishes for the weights.

    The weights come through torchvision's own loader, which downloads them once. Runs in torch on every device.
    Raises UsageError for a name that torchvision does not know or that has no classifier to cut off, and where the
    weights cannot be fetched.
    """

    distances: tuple[float, ...] = ()

    def __init__(self, name: str, device: str) -> None:
        import torchvision

        short = name.removeprefix("torchvision/")
        try:
            choice = torchvision.models.get_model_weights(short).DEFAULT
        except (ValueError, AttributeError):
            hint = "see torchvision.models.list_models(), for example torchvision/alexnet or torchvision/resnet50"
            raise UsageError(f"torchvision has no image classifier called {short!r}", hint=hint) from None
        try:
            network = torchvision.models.get_model(short, weights=choice)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a broken download is a RuntimeError
            hint = f"the file is {choice.url}; put it into torch's hub cache by hand where there is no network"
            raise UsageError(f"the weights of {name} cannot be fetched: {error}", hint=hint) from error
        self.name = name
        self.weights_sha256 = _digest(network)
        self.dimension = cut_classifier(network)
        self.recipe = recipe_of(choice.transforms())
        self._runner = TorchRunner(self.recipe, device)
        self.lanes = self._runner.lanes
        self._network, self.engine = self._runner.fastest(self._runner.placed(network), lambda network: network)
        self.decoder = self._runner.decoder()

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 -> (B, D) float32, what the network's last linear layer reads."""
        return self._runner.run(self._network, pixels)


def cut_classifier(network: nn.Module) -> int:
    """Replaces the last linear layer by the identity, in place, and returns the width D of what it read."""
    from torch import nn

    linear = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UsageError(f"{type(network).__name__} ends in no linear layer, so it has no penultimate features")
    name, layer = linear[-1]
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return layer.in_features


def recipe_of(transforms: Any) -> Preprocessing:
    """torchvision's published preprocessing as a Recipe, on the 0 to 255 scale."""
    scale = [tuple(255.0 * value for value in values) for values in (transforms.mean, transforms.std)]
    return Preprocessing(
        resize=max(transforms.resize_size[0], transforms.crop_size[0]),
        crop=transforms.crop_size[0],
        mean=scale[0],
        deviation=scale[1],
        interpolation=transforms.interpolation.value,
    )


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
