"""Charts of training."""

import numpy as np

from simsearch.reports import charts


def test_kernels_are_stretched_to_whole_range():
    kernels = np.zeros((2, 3, 2, 2), np.float32)
    kernels[0, 0, 0, 0], kernels[1] = -5, 7
    image = np.asarray(charts.kernels(kernels, columns=2, scale=1, gap=1))
    assert image.shape == (4, 7, 3)
    assert image[1, 1].tolist() == [0, 255, 255]
    assert (image[1:3, 4:6] == 0).all()
    assert (image[0] == 255).all()


def test_curves_of_few_rows_are_drawn():
    step = {"event": "step", "epoch": 0.5, "top1": 0.1}
    epoch = {"event": "epoch", "epoch": 1, "top1": 0.2, "top5": 0.5}
    for rows_ in ([], [step], [step, epoch], [step] * 1000 + [epoch] * 3):
        assert charts.curve(rows_).size == (720, 420)
    assert charts.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(-3, 98) == [0, 20, 40, 60, 80]
