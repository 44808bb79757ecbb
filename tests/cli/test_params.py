"""Parameter types of the command line."""

from pathlib import Path

import click
import pytest

from simsearch.cli.params import ByteSize, Crop, KeyValue, QueryImage, Root, Weighted
from simsearch.errors import UsageError


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (QueryImage(), "id:12", "id:12"),
        (QueryImage(), "a photo.jpg", "a photo.jpg"),
        (Weighted(), "id:7=-0.5", ("id:7", -0.5)),
        (Weighted(), "x=y.jpg", ("x=y.jpg", 1.0)),
        (Crop(), "1, 2,30,40", (1, 2, 30, 40)),
        (Crop(), "0,50%,50%,50%", (0, "50%", "50%", "50%")),
        (ByteSize(), "500M", 500 << 20),
        (ByteSize(), "1.5 GiB", 3 << 29),
        (ByteSize(), "12", 12),
        (KeyValue(), "M=32", ("M", 32)),
        (KeyValue(), "metric=L2", ("metric", "L2")),
        (Root(), "/old=b=/new", ("/old=b", "/new")),
        (Root(), "new", ("", str(Path("new").absolute()))),
    ],
)
def test_texts_that_are_converted(kind, text, value):
    assert kind.convert(text, None, None) == value
    assert kind.convert(value, None, None) == value  # a default is converted as well


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (QueryImage(), "id:x"),
        (QueryImage(), "id:"),
        (Weighted(), "id:x=2"),
        (Crop(), "1,2,3"),
        (Crop(), "a,b,c,d"),
        (ByteSize(), "lots"),
        (ByteSize(), "5P"),
        (KeyValue(), "M"),
        (KeyValue(), "=3"),
        (KeyValue(), "M="),
    ],
)
def test_texts_that_are_refused_by_name(kind, text):
    with pytest.raises(UsageError, match=r"'.*' is "):
        kind.convert(text, None, None)


def test_errors_name_the_option():
    option = click.Option(["-m", "--memory"], type=ByteSize())
    with pytest.raises(UsageError, match=r"^--memory 'x' is"):
        option.type.convert("x", option, None)


def test_weight_of_a_file_that_is_no_number(tmp_path):
    (tmp_path / "cat.jpg").touch()
    with pytest.raises(UsageError, match="the weight 'x' is not a number"):
        Weighted().convert(f"{tmp_path}/cat.jpg=x", None, None)
