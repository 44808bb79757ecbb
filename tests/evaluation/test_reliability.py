"""How often matches of a similarity are right."""

import numpy as np
import pytest

import simsearch
from simsearch.evaluation import reliability, retrieval
from simsearch.evaluation.metrics import LabelledFeatures
from simsearch.search.similarity import Scale


def test_curve_of_known_matches():
    """Four queries at known distances from three items each, some with their label."""
    base = LabelledFeatures(np.array([[0.0], [2.0], [9.0]]), np.array([0, 0, 1]))
    queries = LabelledFeatures(np.array([[0.0], [9.0]]), np.array([0, 0]))
    nearest = reliability.NearestMatches(base, queries)
    nearest.see(slice(0, 2), np.array([[0, 1, 2], [2, 1, 0]]))
    found = nearest.report(Scale(4.0, 10.0))  # similarities 1, 0.75, 1/12 and 1, 1/4, 1/12
    words = {part.name: (part.matches, part.right and part.right.value) for part in found.words}
    assert words == {
        "copy": (3, pytest.approx(2 / 3)),
        "close": (0, None),
        "similar": (0, None),
        "weak": (3, pytest.approx(2 / 3)),
    }
    assert found.right == pytest.approx((1 + 0.75 + 0.25 + 1 / 12) / 4)
    assert found.wrong == pytest.approx((1 + 1 / 12) / 2)
    assert [part.matches for part in found.curve] == [2, 0, 1, 0, 0, 0, 0, 1, 0, 2]


def test_matches_are_those_of_a_search(index, colours):
    with simsearch.open(index, model=colours) as engine:
        found = retrieval.evaluate_retrieval(engine).reliability
        matches = [(item, match) for item in range(1, 25) for match in engine.search_by_id(item, 6)]
        right = [match.similarity for item, match in matches if engine.item(item).label == match.label]
    assert found.queries == 24
    assert sum(part.matches for part in found.words) == sum(part.matches for part in found.curve) == len(matches)
    assert found.right == pytest.approx(np.mean(right))
    for word, part in zip(("copy", "close", "similar", "weak"), found.words, strict=True):
        assert part.matches == sum(match.word == word for _, match in matches)
    assert set(found.to_dict()) == {"queries", "k", "mean_similarity", "words", "curve"}
