"""Weights files: compressed as in Deep Compression, self-describing, never trusted."""

import base64
import json
import struct
import zlib

import numpy as np
import pytest

from simsearch.errors import WeightsError
from simsearch.images.preprocessing import Preprocessing
from simsearch.models import deep_compression, registry, weights
from simsearch.models.training_record import KEPT, MOST, Digests, TrainingRecord, digest_of
from simsearch.models.weights import ModelCard


def sparse(shape, share, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) * (random.random(shape) < share)).astype(np.float32)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2, 1.0])
@pytest.mark.parametrize("bits", [1, 5, 8])
def test_pruned_weights_decode_to_shared_values(share, bits):
    tensor = sparse((40, 500), share)
    encoded = deep_compression.compress_tensor(tensor, bits)
    decoded = deep_compression.decompress_tensor(encoded)
    assert decoded.shape == tensor.shape
    assert len(np.unique(decoded[decoded != 0])) <= 2**bits - 1
    np.testing.assert_array_equal(decoded[tensor == 0], 0)
    nearest = np.abs(tensor[tensor != 0][:, None] - encoded.codebook[None, 1:]).min(1)
    np.testing.assert_allclose(np.abs(decoded - tensor)[tensor != 0], nearest, atol=1e-6)


def test_long_gaps_are_bridged():
    tensor = np.zeros(3000, np.float32)
    tensor[[0, 255, 256, 512, 1024, 2999]] = [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(deep_compression.decompress_tensor(deep_compression.compress_tensor(tensor, 8)), tensor)


def test_an_empty_tensor_of_zeros():
    np.testing.assert_array_equal(
        deep_compression.decompress_tensor(deep_compression.compress_tensor(np.zeros((3, 4), np.float32), 5)),
        np.zeros((3, 4)),
    )


def test_five_bits_lose_little():
    tensor = sparse((256, 256), 0.3)
    decoded = deep_compression.decompress_tensor(deep_compression.compress_tensor(tensor, 5))
    assert np.linalg.norm(decoded - tensor) < 0.08 * np.linalg.norm(tensor)


def test_more_bits_than_a_byte_are_refused():
    with pytest.raises(WeightsError, match="8 bits, not 9"):
        deep_compression.compress_tensor(np.ones(3, np.float32), 9)


def test_streams_that_claim_too_much_are_refused():
    good = deep_compression.compress_tensor(sparse((50, 50), 0.1), 4)
    for bad in (
        good._replace(shape=(1 << 20, 1 << 20)),
        good._replace(shape=(5, 5)),
        good._replace(stored=good.stored - 1),
        good._replace(stored=good.stored + 1),
        good._replace(codebook=good.codebook[:2]),
        good._replace(gaps=np.frombuffer(b"junk", np.uint8)),
    ):
        with pytest.raises(WeightsError):
            deep_compression.decompress_tensor(bad)


def test_a_file_says_everything(tmp_path):
    path = tmp_path / "w.safetensors"
    card = ModelCard(
        "alexnet",
        {"channels": (8, 16, 16, 16, 16)},
        Preprocessing(40, 32),
        ("cat", "dog"),
        "words",
        {"passes": 3},
        {"top-1": 0.5},
        (0.0, 1.0),
    )
    tensors = {"a.weight": sparse((30, 30), 0.2), "a.bias": np.arange(4, dtype=np.float32)}
    weights.write(path, card, tensors, {"a.weight": 6})
    assert weights.read_card(path) == card
    back = weights.read_tensors(path)
    assert set(back) == set(tensors)
    np.testing.assert_array_equal(back["a.bias"], tensors["a.bias"])
    assert list(tmp_path.iterdir()) == [path]


def test_record_of_pictures():
    pictures = [digest_of(b"a"), digest_of(b"b"), digest_of(b"c")]
    before = TrainingRecord.of(pictures[:1], pictures[1:], TrainingRecord())
    assert not TrainingRecord()
    after = TrainingRecord.of(pictures[1:2], pictures, before)
    assert after == TrainingRecord(Digests(pictures[:2]), Digests(pictures[2:]))
    assert [picture in after.trained_on for picture in [*pictures, b""]] == [True, True, False, False]
    many = ((number << 8).to_bytes(6, "big") for number in range(MOST + 1))
    assert not TrainingRecord.of(many, (), TrainingRecord())


@pytest.mark.parametrize("count", [0, 1, 2, 3000])
def test_packed_digests(count):
    some = Digests(digest_of(str(number).encode()) for number in range(count))
    packed = some.packed().tobytes()
    assert Digests.unpacked(packed) == some
    assert len(some) == count
    assert digest_of(b"another") not in some
    assert all(digest_of(str(number).encode()) in some for number in range(count))
    assert count < 3000 or len(packed) / count < 4  # log2(2**40 / 3000) + 1.44 bits are the least: 3.7 bytes


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"no zlib",
        zlib.compress(b"1234567"),  # no whole digests
        zlib.compress(bytes(10)),  # twice the same
        zlib.compress(bytes(range(10)))[:-3],
        zlib.compress(bytes(KEPT * (MOST + 1))),  # more than there may be
    ],
)
def test_damaged_digests(damaged):
    with pytest.raises(ValueError, match="digests of pictures"):
        Digests.unpacked(damaged)


def test_record_in_a_file(tmp_path):
    path, tensors = tmp_path / "w.safetensors", {"a.bias": np.arange(4, dtype=np.float32)}
    card = ModelCard("alexnet", {}, Preprocessing(40, 32))
    record = TrainingRecord.of([digest_of(b"a")], [digest_of(b"b"), digest_of(b"c")], TrainingRecord())
    weights.write(path, card, tensors, {}, record)
    assert weights.read_record(path) == record
    assert set(weights.read_tensors(path)) == {"a.bias"}
    weights.add_ranges(path, {"conv1": np.ones(3, np.float32)}, 0.5)
    assert weights.read_record(path) == record
    data = path.read_bytes()
    path.write_bytes(data.replace(record.held_out.packed().tobytes(), bytes(record.held_out.packed().size)))
    with pytest.raises(WeightsError, match="its record of pictures cannot be read: the digests"):
        weights.read_record(path)
    weights.write(path, card, tensors, {})
    assert not weights.read_record(path)


def test_record_of_former_versions():
    encoded = base64.b64encode(digest_of(b"a") + digest_of(b"b")).decode()
    assert TrainingRecord.from_former({"trained_on": encoded}) == TrainingRecord(
        Digests([digest_of(b"b"), digest_of(b"a")])
    )
    for damaged in ({"held_out": "%"}, {"trained_on": 7}):
        with pytest.raises((TypeError, ValueError)):
            TrainingRecord.from_former(damaged)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 100,
        struct.pack("<Q", 20) + b"{not json at all....",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 1 << 60) + b"x",
    ],
)
def test_what_is_no_weights_file_is_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        weights.read_card(path)


def test_a_header_of_the_future_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    header = json.dumps({"__metadata__": {"simsearch": json.dumps({"format": 99})}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(WeightsError, match="format 99"):
        weights.read_card(path)


def test_unknown_recipe_keys_are_refused():
    with pytest.raises(WeightsError, match="gamma"):
        Preprocessing.from_dict({"resize": 256, "gamma": 2})
    assert Preprocessing.from_dict(json.loads(json.dumps(Preprocessing().to_dict()))) == Preprocessing()


def test_shipped_weights_fit_the_limit():
    files = [registry.find_weights(name).path for name in registry.BUILTIN]
    assert sum(path.stat().st_size for path in files) <= 16 << 20


@pytest.mark.parametrize("name", list(registry.BUILTIN))
def test_shipped_cards_are_complete(name):
    found = registry.find_weights(name)
    assert found.config.dimension == 4096
    assert len(found.card.classes) == found.config.num_classes >= 200
    assert found.card.training
    assert found.card.metrics
    assert len(found.card.distances) > 100
