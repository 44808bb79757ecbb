"""Numbers written in full."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simsearch.common.numbers import stored_integer, written_number


@pytest.mark.parametrize(
    "text",
    ["0", "7", "-7", "1.5", "-0.001", "0.00001", "1.0", "0.1", "123456789.25", "18446744073709551615", "0.000123"],
)
def test_numbers_in_full(text: str) -> None:
    number = written_number(text)
    assert number == (float(text) if "." in text else int(text))
    assert type(number) is (float if "." in text else int)


@pytest.mark.parametrize(
    "text",
    [
        "007",
        "1.10",
        "12E4",
        "1_000",
        "1.",
        ".5",
        "+1",
        "-0",
        "00",
        "1.00",
        "0x1",
        "nan",
        "inf",
        "٧",
        "1,5",
        "0.10",
        "1e5",
        "0.1234567890123456789",
        "-00.1",
        "",
        " 1",
    ],
)
def test_other_text(text: str) -> None:
    assert written_number(text) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_python_floats_are_kept(number: float) -> None:
    text = repr(number)
    assert written_number(text) == (None if "e" in text else number)


@given(st.integers(-(10**9), 10**9), st.integers(0, 9))
def test_decimals_are_numbers_once(digits: int, places: int) -> None:
    """Of the spellings of a decimal number, only the shortest is one."""
    text = f"{digits / 10**places:.{places}f}" if places else str(digits)
    shortest = text.rstrip("0").rstrip(".") if places else text
    usual = f"{shortest}.0" if places and "." not in shortest else shortest
    found = written_number(text)
    assert found == (float(text) if text in {usual, shortest} and text not in {"-0"} else None)


def test_integers_beyond_64_bits_are_text() -> None:
    assert [stored_integer(n) for n in (2**63 - 1, 2**63, -(2**63))] == [2**63 - 1, str(2**63), -(2**63)]
