"""Robustness of features to changed images."""

import numpy as np
import pytest
from PIL import Image

import simsearch
from simsearch.errors import UsageError
from simsearch.evaluation import robustness
from simsearch.images import perturb


@pytest.mark.parametrize("name", list(perturb.CHANGES))
def test_every_change_grows_with_its_strength(name):
    image = Image.effect_noise((96, 80), 60).resize((96, 80)).convert("RGB")
    change, strengths, _ = perturb.CHANGES[name]
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
    assert robustness.draw(found).size == (3520, 528)
    with pytest.raises(UsageError, match="no change"):
        robustness.measure([], np.zeros(0, np.int64), np.zeros((1, 2)), robustness.hashes, changes=["wave"])
