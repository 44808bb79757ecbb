"""The hint of an error is shown in its traceback."""

from __future__ import annotations

import ast
import copy
import pickle
import re
import traceback
from pathlib import Path

import simsearch
from simsearch.errors import SimsearchError, UsageError

PACKAGE = Path(simsearch.__file__).parent


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
    again = UsageError("x.png: it is wrong", **error.hints)
    assert (again.hint, again.shell_hint) == (error.hint, error.shell_hint)


IN_THE_SHELL = re.compile(r"(?<![\w-])--?[a-z]|(simsearch |`)(build|push|remove|train|tune)\b")
"""An option or a command."""


def texts(node: ast.AST) -> str:
    """Returns all texts in an expression, one after the other."""
    return " ".join(each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and type(each.value) is str)


def hints_for_the_shell(path: Path) -> list[str]:
    """Returns the lines of a file that give Python users a hint, or an error message, with something for the shell."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        said: list[ast.expr] = []
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            said = [given["hint"]] if "hint" in given else []
            if isinstance(node.func, ast.Name) and node.func.id.endswith("Error") and "Extra" not in node.func.id:
                said += node.args[:1]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "hint":
            said = [node.value]
        found += [
            f"{path}:{each.lineno}: {text}" for each in said for text in [texts(each)] if IN_THE_SHELL.search(text)
        ]
    return found


def test_hints_in_python_name_nothing_of_the_shell() -> None:
    rooms = [room for room in PACKAGE.iterdir() if room.name not in {"cli", "server"}]
    files = [path for room in rooms for path in ([room] if room.suffix == ".py" else room.rglob("*.py"))]
    for_the_shell = {"watch.py"}  # only the command line follows sources
    found = [line for path in files if path.name not in for_the_shell for line in hints_for_the_shell(path)]
    assert len(files) > 100 and not found, "\n".join(found)


def test_no_error_drops_the_hint_of_the_shell() -> None:
    dropped = [path for path in PACKAGE.rglob("*.py") if "hint=error.hint" in path.read_text()]
    assert not dropped  # `**error.hints` passes both on


def test_copies_show_it_once() -> None:
    error = UsageError("it is wrong", hint="make it right")
    for same in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert shown(same) == shown(error)
        assert same.hint == "make it right"
