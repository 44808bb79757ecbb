"""Data sets of torchvision as sources."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import simsearch
from simsearch.errors import ImageError, UsageError
from simsearch.images import decode
from simsearch.images.sources import resolve
from simsearch.indexing import options
from tests.helpers.models import CellModel
from tests.helpers.sources import paths, png, put

# -- data sets of torchvision


class Swatches:
    """A stand-in for a data set of torchvision: four pictures of two classes, and others for testing."""

    classes = ("amber", ("blue", "azure"))

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        if not download and not os.path.exists(os.path.join(root, "data")):
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        Path(root, "data").touch()
        self.train, self.folder = train, root

    def __len__(self) -> int:
        return 4 if self.train else 2

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        image = Image.open(io.BytesIO(png(number if self.train else 100 + number)))
        return image, number % 2


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Puts a class into the place of torchvision's CIFAR10."""
    import torchvision

    monkeypatch.setenv("SIMSEARCH_DATASETS", str(tmp_path / "datasets"))
    return lambda kind: monkeypatch.setattr(torchvision.datasets, "CIFAR10", kind)


def test_data_set_of_torchvision_is_a_source(
    dataset: Callable[[type], None], tmp_path: Path, build: Callable[..., options.Summary]
) -> None:
    dataset(Swatches)
    listing = resolve.resolve("torchvision/CIFAR10").listing(["3"])
    assert [(entry.path, entry.label) for entry in listing.entries] == [("0", "amber"), ("1", "blue"), ("2", "amber")]
    assert build(Path("torchvision/CIFAR10"), Path("torchvision/CIFAR10:test")).items == 6
    assert (tmp_path / "datasets/CIFAR10/data").exists()
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        (match,) = engine.search(png(101), k=1)
    assert (match.path, match.label, match.distance) == ("torchvision/CIFAR10:test!/1", "blue", 0)
    assert (
        decode.decode_image(resolve.read_path(match.path)).image.tobytes()
        == decode.decode_image(png(101)).image.tobytes()
    )
    assert build(Path("torchvision/CIFAR10")).unchanged == 4


def test_real_data_set_is_read_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSEARCH_DATASETS", str(tmp_path))
    raw = tmp_path / "MNIST/MNIST/raw"
    raw.mkdir(parents=True)
    digits = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in digits.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + digits.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x0c" + bytes(range(10)) + b"\0\1")
    source = resolve.resolve("torchvision/MNIST:test")
    listing = source.listing()
    assert paths(listing) == [f"{number:02d}" for number in range(12)]
    assert (listing.entries[3].label, listing.entries[11].label) == ("3 - three", "1 - one")
    decoded = decode.decode_image(source.read("11")).image
    assert (np.asarray(decoded) == digits[11, ..., None]).all()
    with pytest.raises(ImageError, match="the data set has no image '12'"):
        source.read("12")
    with pytest.raises(ImageError, match="the data set has no image 'x'"):
        source.read("x")


def test_unknown_data_set_has_a_hint() -> None:
    with pytest.raises(UsageError, match="torchvision has no data set 'cifar10'") as caught:
        resolve.resolve("torchvision/cifar10").listing()
    assert caught.value.hint == "did you mean torchvision/CIFAR10?"
    with pytest.raises(UsageError, match="torchvision has no data set 'Nothing'") as caught:
        resolve.resolve("torchvision/Nothing").listing()
    assert caught.value.hint == "see torchvision.datasets for the names"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR10:val", "the data set CIFAR10 has no split 'val'"),
        ("STL10:val", "Unknown value 'val' for argument split"),
        ("Imagenette:test", "Unknown value 'test' for argument split"),
    ],
)
def test_unknown_split_is_refused(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSEARCH_DATASETS", str(tmp_path))
    with pytest.raises(UsageError, match=message) as caught:
        resolve.resolve(f"torchvision/{name}").listing()
    assert "network" not in str(caught.value.hint)


def test_missing_data_set_says_where_files_go(dataset: Callable[[type], None], tmp_path: Path) -> None:
    class Offline(Swatches):
        def __init__(self, root: str, download: bool = False) -> None:
            raise OSError("<urlopen error no network>\nsecond line")

    dataset(Offline)
    with pytest.raises(
        UsageError, match=r"(?m)torchvision/CIFAR10 cannot be opened: <urlopen error no network>$"
    ) as caught:
        resolve.resolve("torchvision/CIFAR10").listing()
    assert caught.value.hint == f"without an internet connection, put its files into {tmp_path}/datasets/CIFAR10"


def test_data_set_keeps_its_own_arguments(dataset: Callable[[type], None]) -> None:
    class Handing(Swatches):
        def __init__(self, root: str, **arguments: Any) -> None:
            super().__init__(root, **arguments)

    dataset(Handing)
    assert len(resolve.resolve("torchvision/CIFAR10:test").listing().entries) == 2


@pytest.mark.parametrize("item", [(1, 2, 3), np.zeros((3, 3)), ("text", 0)], ids=["triple", "array", "text"])
def test_data_set_of_something_else_is_refused(dataset: Callable[[type], None], item: Any) -> None:
    class Other(Swatches):
        def __getitem__(self, number: int) -> Any:
            return item

    dataset(Other)
    with pytest.raises(UsageError, match=r"torchvision/CIFAR10 does not hold single images"):
        resolve.resolve("torchvision/CIFAR10").listing()
    with pytest.raises(UsageError, match="FakeData is not read from files"):
        resolve.resolve("torchvision/FakeData").listing()


def test_damaged_data_set_image_is_failure(
    dataset: Callable[[type], None], build: Callable[..., options.Summary]
) -> None:
    class Damaged(Swatches):
        def __getitem__(self, number: int) -> tuple[Any, Any]:
            if number == 1:
                raise OSError("image file is truncated")
            return super().__getitem__(number)

    dataset(Damaged)
    summary = build(Path("torchvision/CIFAR10"))
    assert (summary.items, summary.failed) == (3, 1)
    with pytest.raises(ImageError, match="cannot be read from the data set: image file is truncated"):
        resolve.resolve("torchvision/CIFAR10").read("1")


def test_folder_called_torchvision_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "torchvision/CIFAR10/a.png")
    monkeypatch.chdir(tmp_path)
    assert resolve.resolve("torchvision/CIFAR10").kind == "folder"


def test_data_set_of_files_is_not_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    for label in ("cat", "dog"):
        (tmp_path / "Folders" / label).mkdir(parents=True)
        (tmp_path / "Folders" / label / "0.png").write_bytes(png())

    def never(path: str) -> None:
        raise AssertionError("decoded")

    class Folders(torchvision.datasets.ImageFolder):  # type: ignore[misc]
        def __init__(self, root: str) -> None:
            super().__init__(root, loader=never)

    monkeypatch.setattr(torchvision.datasets, "Folders", Folders, raising=False)
    monkeypatch.setattr(torchvision.datasets, "__all__", (*torchvision.datasets.__all__, "Folders"))
    monkeypatch.setenv("SIMSEARCH_DATASETS", str(tmp_path))
    source = resolve.resolve("torchvision/Folders")
    assert [(entry.path, entry.label, entry.size) for entry in source.listing().entries] == [
        ("0", "cat", len(png())),
        ("1", "dog", len(png())),
    ]
    assert source.read("1") == png()
