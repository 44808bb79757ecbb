"""`train`, `classify`, `eval model` and `models --filters`, from pictures to files, on small networks."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import simsearch
from simsearch import console, evaluate, fit, metrics, models, pictures, trainset
from simsearch.augment import Colour
from simsearch.cli import main
from simsearch.errors import SimsearchError, TrainingInterruptedError, UsageError
from simsearch.evaluate import Share
from simsearch.models import weights
from simsearch.recipe import Recipe
from simsearch.trainset import Picture

COLOURS = {"red": 0, "green": 1, "blue": 2}
QUICK = ("--model", "convnet4", "--epochs", "4", "--set", "batch_size=8")


def draw(folder, label, count, seed=0):
    random = np.random.default_rng((seed, COLOURS[label]))
    (folder / label).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        pixels[:, :, COLOURS[label]] += 150
        Image.fromarray(pixels).save(folder / label / f"{seed}-{number}.png")


@pytest.fixture
def pics(tmp_path):
    for label in COLOURS:
        draw(tmp_path / "pics", label, 12)
    return tmp_path / "pics"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights of a small network that tells three colours apart, and the pictures."""
    folder = tmp_path_factory.mktemp("trained")
    for label in COLOURS:
        draw(folder / "pics", label, 12)
    done = simsearch_("train", folder / "pics", "-o", folder / "w.safetensors", *QUICK)
    assert done.exit_code == 0, done.output
    return folder / "w.safetensors", folder / "pics"


def simsearch_(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def rows(path, event="step"):
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["event"] == event]


def refused(done, *words):
    assert done.exit_code == 2, done.output
    assert done.output.startswith("error: ") or "\nerror: " in done.output
    for word in words:
        assert word in done.output


def job(pics, output, *changes, **rest):
    settings = ["batch_size=8", "epochs=4", *changes]
    return fit.prepare([str(pics)], output, architecture="convnet4", changes=settings, **rest)


def test_a_trained_file_serves_classify_eval_build_and_query_at_once(trained, tmp_path):
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


def test_log_curve_and_card_are_left_and_the_checkpoint_is_not(trained):
    file, _ = trained
    assert {path.name for path in file.parent.iterdir()} == {"pics", "w.safetensors", "w.jsonl", "w.png"}
    assert [row["epoch"] for row in rows(file.with_suffix(".jsonl"), "epoch")] == [1, 2, 3, 4]
    with Image.open(file.with_suffix(".png")) as curve:
        assert curve.size == (720, 420)
    card = weights.read_card(file)
    assert card.classes == card.labels == ("blue", "green", "red")
    assert card.training["settings"]["epochs"] == 4
    assert "top-1" in card.metrics["validation"]
    assert card.distances


def test_a_second_training_decodes_nothing(pics, tmp_path, monkeypatch):
    assert simsearch_("train", pics, "-o", tmp_path / "a.safetensors", *QUICK).exit_code == 0
    monkeypatch.setattr(trainset, "_decode", None)
    assert simsearch_("train", pics, "-o", tmp_path / "b.safetensors", *QUICK).exit_code == 0
    assert (tmp_path / "a.safetensors").read_bytes()[-9000:] == (tmp_path / "b.safetensors").read_bytes()[-9000:]


def test_classes_of_several_sources_merge_by_name(tmp_path):
    for folder, labels in (("one", ("red", "green")), ("two", ("green", "blue"))):
        for label in labels:
            draw(tmp_path / folder, label, 8, seed=len(folder))
    done = simsearch_("train", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "w.safetensors", *QUICK)
    assert done.exit_code == 0, done.output
    assert "3 classes from" in done.output
    assert weights.read_card(tmp_path / "w.safetensors").classes == ("blue", "green", "red")


def test_validation_by_another_source(pics, tmp_path):
    draw(tmp_path / "val", "red", 3, seed=9)
    (tmp_path / "val" / "mauve").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "mauve" / "x.png")
    done = simsearch_("train", pics, "-o", tmp_path / "w.safetensors", "--val", tmp_path / "val", *QUICK)
    assert done.exit_code == 0, done.output
    assert "1 validation images of unknown classes were left out" in done.output
    assert "36 images of 3 classes, 3 to validate on" in weights.read_card(tmp_path / "w.safetensors").training["data"]
    (tmp_path / "odd").mkdir()
    (tmp_path / "val" / "mauve").rename(tmp_path / "odd" / "mauve")
    refused(
        simsearch_("train", pics, "-o", tmp_path / "v.safetensors", "--val", tmp_path / "odd", *QUICK),
        "no class of",
    )


def test_the_split_is_stratified_and_spares_single_images():
    labels = np.array([0] * 50 + [1] * 20 + [2])
    kept, held = trainset.split(labels, 0.1, 0)
    assert np.bincount(labels[held], minlength=3).tolist() == [5, 2, 0]
    assert sorted([*kept, *held]) == list(range(71))
    assert not np.array_equal(held, trainset.split(labels, 0.1, 1)[1])
    assert len(trainset.split(np.array([0, 1]), 0.9, 0)[1]) == 0


def test_odd_sets_get_a_note_and_train(pics, tmp_path):
    draw(pics, "red", 1, seed=1)
    for path in list((pics / "blue").iterdir())[1:]:
        path.unlink()
    (pics / "green" / "broken.png").write_bytes((pics / "green" / "0-0.png").read_bytes()[:200])
    done = simsearch_("train", pics, "-o", tmp_path / "w.safetensors", *QUICK)
    assert done.exit_code == 0, done.output
    assert "1 of 3 classes have one image" in done.output
    assert "left out: " in done.output
    assert "broken.png" in done.output


def test_sets_that_cannot_be_trained_on(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    refused(simsearch_("train", pics / "red", "-o", out, *QUICK), "no image has a label", "hint: a folder a class")
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


def interrupt(pics, out, at=7, **rest):
    steps = iter(range(1, 1000))
    with pytest.raises(TrainingInterruptedError):
        fit.fit(job(pics, out, **rest), stop=lambda: next(steps) == at)


def test_an_interrupted_training_resumes_exactly(pics, tmp_path):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    fit.fit(job(pics, whole))
    interrupt(pics, cut)
    assert not cut.exists()
    assert cut.with_suffix(".checkpoint").exists()
    with pytest.raises(UsageError, match="a training was left at") as error:
        fit.fit(job(pics, cut))
    assert "--resume" in str(error.value.hint)
    fit.fit(job(pics, cut, resume=True))

    def told(path, event, keys):
        return [[row[key] for key in keys] for row in rows(path.with_suffix(".jsonl"), event)]

    for event, keys in (("step", ("step", "loss", "top1", "learning_rate")), ("epoch", ("epoch", "top1", "top5"))):
        assert told(cut, event, keys) == told(whole, event, keys)
    one, other = weights.read_tensors(whole), weights.read_tensors(cut)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert not cut.with_suffix(".checkpoint").exists()


def test_overwrite_starts_over(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    interrupt(pics, out)
    fit.fit(job(pics, out, overwrite=True))
    assert [row["epoch"] for row in rows(out.with_suffix(".jsonl"), "epoch")] == [1, 2, 3, 4]
    fit.fit(job(pics, out, overwrite=True))


def test_resuming_with_other_settings_or_pictures_is_refused(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    interrupt(pics, out)
    with pytest.raises(UsageError, match=r"learning_rate 0\.01, not 0\.5"):
        fit.fit(job(pics, out, "learning_rate=0.5", resume=True))
    draw(pics, "red", 8, seed=5)
    with pytest.raises(UsageError, match="images 33, not 40"):
        fit.fit(job(pics, out, resume=True))


def test_ctrl_c_leaves_a_checkpoint_that_resume_finishes(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    command = [sys.executable, "-m", "simsearch", "train", str(pics), "-o", str(out), "--model", "convnet4"]
    command += ["--set", "batch_size=4", "--epochs", "60"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as run:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (
            out.with_suffix(".jsonl").exists() and len(out.with_suffix(".jsonl").read_text()) > 200
        ):
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=120)
    assert run.returncode == 130, said
    assert "--resume continues" in said
    assert not out.exists()
    done = simsearch_(*command[3:], "--resume")
    assert done.exit_code == 0, done.output
    assert "continuing after step" in done.output
    assert rows(out.with_suffix(".jsonl"))[-1]["step"] == 60 * 8


def tensors_after(pics, out, *changes, **rest):
    fit.fit(job(pics, out, *changes, **rest))
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
    assert card.training["from"] == models.find(str(file)).sha256


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
    refused(simsearch_("train", pics, "-o", out, "--from", file, "--set", "image_size=64"), "takes 32 pixels, not 64")
    refused(
        simsearch_("train", pics, "-o", out, "--model", "lenet5", "--freeze", "features"), "nothing of lenet5 is left"
    )


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
    refused(simsearch_("classify", "id:3", "-m", file), "takes pictures")
    refused(simsearch_("classify", tmp_path / "no.png", "-m", file), "no.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    refused(simsearch_("classify", tmp_path / "bad.png", "-m", file), "bad.png")

    class Nameless:
        name, classes = "nameless", ()

    with pytest.raises(UsageError, match="nameless has no classes"):
        evaluate.check_classes(Nameless())


class Brightness:
    """Guesses by the mean brightness of a 4 x 4 patch: 0 to 255 in three steps."""

    name, classes, labels = "brightness", ("dark", "grey", "light"), ("d", "g", "l")
    recipe = Recipe(6, 4)

    def logits(self, pixels):
        mean = pixels.reshape(len(pixels), -1).mean(1)
        return -np.abs(mean[:, None] - np.array([0.0, 127.0, 255.0])).astype(np.float32) / 50


def test_errors_are_counted_by_name_or_training_label(tmp_path):
    levels = {"dark": 0, "d": 40, "light": 250, "g": 250, "unheard": 3}
    for label, level in levels.items():
        (tmp_path / label).mkdir()
        Image.new("RGB", (6, 6), (level,) * 3).save(tmp_path / label / "x.png")
    (tmp_path / "d" / "broken.png").write_bytes((tmp_path / "d" / "x.png").read_bytes()[:50])
    verdict = evaluate.judge(Brightness(), trainset.labelled([tmp_path]))
    assert (verdict.images, verdict.unknown, verdict.failed) == (4, 1, 1)
    assert verdict.top1_error.value == 0.25  # the light one called g
    assert verdict.top5_error.value == 0
    with pytest.raises(UsageError, match="none of the labels is a class of brightness: unheard"):
        evaluate.judge(Brightness(), [p for p in trainset.labelled([tmp_path]) if p.label == "unheard"])


def test_ten_crops_are_corners_and_centre_and_their_reflections():
    image = Image.fromarray(np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3))
    pixels = np.asarray(image)
    found = evaluate.patches(image, Recipe(6, 4), 10)
    corners = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    for patch, mirrored, (y, x) in zip(found[:5], found[5:], corners, strict=True):
        np.testing.assert_array_equal(patch, pixels[y : y + 4, x : x + 4])
        np.testing.assert_array_equal(mirrored, patch[:, ::-1])
    np.testing.assert_array_equal(evaluate.patches(image, Recipe(6, 4), 1)[0], pixels[1:5, 1:5])
    model = Brightness()
    logits = model.logits(found).astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(evaluate.probabilities(model, [image], 10)[0], softmax.mean(0), rtol=1e-6)


def test_retrieval_agrees_with_a_plain_loop():
    random = np.random.default_rng(0)
    x = random.integers(0, 3, (30, 4)).astype(np.float32)  # with many ties
    labels = random.integers(0, 4, 30)
    labels[7] = 9  # the only one
    found = metrics.retrieval(metrics.Base(x, labels))
    for q in range(30):
        others = [i for i in range(30) if i != q]
        others.sort(key=lambda i: (((x[i] - x[q]) ** 2).sum(), i))
        hits = [labels[i] == labels[q] for i in others]
        assert found["P@1"][q] == hits[0]
        assert found["P@6"][q] == pytest.approx(sum(hits[:6]) / 6)
        precisions = [sum(hits[: r + 1]) / (r + 1) for r in range(29) if hits[r]]
        if precisions:
            assert found["AP"][q] == pytest.approx(np.mean(precisions))
        else:
            assert np.isnan(found["AP"][q])


def test_intervals_are_wilson_s():
    half = Share.of(5, 10)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    assert Share.of(0, 10).low == 0
    assert Share.of(10, 10).high == pytest.approx(1)


def test_filters_are_drawn(trained, tmp_path):
    file, _ = trained
    done = simsearch_("models", "--filters", tmp_path / "k.png", "-m", file)
    assert done.exit_code == 0, done.output
    assert "32 kernels" in done.output
    with Image.open(tmp_path / "k.png") as image:
        assert image.size == (4 * (2 + 16 * 7), 4 * (2 + 2 * 7))
    refused(simsearch_("models", "--filters", tmp_path / "k.gif"), "k.png")
    assert "convnet4" in simsearch_("models", "-m", file).stdout


def test_kernels_are_stretched_to_the_whole_range():
    kernels = np.zeros((2, 3, 2, 2), np.float32)
    kernels[0, 0, 0, 0], kernels[1] = -5, 7
    image = np.asarray(pictures.kernels(kernels, columns=2, scale=1, gap=1))
    assert image.shape == (4, 7, 3)
    assert image[1, 1].tolist() == [0, 255, 255]
    assert (image[1:3, 4:6] == 0).all()
    assert (image[0] == 255).all()


def test_curves_of_few_rows_are_drawn():
    step = {"event": "step", "epoch": 0.5, "top1": 0.1}
    epoch = {"event": "epoch", "epoch": 1, "top1": 0.2, "top5": 0.5}
    for rows_ in ([], [step], [step, epoch], [step] * 1000 + [epoch] * 3):
        assert pictures.curve(rows_).size == (720, 420)
    assert pictures.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert pictures.ticks(-3, 98) == [0, 20, 40, 60, 80]


def test_pixels_are_those_of_the_recipe(pics):
    found = [p for p in trainset.labelled([pics]) if p.label == "red"]
    data, failures = trainset.load(found, Recipe(24, 20), ("red",))
    assert not failures
    assert data.pixels.shape == (12, 24, 24, 3)
    gone = Picture(found[0].source, "red/gone.png", 1, 1, "red")
    data, failures = trainset.load([*found, gone], Recipe(24, 20), ("red",))
    assert len(data) == 12
    assert "gone.png" in failures[0][0]


def test_the_metric_objective_from_the_command_line(trained, tmp_path):
    file, pics = trained
    done = simsearch_("train", pics, "-o", tmp_path / "m.safetensors", "--from", file, "--objective", "metric", *QUICK)
    assert done.exit_code == 0, done.output
    card = models.find(str(tmp_path / "m.safetensors")).card
    assert card.training["settings"]["objective"] == "metric"
    refused(
        simsearch_("train", pics, "-o", tmp_path / "n.safetensors", "--set", "objective=triplet"), "triplet", "metric"
    )


def test_the_preset_for_adapting_asks_for_weights_to_adapt(pics, tmp_path):
    arguments = ("train", pics, "--preset", "adapt", "--epochs", 1, "--set", "image_size=63", "--held-out", 0)
    done = simsearch_(*arguments, "-o", tmp_path / "w.safetensors")
    assert done.exit_code == 0, done.output
    assert "note: preset adapt is meant for weights to begin with: --from" in done.output
    assert fit.prepare([str(pics)], tmp_path / "x", preset="adapt", start="default").start == models.DEFAULT


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


@pytest.mark.parametrize(("network", "side"), [("alexnet", 62), ("alexnet", 2000), ("lenet5", 28), ("convnet4", 14)])
def test_inputs_that_a_network_cannot_take(pics, tmp_path, network, side):
    arguments = ("train", pics, "-o", tmp_path / "w.safetensors", "--model", network, "--set", f"image_size={side}")
    refused(simsearch_(*arguments), f"{network} cannot take {side} pixels")


def test_gpus_for_several_processes(pics, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(fit, "choose_device", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes want a GPU each, and there are 1"):
        fit.fit(job(pics, tmp_path / "w.safetensors", device="cuda"))
    with pytest.raises(UsageError, match="2 processes cannot share cuda:1"):
        fit.fit(job(pics, tmp_path / "w.safetensors", device="cuda:1"))


def test_statistics_of_colour_are_those_of_all_pixels_without_holding_them_at_once():
    pixels = np.random.default_rng(0).integers(0, 256, (600, 96, 96, 3), dtype=np.uint8)
    pixels[..., 1] //= 2
    tracemalloc.start()
    found = Colour.of(pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * pixels.nbytes
    every = pixels.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found.mean, every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.deviation, every.std(0), rtol=1e-6)
    axes = found.axes.double().numpy()
    np.testing.assert_allclose(axes @ axes.T, np.cov(every.T), rtol=1e-4, atol=1e-2)


def test_decoding_claims_its_space_at_once(pics, tmp_path, monkeypatch):
    """Or a full disk would kill the process in the middle, by a signal that says nothing."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    done = simsearch_("train", pics, "-o", tmp_path / "w.safetensors", *QUICK)
    refused(done, "pixels.npy: No space left on device")


def test_a_curve_that_cannot_be_drawn_hides_no_other_error(pics, tmp_path, monkeypatch):
    def full(path, data):
        raise SimsearchError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(fit, "write_atomically", full)
    with pytest.raises(TrainingInterruptedError):
        fit.fit(job(pics, tmp_path / "w.safetensors"), stop=lambda: True)


def test_weights_that_cannot_be_written_leave_nothing(trained, tmp_path, monkeypatch):
    card, tensors = weights.read_card(trained[0]), weights.read_tensors(trained[0])

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises((SimsearchError, OSError), match="No space left"):
        weights.write(tmp_path / "w.safetensors", card, tensors, {})
    assert not list(tmp_path.iterdir())


def test_signals_before_the_first_step_interrupt_at_once():
    with pytest.raises(KeyboardInterrupt), console.training():
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with console.training() as (_, _, stop):
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # torchrun passes on what the terminal has sent already
        assert stop()
        now += 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
