"""Descriptors: their definitions, agreement of the engines, and all operations of an index that uses them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import simsearch
from simsearch.cli.main import main
from simsearch.errors import IndexDamagedError, ModelMismatchError, UsageError
from simsearch.indexing import learn_components
from simsearch.indexing.learn_components import whitened
from simsearch.models import descriptors, registry
from simsearch.models.descriptors import Descriptor, DescriptorModel, LayerPart, describe, r_mac, unit
from simsearch.models.onnx.runtime import OnnxModel
from simsearch.models.torch.runtime import TorchModel
from simsearch.search.feedback import blend, expanded
from simsearch.storage import components
from simsearch.storage.meta import Meta
from simsearch.storage.verify import verify
from tests.helpers.pictures import draw


@pytest.fixture
def pictures(tmp_path):
    """Eighty different images with two labels."""
    for number in range(80):
        draw(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "pictures"


@pytest.fixture
def small(monkeypatch):
    """A recipe with few enough components for the fake model's twelve dimensions."""
    recipe = Descriptor((LayerPart(root=True),), dimension=4, whitening=0.5)
    monkeypatch.setitem(descriptors.DESCRIPTORS, "small", recipe)
    return recipe


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# -- the vectors


def test_parts_are_rooted_scaled_and_joined():
    layers = {"features": np.array([[9.0, 16.0, 0.0]], np.float32), "fc6": np.array([[0.0, 2.0]], np.float32)}
    assert describe(Descriptor(), layers) == pytest.approx(np.array([[9, 16, 0]]) / np.hypot(9, 16))
    assert describe(Descriptor((LayerPart(root=True),)), layers) == pytest.approx(np.array([[0.6, 0.8, 0.0]]))
    both = Descriptor((LayerPart(root=True), LayerPart("fc6", weight=0.5)))
    assert describe(both, layers) == pytest.approx(np.array([[0.6, 0.8, 0, 0, 0.5]]) / np.sqrt(1.25))
    assert both.layers == ("features", "fc6")


def test_a_blank_image_has_a_vector_of_zeros():
    assert describe(Descriptor(), {"features": np.zeros((1, 5), np.float32)}).tolist() == [[0.0] * 5]


def test_conv5_is_pooled_over_image_or_regions():
    maps = np.random.default_rng(0).random((3, 5, 7, 7), np.float32)
    found = describe(Descriptor((LayerPart("conv5", "max"),)), {"conv5": maps})
    assert found == pytest.approx(unit(maps.reshape(3, 5, -1).max(2)))
    # By hand: regions of 7, 5 and 4 positions that begin at 0; at 0 and 2; at 0, 2 and 3 (1.5 rounds to even).
    expected = np.zeros((3, 5))
    for size, starts in ((7, (0,)), (5, (0, 2)), (4, (0, 2, 3))):
        for y in starts:
            for x in starts:
                peak = maps[:, :, y : y + size, x : x + size].reshape(3, 5, -1).max(2)
                expected += peak / np.linalg.norm(peak, axis=1, keepdims=True)
    assert r_mac(maps) == pytest.approx(expected)


def test_whitening_evens_out_the_components():
    sample = np.random.default_rng(0).normal(size=(500, 10)) * np.arange(1, 11) + 5
    rotated, whole, half = (whitened(sample, 4, power) for power in (0.0, 1.0, 0.5))
    assert rotated.axes.T @ rotated.axes == pytest.approx(np.eye(4), abs=1e-5)
    assert whole(sample).std(0) == pytest.approx(np.ones(4), rel=1e-3)
    assert half(sample).std(0) == pytest.approx(np.sqrt(rotated(sample).std(0)), rel=1e-3)
    assert rotated(sample).std(0) == pytest.approx(np.linalg.eigvalsh(np.cov(sample.T))[:-5:-1] ** 0.5, rel=0.02)


def test_the_mirror_image_has_the_same_vector(colours):
    mirrored = DescriptorModel(colours, Descriptor(mirror=True))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    assert mirrored.features(pixels) == pytest.approx(mirrored.features(pixels[:, :, ::-1]))
    assert mirrored.dimension == 12


@pytest.mark.parametrize("name", ["tiny", registry.DEFAULT])
def test_engines_agree_on_every_layer_and_recipe(name, tiny_weights):
    file = registry.find_weights(str(tiny_weights) if name == "tiny" else name)
    side = file.card.recipe.crop
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    ours, theirs = OnnxModel(file), TorchModel(file, "cpu")
    for layer in ("features", "fc6", "conv5"):
        one, other = ours.outputs([layer], pixels)[0], theirs.outputs([layer], pixels)[0]
        assert one.shape == other.shape
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4 * float(one.max()))
    for recipe in descriptors.DESCRIPTORS.values():
        plain = Descriptor(recipe.parts, recipe.mirror)
        assert DescriptorModel(ours, plain).features(pixels) == pytest.approx(
            DescriptorModel(theirs, plain).features(pixels), abs=1e-3
        )


def test_a_network_without_the_layer_is_refused(colours):
    with pytest.raises(UsageError, match="no layer 'fc6'"):
        DescriptorModel(colours, Descriptor((LayerPart("fc6"),)))


def test_feedback_leaves_the_signs_of_components():
    query, wanted = np.array([1.0, -1.0], np.float32), np.array([[1.0, -3.0]], np.float32)
    assert blend(query, wanted, wanted[:0]) == pytest.approx([1, -2])
    assert blend(query, wanted[:0], np.array([[1.0, 1.0]], np.float32)) == pytest.approx([1, -2])
    assert blend(-query, wanted[:0], np.array([[1.0, 5.0]], np.float32)).min() < 0


def test_expansion_weighs_by_cosine_keeps_length():
    query, near = np.array([3.0, 0.0], np.float32), np.array([[3.0, 0.0], [0.0, 3.0], [2.0, 2.0]], np.float32)
    total = query + near[0] + 0.5**1.5 * near[2]
    assert expanded(query, near) == pytest.approx(3 * total / np.linalg.norm(total), rel=1e-6)
    assert expanded(query, near[:0]) is query
    assert expanded(0 * query, near).tolist() == [0, 0]


# -- an index of them


def test_searches_use_components_of_the_index(pictures, tmp_path, small, colours):
    engine = simsearch.build(pictures, tmp_path / "index", colours, features="small")
    assert (engine.meta.features, engine.meta.dimension, len(engine)) == ("small", 4, 80)
    assert engine.info()["features"] == "small"
    stored = engine.shards.read(np.arange(80)).astype(np.float32)
    assert np.linalg.norm(stored, axis=1) == pytest.approx(np.ones(80), abs=2e-3)
    picture = pictures / "a" / "0.png"
    by_path, again = engine.search(picture, k=5), simsearch.open(tmp_path / "index", model=colours)
    image = np.asarray(Image.open(picture))
    computed = again.search(image, k=5)  # not found by its SHA-256, so it went through model and components
    assert [match.id for match in computed] == [match.id for match in by_path]
    assert computed[0].distance == pytest.approx(0, abs=2e-3)
    assert again.search_by_vector(stored[6], k=3)[0].id == 7
    draw(tmp_path / "more.png", 99)
    assert again.add(tmp_path / "more.png").added == 1
    assert verify(again.index).problems == ()


def test_records_suffice_to_remake_features(pictures, tmp_path, small, colours, monkeypatch):
    with simsearch.build(pictures, tmp_path / "index", colours, features="small") as engine:
        before = engine.stored_features(1)
    monkeypatch.delitem(descriptors.DESCRIPTORS, "small")  # another version may give the name another meaning
    with simsearch.open(tmp_path / "index", model=colours) as engine:
        assert engine.features([engine.read(1)])[0] == pytest.approx(before, abs=2e-3)


def test_damaged_components_are_noticed(pictures, tmp_path, small, colours):
    simsearch.build(pictures, tmp_path / "index", colours, features="small").close()
    file = tmp_path / "index" / components.FILE
    good = file.read_bytes()
    for data in (good[:-4] + b"\0\1\2\3", good[:40], None):
        file.unlink() if data is None else file.write_bytes(data)
        done = run("verify", "-i", tmp_path / "index")
        assert done.exit_code == 3 and components.FILE in done.output
        with pytest.raises(IndexDamagedError, match="components"):
            simsearch.open(tmp_path / "index", model=colours)
    file.write_bytes(good)
    assert run("verify", "-i", tmp_path / "index").exit_code == 0


def test_other_features_than_index_are_refused(pictures, tmp_path, small, colours):
    simsearch.build(pictures, tmp_path / "index", colours, features="small").close()
    simsearch.build(pictures, tmp_path / "index", colours).close()  # it keeps its own
    with pytest.raises(UsageError, match="has features small, not fc7"):
        simsearch.build(pictures, tmp_path / "index", colours, features="fc7")
    with pytest.raises(UsageError, match="no features are called 'fc9'"):
        simsearch.build(pictures, tmp_path / "other", colours, features="fc9")
    assert not (tmp_path / "other").exists()


def test_index_named_like_recipe_is_not_taken(pictures, tmp_path, small, colours, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("fc7", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text("no index of ours")
    for features in (None, "fc7", "fc7-unit"):
        with simsearch.build(pictures, tmp_path / f"index-{features}", colours, features=features) as engine:
            assert engine.meta.features == (features or "fc7")


def test_too_few_pictures_leave_no_index(pictures, tmp_path, small, colours):
    few = pictures / "a" / "0.png"
    with pytest.raises(UsageError, match="1 different pictures are too few"):
        simsearch.build(few, tmp_path / "index", colours, features="small")
    assert not (tmp_path / "index").exists()


def test_indexes_with_same_components_merge(pictures, tmp_path, small, colours, monkeypatch):
    from simsearch.indexing.merge import merge_indexes

    monkeypatch.setattr(learn_components, "FEWEST", 20)
    one = simsearch.build(pictures / "a", tmp_path / "one", colours, features="small")
    other = simsearch.build(pictures / "b", tmp_path / "other", colours, features="small")
    with pytest.raises(ModelMismatchError, match="are computed differently"):
        merge_indexes(one.index, other.index)
    alike = simsearch.build(pictures / "b", tmp_path / "alike", colours, features=str(tmp_path / "one"))
    assert merge_indexes(one.index, alike.index).added == 40
    assert len(one) == 80
    simsearch.build(pictures / "b", tmp_path / "alike", colours, features=str(tmp_path / "one"))
    with pytest.raises(UsageError, match="has features small"):
        simsearch.build(pictures / "b", tmp_path / "alike", colours, features=str(tmp_path / "other"))


def test_leftover_components_are_no_obstacle(pictures, tmp_path, small, colours):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / components.FILE).write_bytes(b"half")
    with simsearch.build(pictures, tmp_path / "index", colours, features="small") as engine:
        assert len(engine) == 80


@pytest.mark.parametrize("name", ["fc7-unit", "fc6", "conv5-max", "conv5-rmac", "best"])
def test_verbs_work_on_features_of_every_kind(name, pictures, tmp_path, tiny_weights):
    index = ("-i", tmp_path / "index")
    done = run("build", pictures, *index, "--model", tiny_weights, "--features", name)
    assert done.exit_code == 0, done.output
    facts = json.loads(run("info", *index, "--format", "json").stdout)
    assert facts["features"] == name
    assert facts["dimension"] == (16 if name.startswith("conv5") else 32)
    assert name in run("info", *index).stdout
    answer = json.loads(run("query", "id:3", *index, "-k", "80", "--format", "json").stdout)
    assert len(answer[0]["matches"]) == 79
    picture = pictures / "a" / "0.png"
    done = run("query", picture, *index, "--flip", "--plus", "id:2", "--minus", "id:5")
    assert done.exit_code == 0
    assert run("verify", *index).exit_code == 0
    assert run("duplicates", *index, "--max-distance", "1000").exit_code == 0
    assert run("eval", "search", *index).exit_code == 0
    assert run("export", *index, "-o", tmp_path / "out").exit_code == 0
    assert np.load(tmp_path / "out" / "features.npy").shape[1] == facts["dimension"]
    assert "would read 0 images" in run("build", pictures, *index, "--dry-run", "--features", name).output


@pytest.mark.parametrize("where", ["learning", "components", "meta"])
def test_build_interrupted_early_succeeds_again(where, pictures, tmp_path, small, colours):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    place = {
        "learning": (type(colours), "features"),
        "components": (components, "record"),
        "meta": (Meta, "write"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*place[where], stop)
        with pytest.raises(Stopped):
            simsearch.build(pictures, tmp_path / "index", colours, features="small")
    assert not (tmp_path / "index" / "meta.json").exists()
    with simsearch.build(pictures, tmp_path / "index", colours, features="small") as engine:
        assert len(engine) == 80
        assert verify(engine.index).problems == ()


def test_expansion_searches_by_first_matches(pictures, tmp_path, colours):
    engine = simsearch.build(pictures, tmp_path / "index", colours)
    first = engine.search_by_id(3, k=2)
    near = engine.shards.read(np.array([match.id - 1 for match in first])).astype(np.float32)
    query = expanded(engine.shards.read(np.array([2]))[0].astype(np.float32), near)
    expected = [match for match in engine.search_by_vector(query, k=6) if match.id != 3][:5]
    found = engine.search_by_id(3, k=5, expand=2)
    assert [match.id for match in found] == [match.id for match in expected]
    assert [match.distance for match in found] == pytest.approx([match.distance for match in expected], abs=1e-6)
    only = engine.search_by_id(3, k=5, expand=2, where={"label": "a"})
    assert {match.label for match in only} == {"a"}
    with pytest.raises(UsageError, match="expand is -1"):
        engine.search_by_id(3, expand=-1)
    done = run("query", "id:3", "-i", tmp_path / "index", "-k", "5", "--expand", "2", "--format", "json")
    assert [match["id"] for match in json.loads(done.stdout)[0]["matches"]] == [match.id for match in expected]


def test_few_pictures_give_few_components(pictures, tmp_path, colours, monkeypatch):
    monkeypatch.setitem(descriptors.DESCRIPTORS, "wide", Descriptor(dimension=12))
    monkeypatch.setattr(learn_components, "ENOUGH", 10)
    with simsearch.build(pictures, tmp_path / "index", colours, features="wide") as engine:
        assert engine.meta.dimension == 8
