"""Unknown options of public functions."""

import pytest

from simsearch.common.keywords import check_keywords
from simsearch.errors import UsageError


@check_keywords
def brew(tea: str, *, minutes: int = 3) -> str:
    """Brews."""
    return f"{tea}, {minutes}"


def test_known_options_are_passed_on() -> None:
    assert (brew("green"), brew(tea="green", minutes=2)) == ("green, 3", "green, 2")
    assert (brew.__name__, brew.__doc__) == ("brew", "Brews.")


@pytest.mark.parametrize(("option", "hint"), [("minuts", "did you mean minutes?"), ("sugar", "one of tea, minutes")])
def test_unknown_option(option: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"brew has no option '{option}'") as raised:
        brew("green", **{option: 1})
    assert raised.value.hint == hint


def test_missing_argument_is_pythons_error() -> None:
    with pytest.raises(TypeError, match="tea"):
        brew()  # type: ignore[call-arg]
