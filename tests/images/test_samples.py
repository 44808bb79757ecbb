"""The sample set: the same for the same seed, laid out by kind, and kinds that mean something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simsearch.errors import UsageError
from simsearch.images.samples import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture of each kind and a second of the first two."""
    directory = tmp_path_factory.mktemp("sample") / "new"
    assert generate.generate(directory, count=len(generate.KINDS) + 2, seed=5) == len(generate.KINDS) + 2
    return directory


def test_same_arguments_give_same_picture() -> None:
    first = [generate.draw(kind, 2, seed=7).tobytes() for kind in ("cat", "forest")]
    again = [generate.draw(kind, 2, seed=7).tobytes() for kind in ("forest", "cat")]
    assert first == again[::-1]


def test_number_seed_and_kind_change_picture() -> None:
    pictures = [
        generate.draw("fish", 0),
        generate.draw("fish", 1),
        generate.draw("fish", 0, seed=1),
        generate.draw("dots", 0),
    ]
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_thirty_kinds_each_in_its_folder(folder: Path) -> None:
    assert len(generate.KINDS) >= 30
    assert {path.name for path in folder.iterdir()} == set(generate.KINDS)
    assert all((folder / kind / f"{kind}-000.jpg").is_file() for kind in generate.KINDS)


def test_count_is_kept_in_turn_over_the_kinds(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == len(generate.KINDS) + 2
    seconds = sorted(path.name for path in files if path.stem.endswith("-001"))
    assert seconds == [f"{kind}-001.jpg" for kind in list(generate.KINDS)[:2]]


def test_files_are_the_pictures_that_draw_gives(folder: Path) -> None:
    with Image.open(folder / "apple" / "apple-000.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 192))
        apart = np.abs(np.asarray(image, float) - np.asarray(generate.draw("apple", 0, seed=5), float)).mean()
    assert apart < 8  # JPEG's own loss


@pytest.mark.parametrize("size", [(256, 192), (192, 256), (64, 64), (300, 101)])
def test_any_size_and_shape(size: tuple[int, int]) -> None:
    for kind in ("skyline", "planet", "tartan", "sailboat"):
        picture = generate.draw(kind, 0, size=size)
        assert picture.size == size
        assert picture.mode == "RGB"


def test_some_pictures_stand_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "KINDS", {"dots": generate.KINDS["dots"]})
    generate.generate(tmp_path, count=4)
    sizes = []
    for path in sorted((tmp_path / "dots").iterdir()):
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes == [(256, 192)] * 3 + [(192, 256)]


def test_progress_is_told_after_each_picture(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    generate.generate(tmp_path / "a" / "b", count=3, progress=lambda done, count: calls.append((done, count)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_directory_with_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an empty directory") as caught:
        generate.generate(tmp_path, count=1)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError):
        generate.generate(tmp_path / "mine.txt", count=1)


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match=str(count)):
        generate.generate(tmp_path / "new", count=count)
    assert not (tmp_path / "new").exists()


def test_bad_arguments_name_the_value() -> None:
    with pytest.raises(UsageError, match="dragon"):
        generate.draw("dragon", 0)
    with pytest.raises(UsageError, match="-3"):
        generate.draw("cat", 0, seed=-3)
    with pytest.raises(UsageError, match="4 x 4"):
        generate.draw("cat", 0, size=(4, 4))


def test_pictures_of_a_kind_have_similar_pixels() -> None:
    """Leave-one-out P@6 of 16 x 16 pixels over 8 pictures of each kind, at least three times that of chance."""
    each, k = 8, 6
    labels = np.repeat(np.arange(len(generate.KINDS)), each)
    rows = [
        np.asarray(
            generate.draw(kind, number, size=(64, 48)).resize((16, 16), Image.Resampling.BOX), np.float32
        ).ravel()
        for kind in generate.KINDS
        for number in range(each)
    ]
    features = np.stack(rows)  # (N, 768)
    distances = ((features[:, None] - features[None]) ** 2).sum(axis=-1)  # (N, N)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, :k]
    precision = (labels[nearest] == labels[:, None]).mean()
    assert precision >= 3 * (each - 1) / (len(labels) - 1)
