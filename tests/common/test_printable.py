"""Text that strangers wrote, on terminals."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simsearch.common.printable import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 日本 👩", "plain ünïcode 日本 👩"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\nb\r\tc\x00\x7f", r"a\nb\r\tc\x00\x7f"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("\u2066\u2069\u200f\ufeff", r"\u2066\u2069\u200f\ufeff"),
        ("caf\udce9 \udc9b", r"caf\xe9 \x9b"),
        ("\ud800", r"\ud800"),
        ("日本\u3000語\xa0👩\u200d🔬", "日本\u3000語\xa0👩\u200d🔬"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
    ],
)
def test_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_stay_lines() -> None:
    assert printable_lines("a\n\x1bb\n") == "a\n\\x1bb\n"


@given(text=st.text(st.characters()))
def test_nothing_unprintable_is_left(text: str) -> None:
    for shown in (printable(text), printable_lines(text).replace("\n", "")):
        shown.encode()
        assert not {unicodedata.category(c) for c in shown if c not in "\u200c\u200d"} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
