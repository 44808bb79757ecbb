"""Evaluation of an index's searches."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import simsearch
from simsearch.cli.main import main
from simsearch.cli.params import Weighted
from simsearch.errors import UsageError
from simsearch.evaluation import retrieval
from simsearch.images.sources import labelled
from simsearch.search.feedback import blend, weighted


def test_an_index_is_evaluated_as_it_is_searched(index, colours):
    with simsearch.open(index, model=colours) as engine:
        verdict = retrieval.evaluate_retrieval(engine)
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


def test_foreign_images_are_never_left_out(index, colours, photos):
    with simsearch.open(index, model=colours) as engine:
        verdict = retrieval.evaluate_retrieval(engine, labelled.list_labelled([photos]))
    assert verdict.scores["P@1"].value == 1


def test_queries_of_unknown_labels_are_left_out(index, colours, photos, tmp_path):
    for name in ("violet", "grey"):
        shutil.copytree(photos / "rose", tmp_path / "others" / name)
    unknown = labelled.list_labelled([tmp_path / "others"])
    with simsearch.open(index, model=colours) as engine:
        with pytest.raises(UsageError, match=r"no item of .* has one of the labels of the queries: grey, violet"):
            retrieval.evaluate_retrieval(engine, unknown)
        known = labelled.list_labelled([photos])
        report, expected = (retrieval.evaluate_retrieval(engine, given) for given in ([*known, *unknown], known))
    assert (report.unknown, expected.unknown) == (12, 0)
    assert report.to_dict() == {**expected.to_dict(), "unknown": 12}


def test_exact_search_has_recall_one(index, colours):
    with simsearch.open(index, model=colours) as engine:
        found = retrieval.measure_recall(engine, 5, 10)
    assert found.kind == "exact"
    assert tuple(found.recall) == (1, 1, 1)


def test_recall_notices_what_is_missed(index, colours, monkeypatch):
    with simsearch.open(index, model=colours) as engine:
        whole = engine.search_by_id

        def careless(number, k, **options):
            return whole(number, k, **options) if options.get("exact") else whole(number, k + 2, **options)[2:]

        monkeypatch.setattr(engine, "search_by_id", careless)
        assert retrieval.measure_recall(engine, 5, 10).recall.value == pytest.approx(0.6)


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

    def weight(text):
        return Weighted().convert(text, None, None)

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
