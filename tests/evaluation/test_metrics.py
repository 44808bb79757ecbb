"""Retrieval metrics agree with scikit-learn and torchmetrics."""

import numpy as np
import pytest

from simsearch.common import intervals
from simsearch.errors import UsageError
from simsearch.evaluation import metrics
from simsearch.evaluation.metrics import LabelledFeatures


def some(n=300, dimension=24, classes=7, seed=0):
    random = np.random.default_rng(seed)
    return LabelledFeatures(random.normal(size=(n, dimension)).astype(np.float32), random.integers(0, classes, n))


def squared(a, b):
    return ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(2)


def test_leave_one_out_agrees_with_scikit_learn():
    from sklearn.metrics import average_precision_score

    base = some()
    found = metrics.retrieval(base)
    distances = squared(base.features, base.features)
    for number in range(len(base.labels)):
        others = np.delete(np.arange(len(base.labels)), number)
        relevant = base.labels[others] == base.labels[number]
        expected = average_precision_score(relevant, -distances[number, others])
        assert found["AP"][number] == pytest.approx(expected, abs=1e-9)
        order = np.argsort(distances[number, others], kind="stable")
        for k in metrics.PRECISIONS:
            assert found[f"P@{k}"][number] == pytest.approx(relevant[order][:k].mean())


def test_queries_agree_with_torchmetrics():
    import torch
    from torchmetrics.functional import retrieval as reference

    base, asked = some(), some(40, seed=1)
    found = metrics.retrieval(base, asked)
    distances = squared(asked.features, base.features)
    for number in range(len(asked.labels)):
        scores = torch.from_numpy(1 / (1 + distances[number]))  # torchmetrics wants them positive
        target = torch.from_numpy(base.labels == asked.labels[number])
        assert found["AP"][number] == pytest.approx(
            float(reference.retrieval_average_precision(scores, target)), abs=1e-6
        )
        assert found["R-precision"][number] == pytest.approx(float(reference.retrieval_r_precision(scores, target)))
        for k in metrics.RECALLS:
            assert found[f"recall@{k}"][number] == pytest.approx(
                float(reference.retrieval_recall(scores, target, top_k=k))
            )
            assert found[f"hit@{k}"][number] == float(reference.retrieval_hit_rate(scores, target, top_k=k))


def test_knn_agrees_with_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    base, asked = some(), some(200, seed=1)
    for k in (1, 3, 5):
        found = metrics.retrieval(base, asked, neighbours=k)["knn"]
        reference = KNeighborsClassifier(k).fit(base.features, base.labels)
        votes = reference.predict_proba(asked.features)
        clear = (votes == votes.max(1, keepdims=True)).sum(1) == 1  # of ties scikit-learn takes the lower label
        assert clear.sum() > 50
        assert (found[clear] == (reference.predict(asked.features) == asked.labels)[clear]).all()


def test_ties_go_to_the_lower_row():
    base = LabelledFeatures(np.zeros((50, 4), np.float16), np.array([0] * 25 + [1] * 25))
    found = metrics.retrieval(base)
    assert (found["P@10"][:25] == 1).all()
    assert (found["P@10"][25:] == 0).all()


def test_first_places_are_exact_far_from_origin():
    random = np.random.default_rng(0)
    features = 1000 + random.normal(size=(200, 64)).astype(np.float32) * 0.01
    base = LabelledFeatures(features, random.integers(0, 3, 200))
    distances = squared(features, features)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, 1, kind="stable")[:, :10]
    expected = (base.labels[order] == base.labels[:, None]).mean(1)
    assert np.allclose(metrics.retrieval(base)["P@10"], expected)


def test_single_label_is_undefined_and_left_out():
    base = LabelledFeatures(np.arange(5, dtype=np.float32)[:, None], np.array([0, 0, 1, 0, 0]))
    found = metrics.retrieval(base)
    assert np.isnan(found["AP"][2])
    assert found["P@1"][2] == 0
    assert np.isfinite(intervals.with_intervals(found)["AP"].value)


def test_intervals_cover_the_mean():
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        _, low, high = intervals.with_intervals({"x": random.random(60)}, seed)["x"]
        inside += low <= 0.5 <= high
    assert 88 <= inside <= 100


def test_base_refuses_what_does_not_fit():
    with pytest.raises(UsageError):
        LabelledFeatures(np.zeros((3, 2), np.float32), np.zeros(4, np.int64))
    with pytest.raises(UsageError):
        metrics.retrieval(some(10, 3), some(10, 4))
