"""Pictures in the terminal: half blocks, graphics, and what is said where there can be none."""

import io
import os
import pty
import re
import select
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console

import simsearch
from simsearch.reports import terminal
from simsearch.reports.tiles import ResultRow, Tile

RED, GREEN = Image.new("RGB", (40, 40), "#ff0000"), Image.new("RGB", (40, 20), "#00ff00")


def console(width=100, **options):
    options = {"force_terminal": True, "color_system": "truecolor", **options}
    return Console(file=io.StringIO(), width=width, **options)


def drawn(rows, on, **options):
    terminal.show(rows, on, **options)
    return on.file.getvalue()


def test_a_square_fills_its_tile():
    lines = terminal.blocks(RED, 8)
    assert [line.plain for line in lines] == ["▀" * 8] * 4
    assert all(str(span.style) == "rgb(255,0,0) on rgb(255,0,0)" for line in lines for span in line.spans)


def test_a_wide_picture_lies_in_the_middle():
    assert [line.plain for line in terminal.blocks(GREEN, 8)] == [" " * 8, "▀" * 8, "▀" * 8, " " * 8]
    tall = terminal.blocks(GREEN.resize((10, 40)), 8)
    assert {line.plain for line in tall} == {"   ▀▀   "}
    assert terminal.blocks(Image.new("RGB", (1000, 1)), 8)[1].plain.strip() == "▄" * 8
    assert "not available" in terminal.blocks(None)[4].plain


def test_a_row_with_its_captions():
    matches = [Tile(GREEN, f"/p/{n}.png", f"label {n}", n, 1.5 * n, 0.9) for n in range(1, 9)]
    text = drawn([ResultRow(Tile(RED, "/q/query.png"), matches), ResultRow(Tile(None, "gone.png"), [])], console(80))
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "\x1b[38;2;0;255;0;48;2;0;255;0m" in text
    for words in ("query.png", "1  1.5", "label 1", "8  12", "label 8", "not available", "no match"):
        assert words in plain
    assert max(map(len, plain.splitlines())) <= 80
    assert plain.count("query.png") == 1
    assert len(plain.splitlines()) > 3 * 9  # four tiles a line in 80 columns


def test_names_cannot_disturb_the_terminal():
    text = drawn([ResultRow(Tile(RED, "/q/\x1b[2J.png"), [])], console())
    assert "\x1b[2J" not in text


def test_where_there_are_no_colours():
    assert terminal.can_show(console())
    assert not terminal.can_show(console(force_terminal=False))
    assert not terminal.can_show(console(color_system=None))
    assert not terminal.can_show(console(no_color=True))


@pytest.mark.parametrize(("kind", "mark"), [("SixelImage", "\x1bP"), ("TGPImage", "\U0010eeee")])
def test_graphics(kind, mark, capsys):
    renderable = pytest.importorskip("textual_image.renderable", reason="the [show] extra is not installed")
    row = ResultRow(Tile(RED, "q.png"), [Tile(GREEN, f"{n}.png", None, n, float(n), 0.5) for n in range(6)])
    text = drawn([row], console(), renderable=getattr(renderable, kind))
    assert mark in text
    assert "5 to 6:" in text


def on_a_terminal(*command, **environment):
    """Returns the output of a command on a terminal of 120 columns that answers no questions."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 1200, 800))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **environment}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        received = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                received += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
        os.close(ours)
        return process.wait(60), received.decode()


def test_query_shows_pictures(tmp_path, photos, tiny_weights):
    simsearch.build(photos, tmp_path / "index", model=str(tiny_weights)).close()
    picture = photos / "blue" / "1.png"
    command = [sys.executable, "-m", "simsearch", "query", picture, "-i", tmp_path / "index", "--show"]
    code, text = on_a_terminal(*command)
    assert code == 0
    assert text.count("▀") > 7 * 18 * 8
    assert "similarity" in text  # the table as well
    done = subprocess.run(command, capture_output=True, text=True)
    assert "--show needs a terminal" in done.stderr
    assert "▀" not in done.stdout
    assert len(done.stdout.splitlines()) == 8
