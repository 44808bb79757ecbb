"""The hint of an error is shown in its traceback."""

from __future__ import annotations

import copy
import pickle
import traceback

from simsearch.errors import SimsearchError, UsageError


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_traceback_shows_the_hint() -> None:
    assert shown(UsageError("it is wrong", hint="make it right")).endswith("it is wrong\nhint: make it right\n")
    assert "hint" not in shown(UsageError("it is wrong"))


def test_hint_in_the_message_is_not_repeated() -> None:
    assert shown(SimsearchError("it needs x: pip install x", hint="pip install x")).count("pip install x") == 1


def test_hint_of_the_shell() -> None:
    error = SimsearchError("there is no GPU", hint='device="cpu"', shell_hint="--device cpu")
    assert (error.hint, error.shell_hint) == ('device="cpu"', "--device cpu")
    assert shown(error).endswith('hint: device="cpu"\n')
    assert SimsearchError("it is wrong", hint="make it right").shell_hint == "make it right"


def test_copies_show_it_once() -> None:
    error = UsageError("it is wrong", hint="make it right")
    for same in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert shown(same) == shown(error)
        assert same.hint == "make it right"
