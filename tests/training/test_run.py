"""`simsearch train` from a folder of labelled images to a weights file."""

import errno
import json
import os
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import simsearch
from simsearch.errors import SimsearchError, TrainingInterruptedError, UsageError
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import labelled
from simsearch.images.sources.labelled import LabelledImage
from simsearch.models import classify, registry, weights
from simsearch.training import data as training_data
from simsearch.training import log as training_log
from simsearch.training import run
from tests.helpers.runs import QUICK, draw, job, refused, rows, simsearch_


def test_trained_file_serves_every_command(trained, tmp_path):
    file, pics = trained
    picture = pics / "green" / "0-3.png"
    done = simsearch_("classify", picture, "-m", file, "--format", "json")
    (answer,) = json.loads(done.stdout)
    assert answer["guesses"][0]["label"] == "green"
    assert sum(guess["probability"] for guess in answer["guesses"]) == pytest.approx(1)
    done = simsearch_("eval", "model", pics, "-m", file, "--format", "json")
    assert json.loads(done.stdout)["top1_error"]["value"] < 0.1
    assert "top-1 error" in simsearch_("eval", "model", pics, "-m", file).stdout
    with simsearch.build(pics, tmp_path / "index", str(file)) as engine:
        assert engine.meta.dimension == 576
        assert {match.label for match in engine.search(picture, k=6)} == {"green"}


def test_log_and_card_stay_without_checkpoint(trained):
    file, _ = trained
    assert {path.name for path in file.parent.iterdir()} == {"pics", "w.safetensors", "w.jsonl", "w.png"}
    assert [row["epoch"] for row in rows(file.with_suffix(".jsonl"), "epoch")] == [1, 2, 3, 4]
    with Image.open(file.with_suffix(".png")) as curve:
        assert curve.size == (1440, 840)
    card = weights.read_card(file)
    assert card.classes == card.labels == ("blue", "green", "red")
    assert card.training["settings"]["epochs"] == 4
    assert "top-1" in card.metrics["validation"]
    assert card.distances


def test_eval_tells_trained_from_held_out(trained, tmp_path):
    file, pics = trained
    record = weights.read_record(file)
    assert (len(record.trained_on), len(record.held_out)) == (33, 3)
    done = simsearch_("eval", "model", pics, "-m", file)
    assert "was trained on 33 of the 36 images, so the error looks too small" in done.stderr
    done = simsearch_("eval", "model", pics, "-m", file, "--held-out")
    assert done.stderr == ""
    assert ": 3 images; 1 crop" in done.stdout
    draw(tmp_path / "other", "red", 2, seed=99)
    report = json.loads(simsearch_("eval", "model", tmp_path / "other", "-m", file, "--format", "json").stdout)
    assert (report["images"], report["trained_on"]) == (2, 0)
    none = simsearch_("eval", "model", tmp_path / "other", "-m", file, "--held-out")
    refused(none, "none of the images was held out")
    refused(simsearch_("eval", "model", pics, "-m", unrecorded(file, tmp_path), "--held-out"), "do not record which")
    done = simsearch_("eval", "model", pics, "-m", unrecorded(file, tmp_path))
    assert "does not record which images it was trained on; if these are among them" in done.stderr
    record = weights.read_record(simsearch_trained_further(file, pics, tmp_path))
    assert (len(record.trained_on), len(record.held_out)) == (33 + 3, 0)  # held out then, trained on now


def unrecorded(file, folder):
    """A copy of a weights file that does not say which pictures it was trained on."""
    output = folder / "unrecorded.safetensors"
    weights.write(output, weights.read_card(file), weights.read_tensors(file), {})
    return output


def simsearch_trained_further(file, pics, folder):
    output = folder / "further.safetensors"
    done = simsearch_("train", pics, "-o", output, *QUICK, "--from", file, "--epochs", 1, "--held-out", 0)
    assert done.exit_code == 0, done.output
    return output


def test_a_second_training_decodes_nothing(pics, tmp_path, monkeypatch):
    assert simsearch_("train", pics, "-o", tmp_path / "a.safetensors", *QUICK).exit_code == 0
    monkeypatch.setattr(training_data, "_decode", None)
    assert simsearch_("train", pics, "-o", tmp_path / "b.safetensors", *QUICK).exit_code == 0
    assert (tmp_path / "a.safetensors").read_bytes()[-9000:] == (tmp_path / "b.safetensors").read_bytes()[-9000:]


def test_classes_of_sources_merge_by_name(tmp_path):
    for folder, labels in (("one", ("red", "green")), ("two", ("green", "blue"))):
        for label in labels:
            draw(tmp_path / folder, label, 8, seed=len(folder))
    done = simsearch_("train", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "w.safetensors", *QUICK)
    assert done.exit_code == 0, done.output
    assert "3 classes from" in done.output
    assert re.search(r"^validation: top-1 [\d.]+%.*, on 4 images that were held out$", done.output, re.M)
    assert done.output.rstrip().endswith("; the weights after the last pass")
    assert weights.read_card(tmp_path / "w.safetensors").classes == ("blue", "green", "red")


def test_validation_by_another_source(pics, tmp_path):
    draw(tmp_path / "val", "red", 3, seed=9)
    (tmp_path / "val" / "mauve").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "mauve" / "x.png")
    done = simsearch_("train", pics, "-o", tmp_path / "w.safetensors", "--val", tmp_path / "val", *QUICK)
    assert done.exit_code == 0, done.output
    assert "1 validation images of unknown classes were left out" in done.output
    assert re.search(r"^validation: top-1 [\d.]+%.*, on 3 images$", done.output, re.M)
    assert "36 images of 3 classes, 3 to validate on" in weights.read_card(tmp_path / "w.safetensors").training["data"]
    (tmp_path / "odd").mkdir()
    (tmp_path / "val" / "mauve").rename(tmp_path / "odd" / "mauve")
    refused(
        simsearch_("train", pics, "-o", tmp_path / "v.safetensors", "--val", tmp_path / "odd", *QUICK),
        "has a label of the training images",
    )


def test_split_is_stratified_spares_singles():
    labels = np.array([0] * 50 + [1] * 20 + [2])
    kept, held = training_data.split(labels, 0.1, 0)
    assert np.bincount(labels[held], minlength=3).tolist() == [5, 2, 0]
    assert sorted([*kept, *held]) == list(range(71))
    assert not np.array_equal(held, training_data.split(labels, 0.1, 1)[1])
    assert len(training_data.split(np.array([0, 1]), 0.9, 0)[1]) == 0


def test_odd_sets_get_a_note_and_train(pics, tmp_path):
    draw(pics, "red", 1, seed=1)
    for path in list((pics / "blue").iterdir())[1:]:
        path.unlink()
    (pics / "green" / "broken.png").write_bytes((pics / "green" / "0-0.png").read_bytes()[:200])
    done = simsearch_("train", pics, "-o", tmp_path / "w.safetensors", *QUICK)
    assert done.exit_code == 0, done.output
    assert "1 of 3 classes have only one image" in done.output
    assert "left out: " in done.output
    assert "broken.png" in done.output


def test_sets_that_cannot_be_trained_on(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    refused(
        simsearch_("train", pics / "red", "-o", out, *QUICK),
        "no image has a label",
        "hint: use a folder for each class",
    )
    (tmp_path / "one" / "red").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "red" / "x.png")
    refused(simsearch_("train", tmp_path / "one", "-o", out, *QUICK), "nothing to tell apart")
    (tmp_path / "none").mkdir()
    refused(simsearch_("train", tmp_path / "none", "-o", out, *QUICK), "there are no images")
    assert not out.exists()


def test_bad_options(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    refused(simsearch_("train", pics, "-o", tmp_path / "w.pt"), "w.safetensors")
    refused(simsearch_("train", pics, "-o", tmp_path / "no" / "w.safetensors"), "folder does not exist")
    refused(simsearch_("train", pics, "-o", out, "--preset", "slow"), "no preset 'slow'", "paper, fast, small")
    refused(simsearch_("train", pics, "-o", out, "--set", "epoch=3"), "no setting is called 'epoch'")
    refused(simsearch_("train", pics, "-o", out, "--names", tmp_path / "no.tsv"), "cannot be read")
    (tmp_path / "bad.tsv").write_text("one two\n")
    refused(simsearch_("train", pics, "-o", out, "--names", tmp_path / "bad.tsv"), "not a table")
    refused(simsearch_("train", pics, "-o", out, "--from", "nobody"), "no model is called 'nobody'")
    out.write_bytes(b"precious")
    refused(simsearch_("train", pics, "-o", out, *QUICK), "exists already", "--overwrite")
    assert out.read_bytes() == b"precious"


def test_names_of_classes(pics, tmp_path):
    (tmp_path / "names.tsv").write_text("red\tcrimson\nblue\tnavy\n")
    out = tmp_path / "w.safetensors"
    assert simsearch_("train", pics, "-o", out, "--names", tmp_path / "names.tsv", *QUICK).exit_code == 0
    card = weights.read_card(out)
    assert (card.classes, card.labels) == (("navy", "green", "crimson"), ("blue", "green", "red"))
    done = simsearch_("eval", "model", pics, "-m", out, "--format", "json")  # by what they were called in training
    assert json.loads(done.stdout)["images"] == 36


def test_lenet5_from_the_command_line(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    done = simsearch_("train", pics, "-o", out, "--model", "lenet5", "--epochs", "1", "--set", "batch_size=8")
    assert done.exit_code == 0, done.output
    with simsearch.build(pics, tmp_path / "index", str(out)) as engine:
        assert engine.meta.dimension == 84


def test_text_bars_and_json_lines(trained):
    file, pics = trained
    two = pics / "red" / "0-0.png", pics / "blue" / "0-0.png"
    text = simsearch_("classify", *two, "-m", file, "-k", 2).stdout
    blocks = text.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [str(path) for path in two]
    assert blocks[0].splitlines()[1].split()[0] == "red"
    assert "█" in blocks[0].splitlines()[1]
    lines = simsearch_("classify", *two, "-m", file, "--format", "jsonl", "--crops", 10).stdout.splitlines()
    assert [json.loads(line)["guesses"][0]["label"] for line in lines] == ["red", "blue"]


def test_classify_refuses_what_it_cannot_do(trained, tmp_path):
    file, _ = trained
    refused(simsearch_("classify", "id:3", "-m", file), "classify needs images")
    refused(simsearch_("classify", tmp_path / "no.png", "-m", file), "no.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    refused(simsearch_("classify", tmp_path / "bad.png", "-m", file), "bad.png")

    class Nameless:
        name, classes = "nameless", ()

    with pytest.raises(UsageError, match="nameless has no classes"):
        classify.check_classes(Nameless())


def test_filters_are_drawn(trained, tmp_path):
    file, _ = trained
    done = simsearch_("models", "--filters", tmp_path / "k.png", "-m", file)
    assert done.exit_code == 0, done.output
    assert "32 kernels" in done.output
    with Image.open(tmp_path / "k.png") as image:
        assert image.size == (10 * (1 + 12 * 6), 10 * (1 + 3 * 6))
    refused(simsearch_("models", "--filters", tmp_path / "k.gif"), "k.png")
    assert "convnet4" in simsearch_("models", "-m", file).stdout


def test_pixels_are_those_of_the_recipe(pics):
    found = [p for p in labelled.list_labelled([pics]) if p.label == "red"]
    data, failures = training_data.load(found, Preprocessing(24, 20), ("red",))
    assert not failures
    assert data.pixels.shape == (12, 24, 24, 3)
    gone = LabelledImage(found[0].source, "red/gone.png", 1, 1, "red")
    data, failures = training_data.load([*found, gone], Preprocessing(24, 20), ("red",))
    assert len(data) == 12
    assert "gone.png" in failures[0][0]


def test_metric_objective_from_command_line(trained, tmp_path):
    file, pics = trained
    done = simsearch_("train", pics, "-o", tmp_path / "m.safetensors", "--from", file, "--objective", "metric", *QUICK)
    assert done.exit_code == 0, done.output
    card = registry.find_weights(str(tmp_path / "m.safetensors")).card
    assert card.training["settings"]["objective"] == "metric"
    refused(
        simsearch_("train", pics, "-o", tmp_path / "n.safetensors", "--set", "objective=triplet"), "triplet", "metric"
    )


@pytest.mark.parametrize(("network", "side"), [("alexnet", 62), ("alexnet", 2000), ("lenet5", 28), ("convnet4", 14)])
def test_inputs_that_a_network_cannot_take(pics, tmp_path, network, side):
    arguments = ("train", pics, "-o", tmp_path / "w.safetensors", "--model", network, "--set", f"image_size={side}")
    refused(simsearch_(*arguments), f"{network} cannot take images of {side} pixels")


def test_gpus_for_several_processes(pics, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(run, "choose_device", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes need a GPU each, but the number of GPUs is 1"):
        run.fit(job(pics, tmp_path / "w.safetensors", device="cuda"))
    with pytest.raises(UsageError, match="2 processes cannot share cuda:1"):
        run.fit(job(pics, tmp_path / "w.safetensors", device="cuda:1"))


def test_failed_curve_hides_no_other_error(pics, tmp_path, monkeypatch):
    def full(path, data):
        raise SimsearchError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(training_log, "atomic_write", full)
    with pytest.raises(TrainingInterruptedError):
        run.fit(job(pics, tmp_path / "w.safetensors"), stop=lambda: True)


def test_unwritable_weights_leave_nothing(trained, tmp_path, monkeypatch):
    card, tensors = weights.read_card(trained[0]), weights.read_tensors(trained[0])

    def full(*arguments, **folders):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises((SimsearchError, OSError), match="No space left"):
        weights.write(tmp_path / "w.safetensors", card, tensors, {})
    assert not list(tmp_path.iterdir())


def test_few_images_without_a_start_are_noted(trained, pics, tmp_path):
    file, _ = trained
    for architecture, start, noted in (("alexnet", None, 1), ("convnet4", None, 0), ("alexnet", file, 0)):
        log: list[dict[str, Any]] = []
        begun = registry.find_weights(str(start)) if start else None
        made = replace(job(pics, tmp_path / "w.safetensors"), architecture=architecture)
        run.gather(made, begun, lambda done, total: None, log.append)
        told = [row["text"] for row in log if "are few for training from random weights" in row.get("text", "")]
        assert len(told) == noted
