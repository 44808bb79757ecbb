"""Batches of the training set."""

import numpy as np

from simsearch.batches import order_of
from simsearch.presets import TrainConfig


def test_images_of_label_come_together_once():
    labels = np.random.default_rng(0).integers(0, 5, 103)
    config = TrainConfig(objective="metric")
    order = order_of(labels, config, 3)
    assert sorted(order) == list(range(103))
    assert (labels[order[1:]] == labels[order[:-1]]).mean() > 0.6
    assert (order_of(labels, config, 4) != order).any()
