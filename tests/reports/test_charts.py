"""Charts of training."""

import numpy as np

from simsearch.reports import charts


def test_kernels_are_stretched_to_whole_range():
    kernels = np.zeros((2, 3, 2, 2), np.float32)
    kernels[0, 0, 0, 0], kernels[1] = -5, 7
    image = np.asarray(charts.kernels(kernels, columns=2, scale=1, gap=1))
    assert image.shape == (4, 7, 3)
    assert image[1, 4].tolist() == [0, 255, 255]
    assert (image[1:3, 1:3] == 0).all()
    assert (image[0] == 255).all()


def test_kernels_of_one_kind_are_neighbours():
    random = np.random.default_rng(0)
    y, x = np.mgrid[:11, :11] / 11
    stripes = [np.sin(9 * (x * np.cos(a) + y * np.sin(a))) for a in (0.1, 0.7, 1.3)]
    grey = [np.stack([stripe] * 3) for stripe in stripes]
    red, blue = (np.zeros((3, 11, 11)) for _ in range(2))
    red[0], blue[2] = 1 - (x - 0.5) ** 2 - (y - 0.5) ** 2, 1 - (x - 0.5) ** 2 - (y - 0.5) ** 2
    noise = list(random.normal(0, 1, (2, 3, 11, 11)))
    kinds = [grey[0], noise[0], red, grey[1], blue, noise[1], grey[2]]
    order = charts.sorted_kernels(np.array(kinds, np.float32)).tolist()
    assert set(order[:3]) == {0, 3, 6}
    assert set(order[3:5]) == {2, 4}
    assert set(order[5:]) == {1, 5}
    assert sorted(charts.sorted_kernels(np.ones((4, 1, 5, 5), np.float32)).tolist()) == [0, 1, 2, 3]


def colours_of(image):
    return {tuple(int(value) for value in colour) for colour in np.asarray(image).reshape(-1, 3)}


def test_bands_are_drawn_pale_behind_lines():
    points = [(1.0, 50.0), (2.0, 60.0), (3.0, float("nan"))]
    plain = charts.plot({"a": points}, "t", "x", "y")
    banded = charts.plot({"a": points}, "t", "x", "y", bands={"a": [(1.0, 40.0, 55.0), (2.0, 50.0, 70.0)]})
    line = tuple(bytes.fromhex(charts.LINES[0][1:]))
    pale = tuple(round(255 + (value - 255) * 48 / 255) for value in line)
    assert line in colours_of(plain) & colours_of(banded)
    assert any(abs(np.array(colour) - pale).max() <= 1 for colour in colours_of(banded))
    assert not any(abs(np.array(colour) - pale).max() <= 1 for colour in colours_of(plain) if len(set(colour)) == 3)
    one = charts.plot({"a": [(0.25, 100.0)]}, "t", "x", "y", across=(0.0, 1.0), lowest=0.0)
    assert one.size == plain.size == (1440, 840)


def test_labels_of_ticks_have_equal_decimals():
    assert list(charts._labelled([0, 0.25, 0.5]).values()) == ["0.00", "0.25", "0.50"]
    assert list(charts._labelled([0, 5000, 10000]).values()) == ["0", "5,000", "10,000"]
    names = [f"a rather long name {number}" for number in range(12)]
    rows = charts._legend_rows(names, 640)
    assert [name for row in rows for name in row] == names
    assert len(rows) == 4


def test_curves_of_few_rows_are_drawn():
    step = {"event": "step", "epoch": 0.5, "top1": 0.1}
    epoch = {"event": "epoch", "epoch": 1, "top1": 0.2, "top5": 0.5}
    for rows_ in ([], [step], [step, epoch], [step] * 1000 + [epoch] * 3):
        assert charts.curve(rows_).size == (1440, 840)
    assert charts.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(-3, 98) == [0, 20, 40, 60, 80]
