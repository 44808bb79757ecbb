"""Metrics against scikit-learn and torchmetrics on random data, and the verbs that measure an index."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import simsearch
from simsearch import evaluate_search, metrics, robustness
from simsearch.cli import main
from simsearch.errors import UsageError
from simsearch.metrics import Base
from simsearch.queries import weight
from simsearch.search import blend, weighted


def some(n=300, dimension=24, classes=7, seed=0):
    random = np.random.default_rng(seed)
    return Base(random.normal(size=(n, dimension)).astype(np.float32), random.integers(0, classes, n))


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
    base = Base(np.zeros((50, 4), np.float16), np.array([0] * 25 + [1] * 25))
    found = metrics.retrieval(base)
    assert (found["P@10"][:25] == 1).all()
    assert (found["P@10"][25:] == 0).all()


def test_first_places_are_exact_far_from_the_origin():
    random = np.random.default_rng(0)
    features = 1000 + random.normal(size=(200, 64)).astype(np.float32) * 0.01
    base = Base(features, random.integers(0, 3, 200))
    distances = squared(features, features)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, 1, kind="stable")[:, :10]
    expected = (base.labels[order] == base.labels[:, None]).mean(1)
    assert np.allclose(metrics.retrieval(base)["P@10"], expected)


def test_a_label_of_its_own_is_undefined_and_left_out():
    base = Base(np.arange(5, dtype=np.float32)[:, None], np.array([0, 0, 1, 0, 0]))
    found = metrics.retrieval(base)
    assert np.isnan(found["AP"][2])
    assert found["P@1"][2] == 0
    assert np.isfinite(metrics.estimates(found)["AP"].value)


def test_intervals_cover_the_mean():
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        _, low, high = metrics.estimates({"x": random.random(60)}, seed)["x"]
        inside += low <= 0.5 <= high
    assert 88 <= inside <= 100


def test_base_refuses_what_does_not_fit():
    with pytest.raises(UsageError):
        Base(np.zeros((3, 2), np.float32), np.zeros(4, np.int64))
    with pytest.raises(UsageError):
        metrics.retrieval(some(10, 3), some(10, 4))


@pytest.fixture
def index(photos, tmp_path, colours):
    simsearch.build(photos, tmp_path / "index", colours).close()
    return tmp_path / "index"


def test_an_index_is_evaluated_as_it_is_searched(index, colours):
    with simsearch.open(index, model=colours) as engine:
        verdict = evaluate_search.evaluate(engine)
        found = engine.search_many(list(range(1, 25)), 6)
        labels = {number: engine.item(number).label for number in range(1, 25)}
    shares = [np.mean([labels[m.id] == labels[n] for m in matches]) for n, matches in enumerate(found, 1)]
    assert verdict.scores["P@6"].value == pytest.approx(np.mean(shares))
    assert verdict.count == verdict.items == 24
    assert {label: count for label, (count, _) in verdict.classes.items()} == dict.fromkeys(
        ("amber", "blue", "green", "rose"), 6
    )
    plain = verdict.to_dict()
    for name in ("P@1", "P@5", "P@6", "P@10", "R-precision", "mAP", "knn_accuracy"):
        assert plain[name]["low"] <= plain[name]["value"] <= plain[name]["high"]


def test_pictures_from_elsewhere_are_never_left_out(index, colours, photos):
    from simsearch import trainset

    with simsearch.open(index, model=colours) as engine:
        verdict = evaluate_search.evaluate(engine, trainset.labelled([photos]))
    assert verdict.scores["P@1"].value == 1


def test_exact_search_has_recall_one(index, colours):
    with simsearch.open(index, model=colours) as engine:
        found = evaluate_search.recall(engine, 5, 10)
    assert found.kind == "exact"
    assert found.recall == (1, 1, 1)


def test_recall_notices_what_is_missed(index, colours, monkeypatch):
    with simsearch.open(index, model=colours) as engine:
        whole = engine.search_by_id

        def careless(number, k, **options):
            return whole(number, k, **options) if options.get("exact") else whole(number, k + 2, **options)[2:]

        monkeypatch.setattr(engine, "search_by_id", careless)
        assert evaluate_search.recall(engine, 5, 10).recall.value == pytest.approx(0.6)


@pytest.mark.parametrize("name", list(robustness.CHANGES))
def test_every_change_changes_and_more_is_farther(name):
    image = Image.effect_noise((96, 80), 60).resize((96, 80)).convert("RGB")
    change, strengths, _ = robustness.CHANGES[name]
    made = [change(image, strength, np.random.default_rng(0)) for strength in strengths]
    again = change(image, strengths[-1], np.random.default_rng(0))
    assert np.array_equal(np.asarray(made[-1]), np.asarray(again))
    assert all(
        np.asarray(one).shape != np.asarray(image).shape or (np.asarray(one) != np.asarray(image)).any() for one in made
    )


def test_robustness_of_an_index(index, colours):
    with simsearch.open(index, model=colours) as engine:
        found = robustness.of_index(engine, 12, ("blur", "flip"), hash_too=True)
    assert set(found) == {"colours", "perceptual hash"}
    blur = [point for point in found["colours"] if point.change == "blur"]
    assert blur[0].first.value == 1
    assert blur[0].distance < blur[-1].distance
    assert robustness.draw(found).size == (1760, 264)
    with pytest.raises(UsageError, match="no change"):
        robustness.measure([], np.zeros(0, np.int64), np.zeros((1, 2)), robustness.hashes, changes=["wave"])


def test_from_the_command_line(photos, tmp_path, tiny_weights):
    def run(*words):
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.stdout

    index = tmp_path / "index"
    run("build", photos, "-i", index, "--model", tiny_weights)
    page = tmp_path / "report.html"
    found = json.loads(run("eval", "search", "-i", index, "--format", "json", "--html", page))
    assert set(found["mAP"]) == {"value", "low", "high"}
    assert page.read_text().count("<section") == 20
    assert '<th scope="row" dir="auto">amber</th><td>6</td>' in page.read_text()
    assert "mAP" in run("eval", "search", "-i", index, "--per-class", "--queries", photos)
    assert json.loads(run("eval", "recall", "-i", index, "-n", 5, "--format", "json"))["recall"]["value"] == 1
    plot = tmp_path / "curves.png"
    assert "jpeg" in run("eval", "robustness", "-i", index, "-n", 4, "--change", "jpeg", "--hash", "--plot", plot)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_weights_of_feedback(index, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=2").write_bytes(b"")
    assert weight("cat.jpg=2") == ("cat.jpg", 2.0)
    assert weight("id:7=0.5") == ("id:7", 0.5)
    assert weight("a=2") == ("a=2", 1.0)
    assert weight("https://host/?n=2") == ("https://host/?n=2", 1.0)
    query, one = np.zeros(2, np.float32), np.ones((1, 2), np.float32)
    assert blend(query, one, one[:0], [3.0]) == pytest.approx([0.75, 0.75])
    assert blend(query + 4, one[:0], one, [], [2.0]) == pytest.approx([7, 7])
    for bad in (0, -1, np.nan, "2", True):
        with pytest.raises(UsageError, match="weight"):
            weighted([("cat.jpg", bad)])
    with simsearch.open(index, model=colours) as engine:
        light = engine.search_by_id(1, 3, plus=[(9, 0.01)])
        heavy = engine.search_by_id(1, 3, plus=[(9, 100.0)])
        assert [m.id for m in engine.search_by_id(1, 3, plus=[9])] == [
            m.id for m in engine.search_by_id(1, 3, plus=[(9, 1)])
        ]
        plain = engine.search_by_id(9, 1)
    assert heavy[0].distance == pytest.approx(plain[0].distance, abs=0.05)
    assert [m.id for m in light] != [m.id for m in heavy]
