"""Fine-tuning and adapting of weights."""

import numpy as np
import pytest

from simsearch.models import registry, weights
from simsearch.training import job as training_job
from simsearch.training import run
from tests.helpers.runs import draw, job, refused, simsearch_


def tensors_after(pics, out, *changes, **rest):
    run.fit(job(pics, out, *changes, **rest))
    return weights.read_tensors(out)


def test_fine_tuning_keeps_what_it_should(trained, tmp_path):
    file, pics = trained
    before = weights.read_tensors(file)
    tiny = ("learning_rate=1e-6", "epochs=1")
    same = tensors_after(pics, tmp_path / "same.safetensors", *tiny, start=str(file))
    for name in before:
        np.testing.assert_allclose(same[name], before[name], atol=2e-3)
    draw(tmp_path / "two", "red", 8)
    draw(tmp_path / "two", "blue", 8)
    other = tensors_after(tmp_path / "two", tmp_path / "o.safetensors", *tiny, start=str(file))
    assert other["classifier.weight"].shape == (2, 576)
    np.testing.assert_allclose(other["conv.3.weight"], before["conv.3.weight"], atol=2e-3)
    card = weights.read_card(tmp_path / "o.safetensors")
    assert card.recipe == weights.read_card(file).recipe
    assert card.training["from"] == registry.find_weights(str(file)).sha256


@pytest.mark.parametrize("freeze", ["convolutions", "features"])
def test_frozen_layers_stay_as_they_are(trained, tmp_path, freeze):
    file, pics = trained
    before = weights.read_tensors(file)
    after = tensors_after(
        pics, tmp_path / "w.safetensors", "learning_rate=0.1", "label_smoothing=0.3", start=str(file), freeze=freeze
    )
    for name in before:
        assert np.array_equal(after[name], before[name]) == name.startswith("conv.")


def test_what_cannot_be_fine_tuned(trained, tmp_path):
    file, pics = trained
    out = tmp_path / "w.safetensors"
    refused(simsearch_("train", pics, "-o", out, "--from", file, "--model", "alexnet"), "convnet4, not alexnet")
    refused(
        simsearch_("train", pics, "-o", out, "--from", file, "--set", "image_size=64"),
        "takes images of 32 pixels a side, not 64",
    )
    refused(
        simsearch_("train", pics, "-o", out, "--model", "lenet5", "--freeze", "features"), "nothing of lenet5 is left"
    )


def test_adapt_preset_asks_for_weights(pics, tmp_path):
    arguments = ("train", pics, "--preset", "adapt", "--epochs", 1, "--set", "image_size=63", "--held-out", 0)
    done = simsearch_(*arguments, "-o", tmp_path / "w.safetensors")
    assert done.exit_code == 0, done.output
    assert "note: preset adapt is for trained weights, for example --from" in done.output
    assert (
        training_job.prepare_job([str(pics)], tmp_path / "x", preset="adapt", start="default").start == registry.DEFAULT
    )


def test_weights_that_have_moved_get_a_hint(trained, tmp_path):
    file, pics = trained
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(file.read_bytes())
    assert simsearch_("build", pics, "-i", tmp_path / "index", "--model", moved).exit_code == 0
    moved.rename(tmp_path / "here.safetensors")
    draw(tmp_path, "red", 1, seed=9)
    picture = tmp_path / "red" / "9-0.png"
    refused(simsearch_("query", picture, "-i", tmp_path / "index"), "no weights file at", "hint: --model FILE")
    found = simsearch_("query", picture, "-i", tmp_path / "index", "--model", tmp_path / "here.safetensors")
    assert found.exit_code == 0, found.output
