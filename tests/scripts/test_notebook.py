"""The notebook runs from top to bottom, and its cells show pictures."""

import ast
import json
import tempfile
from typing import Any

import pytest

from simsearch.search.results import Matches
from tests.helpers.scripts import SCRIPTS

pytest.importorskip("pandas", reason="pandas is not installed")

NOTEBOOK = SCRIPTS / "examples" / "tour.ipynb"


def run(source, names):
    """Runs a cell and returns the value of its last expression, as a notebook shows it."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    pages: dict[str, str] = {}
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            value = run("".join(cell["source"]), names)
            shown[cell["id"]] = value
            pages[cell["id"]] = value._repr_html_() if isinstance(value, Matches) else repr(value)
    assert "150 items" in pages["build"]
    for name in ("search", "filter", "crop", "feedback"):
        assert pages[name].count("data:image/jpeg") == len(shown[name]) > 3
    assert shown["search"][0].label == "cat"
    assert len(shown["table"]) == 6
    assert [sorted(path.rpartition("/")[2] for path in group) for group in shown["copies"]] == [
        ["cat-000.jpg", "smaller.jpg"]
    ]
    assert "labels are guessed right" in capsys.readouterr().out


def test_notebook_is_valid():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
