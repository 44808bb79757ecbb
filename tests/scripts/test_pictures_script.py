"""scripts/reproduce/pictures.py: which photographs are left out, and what is made of the others."""

import csv
import importlib
import io
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simsearch.models import registry
from simsearch.models.training_record import digest_of
from simsearch.training.augment import centre

SCRIPTS = Path(__file__).parents[2] / "scripts" / "reproduce"


@pytest.fixture(scope="module")
def script():
    """The module `pictures` beside which `arrays` is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("pictures")
        for name in ("pictures", "hashes", "arrays", "alexnet", "alexnet_file", "judge"):
            sys.modules.pop(name, None)


def photo(seed, size=(200, 180)):
    """A picture of smooth random colours, as no other seed gives."""
    small = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def shirt(colour):
    """A shirt on white. All colours have one difference hash."""
    picture = Image.new("RGB", (200, 250), "white")
    for box in ((60, 60, 140, 220), (20, 60, 180, 110)):
        picture.paste(colour, box)
    return picture


def encoded(picture, kind="JPEG"):
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def laid_out(script, tmp_path, monkeypatch):
    """A data folder whose validation set has photo 100, a repository with everything that is left out, and one of
    those for choices."""
    data, snapshots, out = tmp_path / "data", tmp_path / "snapshots", tmp_path / "out"
    (data / "imagenette160").mkdir(parents=True)
    with zipfile.ZipFile(data / "imagenette160" / "val.zip", "w") as archive:
        archive.writestr("n1/a.png", encoded(photo(100), "PNG"))
    with zipfile.ZipFile(data / "imagenette160" / "train.zip", "w") as archive:
        for seed in range(60, 100):
            archive.writestr(f"n1/{seed}.png", encoded(photo(seed, (64, 64)), "PNG"))
    files = {
        "one.jpg": encoded(photo(1)),
        "two.png": encoded(photo(2), "PNG"),
        "big.jpg": encoded(photo(3, (800, 640))),
        "one-again.jpg": encoded(photo(1)),
        "one-smaller.jpg": encoded(photo(1, (190, 170))),
        "red.png": encoded(shirt("red"), "BMP"),
        "blue.png": encoded(shirt("blue"), "BMP"),
        "red-again.jpg": encoded(shirt("red").resize((400, 500))),
        "judges.jpg": encoded(photo(100)),
        "listed.jpg": encoded(photo(101)),
        "choice-again.jpg": encoded(photo(50)),
        "small.png": encoded(photo(4, (100, 100)), "PNG"),
        "long.jpg": encoded(photo(5, (700, 130))),
        "flat.png": encoded(Image.effect_noise((200, 200), 2), "BMP"),
        "broken.jpg": b"\xff\xd8" + bytes(3000),
        "notes.txt": b"no picture" * 400,
    }
    for name, contents in (("a/photos", files), ("b/choices", {f"kind/{n}.jpg": encoded(photo(n)) for n in (50, 51)})):
        folder = snapshots / name.replace("/", "+")
        for path, content in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        for command in (
            ["init", "-q"],
            ["add", "."],
            ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
        ):
            subprocess.run(["git", "-C", str(folder), *command], check=True)
    hashes = tmp_path / "hashes.txt"
    hashes.write_text(f"{script.difference_hash(photo(101)) ^ 5:016x}\n")
    table = [
        script.Origin("b/choices", "choice", 0, "", 0, 120),
        script.Origin("a/photos", "train", 2, "", 0, 120),
        script.Origin("imagenette160/train.zip", "train", 3, "", 0, 48),
    ]
    monkeypatch.setattr(script, "origins", lambda: table)
    script.lay_out(data, snapshots, out, hashes, 1, 0)
    return data, snapshots, out, hashes


def rows_of(out):
    with (out / "manifest.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_what_is_left_out(laid_out):
    rows = rows_of(laid_out[2])
    kept = sorted(row["path"] for row in rows if row["source"] == "a/photos")
    assert len(kept) == 5
    assert kept[:2] == ["big.jpg", "blue.png"]
    assert kept[2].startswith("one")
    assert kept[3].startswith("red")
    assert kept[4] == "two.png"
    counts = (laid_out[2] / "counts.tsv").read_text()
    assert "alike 2, broken 1, flat 1, judges 2, long 1, seen 2, tiny 1, train 5" in counts
    assert [row["role"] for row in rows if row["source"] == "b/choices"] == ["choice", "choice"]
    roles = {row["role"] for row in rows if row["source"].endswith("train.zip")}
    assert roles == {"train", "held-out"}


def test_shards_are_not_made_twice(script, laid_out):
    rows, out = rows_of(laid_out[2]), laid_out[2]
    with zipfile.ZipFile(out / rows[-1]["shard"]) as archive:
        assert Image.open(archive.open(rows[-1]["member"])).size == (64, 64)
    big = next(row for row in rows if row["path"] == "big.jpg")
    assert (big["width"], big["height"]) == ("200", "160")
    before = (out / "manifest.tsv").read_text()
    script.lay_out(*laid_out, 1, 0)
    assert (out / "manifest.tsv").read_text() == before


def test_unpacked_arrays_and_shares(script, laid_out, tmp_path, monkeypatch):
    sets = tmp_path / "sets"
    arrays = importlib.import_module("arrays")
    monkeypatch.setattr(arrays, "origins", script.origins)
    arrays.unpack(laid_out[2], sets, 32, 1)
    assert np.load(sets / "a+photos.npy").shape == (5, 32, 32, 3)
    assert (sets / "imagenette160+train.labels.txt").read_text().split() == ["n1"] * len(
        np.load(sets / "imagenette160+train.npy")
    )
    held = np.load(sets / "held-out.npy")
    assert len(held) + len(np.load(sets / "imagenette160+train.npy")) == 40
    assert (sets / "shares.tsv").read_text() == "a+photos\t2\nimagenette160+train\t3\n"


def test_weights_record_what_was_laid_out(laid_out):
    data, _, out, _ = laid_out
    record = importlib.import_module("alexnet_file").recorded(out / "manifest.tsv")
    roles = Counter(row["role"] for row in rows_of(out))
    few = out / "few.tsv"
    few.write_text("repository\trole\nimagenette160/train.zip\ttrain\n")
    assert len(importlib.import_module("alexnet_file").recorded(out / "manifest.tsv", few).trained_on) == 39
    assert (len(record.trained_on), len(record.held_out)) == (roles["train"], roles["held-out"])
    with zipfile.ZipFile(data / "imagenette160" / "train.zip") as archive:
        digests = [digest_of(archive.read(name)) for name in archive.namelist()]
    assert all((digest in record.trained_on) != (digest in record.held_out) for digest in digests)
    with zipfile.ZipFile(data / "imagenette160" / "val.zip") as archive:
        assert digest_of(archive.read("n1/a.png")) not in record.trained_on


def test_near_finds_a_few_bits_and_no_more(script):
    random = np.random.default_rng(0)
    near = script.Near(4)
    near.add(0x0123456789ABCDEF)
    for bits in range(9):
        places = random.choice(64, bits, replace=False)
        other = 0x0123456789ABCDEF ^ sum(1 << int(place) for place in places)
        assert (other in near) == (bits <= 4)


def test_colours_tell_goods_of_one_shape_apart(script):
    red, blue = shirt("red"), shirt("blue")
    assert (script.difference_hash(red) ^ script.difference_hash(blue)).bit_count() <= 3
    alike = script.Alike(3, 16)
    alike.add(script.difference_hash(red), script.mean_colours(red))
    darker = red.point(lambda level: level * 15 // 16)
    assert alike.has(script.difference_hash(darker), script.mean_colours(darker))
    assert not alike.has(script.difference_hash(blue), script.mean_colours(blue))
    assert not alike.has(script.difference_hash(photo(1)), script.mean_colours(red))


def test_training_begins_with_the_features_of_the_weights(script):
    alexnet, judge = importlib.import_module("alexnet"), importlib.import_module("judge")
    path = Path(registry.__file__).parent / "weights_data" / registry.BUILTIN["alexnet"]
    pixels = np.stack([np.asarray(photo(seed, (146, 146))) for seed in range(16)])

    class Pictures:
        def draw(self, count, random):
            return pixels[random.integers(0, len(pixels), count)], np.zeros(count)

    shipped, colour = judge.network_of(path)
    side = shipped.config.image_size
    begun = alexnet.build_from(path, alexnet.Config(image_size=side), Pictures(), batches=1).eval()
    x = centre(torch.from_numpy(pixels), side, colour)
    with torch.no_grad():
        likeness = torch.cosine_similarity(begun.features(x), shipped.features(x))
        assert likeness.min() > 0.999
        assert torch.equal(
            begun.classifier(begun.features(x)).argmax(1), shipped.classifier(shipped.features(x)).argmax(1)
        )
