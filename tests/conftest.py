"""Fixtures of several test modules: a model that is quick and can be checked by hand, pictures, and tiny weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from simsearch.images.preprocessing import Preprocessing
from tests.helpers.models import Colours
from tests.helpers.pictures import CLASSES, EACH, draw

if TYPE_CHECKING:
    from tests.helpers.milvus_server import Server


@pytest.fixture
def colours() -> Colours:
    return Colours()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 different pictures in a folder of four classes: photos/amber/0.png to photos/rose/5.png."""
    folder = tmp_path / "photos"
    for number, name in enumerate(CLASSES):
        for each in range(EACH):
            draw(folder / name / f"{each}.png", EACH * number + each)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what tests derive out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMSEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("SIMSEARCH_INDEX", raising=False)
        yield


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Milvus server, for the tests that `scripts/test-cluster` runs."""
    from tests.helpers.milvus_server import Server

    server = Server(tmp_path_factory.mktemp("milvus"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small random AlexNet, which the command line can use: 63 x 63 pixels, 32 features."""
    import torch

    from simsearch.models.networks.alexnet import AlexNet
    from simsearch.models.networks.configs import AlexNetConfig
    from simsearch.models.weights import ModelCard, write

    arguments = {"num_classes": 5, "image_size": 63, "channels": (8, 16, 16, 16, 16), "hidden": 32}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = AlexNet(AlexNetConfig(**arguments))  # type: ignore[arg-type]
        network.initialise(2**0.5)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    write(path, ModelCard("alexnet", arguments, Preprocessing(72, 63), tuple("abcde")), tensors, {})
    return path
