"""Nothing that a stranger wrote reaches the terminal as an escape sequence, and no line of output can be forged."""

from __future__ import annotations

import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click.testing
import pytest

from simsearch import api
from simsearch.cli.main import main
from simsearch.models.weights import read_card, read_tensors, write
from tests.helpers.data import ROOT
from tests.helpers.pictures import draw

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\nerror: forged [bold]x[/bold]"
BAD = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def shown(*arguments: str, code: int | None = None) -> str:
    """All output of a command, which is printable."""
    result = click.testing.CliRunner().invoke(main, arguments)
    assert not BAD.search(result.output), result.output
    assert not [line for line in result.output.splitlines() if line.startswith("error: forged")]
    assert "Traceback" not in result.output
    assert code is None or result.exit_code == code, result.output
    return result.output


@pytest.fixture
def weights(tiny_weights: Path, tmp_path: Path) -> Path:
    card = replace(
        read_card(tiny_weights),
        description=EVIL,
        classes=tuple(f"{EVIL}{n}" for n in range(5)),
        training={EVIL: EVIL},
        metrics={"data " + EVIL: {EVIL: [0.5, 10]}},
    )
    write(tmp_path / "evil.safetensors", card, read_tensors(tiny_weights), {})
    return tmp_path / "evil.safetensors"


@pytest.fixture
def index(weights: Path, tmp_path: Path) -> Path:
    folder = tmp_path / f"photos {EVIL.replace('/', '')}"
    for number in range(6):
        draw(folder / f"{EVIL.replace('/', '')}" / f"{number}.png", number)
    draw(folder / "other" / "copy.png", 1)
    (folder / "other" / f"bad{EVIL.replace('/', '')}.png").write_bytes(b"no picture")
    api.build(folder, tmp_path / "index", str(weights)).close()
    return tmp_path / "index"


def test_names_labels_and_descriptions(index: Path, weights: Path, tmp_path: Path) -> None:
    place = "-i", str(index)
    draw(tmp_path / "q.png", 3)
    assert r"\x1b]0;owned\x07" in shown("query", str(tmp_path / "q.png"), "id:1", *place, code=0)
    assert r"\x1b" in shown("info", *place, code=0)
    assert r"\x1b" in shown("info", "--failures", *place, code=0)
    assert r"\x1b" in shown("duplicates", "--max-distance", "0.1", *place, code=0)
    assert r"\u202e" in shown("classify", "-m", str(weights), str(tmp_path / "q.png"), code=0)
    assert r"\x1b" in shown("models", "--model", str(weights), code=0)
    shown("eval", "search", "--per-class", *place, code=0)
    shown("remove", "id:2", *place, code=2)
    shown("verify", *place, code=0)
    for form in ("json", "jsonl"):
        answer = click.testing.CliRunner().invoke(main, ["query", "id:1", "--format", form, *place]).output
        assert answer.isascii()
        first = json.loads(answer.splitlines()[0] if form == "jsonl" else answer)
        assert "owned" in str(first)


ERRORS: dict[str, Callable[[Path, Path], list[str]]] = {
    "missing picture": lambda index, tmp: ["query", f"{tmp}/{EVIL}.png", "-i", str(index)],
    "no picture": lambda index, tmp: ["query", str(written(tmp / "x\x1b[2J.png")), "-i", str(index)],
    "filter": lambda index, tmp: ["query", "id:1", "--filter", EVIL, "-i", str(index)],
    "no index": lambda index, tmp: ["info", "-i", f"{tmp}/{EVIL}"],
    "source": lambda index, tmp: ["build", f"{tmp}/{EVIL}", "-i", str(tmp / "new")],
    "manifest": lambda index, tmp: ["build", str(written(tmp / "\x1b[2J.jsonl", '{"path": 1}')), "-i", str(tmp / "n")],
    "table": lambda index, tmp: ["build", str(written(tmp / "m.csv", f"a\x1b[2J\n{EVIL}\n")), "-i", str(tmp / "n")],
    "model": lambda index, tmp: ["build", str(tmp), "-m", EVIL, "-i", str(tmp / "n")],
    "weights": lambda index, tmp: ["models", "--model", str(written(tmp / "\x1b[2J.safetensors"))],
    "command": lambda index, tmp: [EVIL],
    "option": lambda index, tmp: ["info", f"--{EVIL}"],
    "with --debug": lambda index, tmp: ["info", "-i", f"{tmp}/{EVIL}", "--debug"],
}


def written(path: Path, text: str = "nothing") -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("case", ERRORS)
def test_errors_and_hints(index: Path, tmp_path: Path, case: str) -> None:
    result = click.testing.CliRunner().invoke(main, ERRORS[case](index, tmp_path))
    assert result.exit_code == 2
    assert not BAD.search(result.output), result.output
    assert case == "with --debug" or not re.search("^error: forged", result.output, re.MULTILINE)


def test_damage_and_recorded_model(index: Path) -> None:
    connection = sqlite3.connect(index / "items.sqlite")
    connection.execute(f'CREATE TABLE "{EVIL}" (x)')
    connection.close()
    assert r"\x1b" in shown("verify", "-i", str(index), code=3)
    facts = json.loads((index / "meta.json").read_text())
    for key in ("model", "engine", "format", "features", "dimension"):
        (index / "meta.json").write_text(json.dumps({**facts, key: EVIL}))
        shown("info", "-i", str(index))


@pytest.mark.parametrize("form", ["paths", "csv", "table"])
def test_terminal_gets_no_raw_paths(index: Path, form: str) -> None:
    """Programs get paths as they are; a terminal does not."""
    command = [sys.executable, "-m", "simsearch", "query", "id:1", "--format", form, "-i", str(index)]
    piped = subprocess.run(command, capture_output=True, cwd=ROOT, check=True).stdout
    assert (b"\x1b]0;owned\x07" in piped) == (form != "table")
    main_end, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdout=end, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment):
        os.close(end)
        text = b""
        while True:
            try:
                part = os.read(main_end, 1 << 16)
            except OSError:
                break
            if not part:
                break
            text += part
    os.close(main_end)
    assert b"owned" in text
    assert (b"\x1b]8;;file:///" in text) == (form == "table")  # links to the files, percent-encoded
    text = re.sub(rb"\x1b\]8;;(file://[!-~]*)?\x1b\\", b"", text)
    assert not re.search(rb"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f]", text), text


def test_one_way_to_print() -> None:
    """Every command prints by `console.echo` or `echo_data`."""
    for path in (ROOT / "simsearch" / "cli").glob("*.py"):
        text = path.read_text()
        assert path.name == "console.py" or not re.search(
            r"click\.s?echo|(?<!\.)\bprint\(|sys\.std(out|err)\.write", text
        ), path
