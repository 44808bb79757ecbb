"""JSON from strangers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simsearch.common.outside_json import DEPTH, check_depth, parse, parse_lenient


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (nested(DEPTH + 1), "nested more than 64"),
        (nested(100_000), "nested more than 64"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested more than 64"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is given twice"),
        ("NaN", "NaN is not a valid number"),
        ("[-Infinity]", "-Infinity is not a valid number"),
        ("1e999", "1e999 is too large"),
        ("9" * 5000, "digits"),
        ("[1", "delimiter"),
        (b"\xff", "decode"),
        ('"' + "x" * 200 + '"', "longer than 100 bytes"),
    ],
)
def test_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text, 100 if "longer" in reason else 1 << 20)


def test_lenient_takes_what_others_wrote() -> None:
    assert parse_lenient('{"a": NaN, "b": [1e999, -Infinity], "c": 1, "c": 2}') == {
        "a": None,
        "b": [None, None],
        "c": 2,
    }
    with pytest.raises(ValueError, match="nested"):
        parse_lenient(nested(DEPTH + 1))


def test_depth_counts_levels_not_brackets() -> None:
    assert parse(nested(DEPTH)) is not None
    assert parse(json.dumps([[1], [2]] * 500)) == [[1], [2]] * 500
    assert parse(json.dumps("[" * 500)) == "[" * 500
    check_depth({"a": [{"b": 1}]}, 3)
    with pytest.raises(ValueError, match="more than 2 levels"):
        check_depth({"a": [{"b": 1}]}, 2)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=VALUES)
def test_everything_else_is_as_in_json(value: Any) -> None:
    text = json.dumps(value)
    assert parse(text) == parse(text.encode()) == parse_lenient(text) == value
