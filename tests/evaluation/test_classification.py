"""Evaluation of classifiers."""

import numpy as np
import pytest
from PIL import Image

from simsearch.common.intervals import Interval
from simsearch.errors import UsageError
from simsearch.evaluation import classification, metrics
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import labelled
from simsearch.models import classify
from simsearch.models.training_record import TrainingRecord, digest_of


class Brightness:
    """Guesses by the mean brightness of a 4 x 4 patch: 0 to 255 in three steps."""

    name, classes, labels = "brightness", ("dark", "grey", "light"), ("d", "g", "l")
    recipe = Preprocessing(6, 4)

    def logits(self, pixels):
        mean = pixels.reshape(len(pixels), -1).mean(1)
        return -np.abs(mean[:, None] - np.array([0.0, 127.0, 255.0])).astype(np.float32) / 50


def test_errors_count_by_name_or_training_label(tmp_path):
    levels = {"dark": 0, "d": 40, "light": 250, "g": 250, "unheard": 3}
    for label, level in levels.items():
        (tmp_path / label).mkdir()
        Image.new("RGB", (6, 6), (level,) * 3).save(tmp_path / label / "x.png")
    (tmp_path / "d" / "broken.png").write_bytes((tmp_path / "d" / "x.png").read_bytes()[:50])
    verdict = classification.evaluate_classifier(Brightness(), labelled.list_labelled([tmp_path]))
    assert (verdict.images, verdict.unknown, verdict.failed) == (4, 1, 1)
    assert verdict.top1_error.value == 0.25  # the light one called g
    assert verdict.top5_error.value == 0
    assert verdict.trained_on is None
    seen = (tmp_path / "dark" / "x.png").read_bytes()
    record = TrainingRecord.of([digest_of(seen)], [], TrainingRecord())
    known = classification.evaluate_classifier(Brightness(), labelled.list_labelled([tmp_path]), record=record)
    assert known.trained_on == 1
    with pytest.raises(UsageError, match="none of the labels is a class of brightness: unheard"):
        classification.evaluate_classifier(
            Brightness(), [p for p in labelled.list_labelled([tmp_path]) if p.label == "unheard"]
        )


def test_ten_crops_are_corners_centre_mirrors():
    image = Image.fromarray(np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3))
    pixels = np.asarray(image)
    found = classify.patches(image, Preprocessing(6, 4), 10)
    corners = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    for patch, mirrored, (y, x) in zip(found[:5], found[5:], corners, strict=True):
        np.testing.assert_array_equal(patch, pixels[y : y + 4, x : x + 4])
        np.testing.assert_array_equal(mirrored, patch[:, ::-1])
    np.testing.assert_array_equal(classify.patches(image, Preprocessing(6, 4), 1)[0], pixels[1:5, 1:5])
    model = Brightness()
    logits = model.logits(found).astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(classify.probabilities(model, [image], 10)[0], softmax.mean(0), rtol=1e-6)


def test_retrieval_agrees_with_a_plain_loop():
    random = np.random.default_rng(0)
    x = random.integers(0, 3, (30, 4)).astype(np.float32)  # with many ties
    labels = random.integers(0, 4, 30)
    labels[7] = 9  # the only one
    found = metrics.retrieval(metrics.LabelledFeatures(x, labels))
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
    half = Interval.of_proportion(5, 10)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    assert Interval.of_proportion(0, 10).low == 0
    assert Interval.of_proportion(10, 10).high == pytest.approx(1)
