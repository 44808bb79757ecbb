"""Batches of the training set."""

import numpy as np

from simsearch.training.batches import epoch_order
from simsearch.training.config import TrainConfig


def test_images_of_label_come_together_once():
    labels = np.random.default_rng(0).integers(0, 5, 103)
    config = TrainConfig(objective="metric")
    order = epoch_order(labels, config, 3)
    assert sorted(order) == list(range(103))
    assert (labels[order[1:]] == labels[order[:-1]]).mean() > 0.6
    assert (epoch_order(labels, config, 4) != order).any()
