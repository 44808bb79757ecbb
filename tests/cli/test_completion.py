"""Completion of names, fields, values and ids in the shell."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

import simsearch
import simsearch.cli.completion  # as a process does that the shell asks
from simsearch.cli.main import main
from tests.helpers.pictures import draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_weights):
    """A folder with an index of three pictures with metadata."""
    folder = tmp_path_factory.mktemp("completion")
    rows = [("a.png", "cat", 1999, "New York"), ("b.png", "cat", 2024, "Nara"), ("c.png", "dog", 2024, "O'Fallon")]
    for number, (name, *_) in enumerate(rows):
        draw(folder / name, number)
    lines = ["path,label,year,place", *(",".join(map(str, row)) for row in rows)]
    (folder / "table.csv").write_text("\n".join(lines))
    simsearch.build(folder / "table.csv", folder / "index", model=str(tiny_weights)).close()
    return folder


def complete(line, folder, capsys, monkeypatch, **variables):
    """Returns what the script for bash is told for a command line, with the cursor at its end."""
    monkeypatch.chdir(folder)
    for name, value in {"_SIMSEARCH_COMPLETE": "bash_complete", "COMP_WORDS": line, **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["simsearch"])
    with pytest.raises(SystemExit):
        main(prog_name="simsearch")
    return [tuple(row.split(",", 1)) for row in capsys.readouterr().out.splitlines() if row]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("simsearch build --model al", ["alexnet"]),
        ("simsearch query a.png --model al", ["alexnet"]),
        ("simsearch classify -m torch", ["torchvision/"]),
        ("simsearch train --from ", ["alexnet", "torchvision/"]),
        ("simsearch train --preset s", ["small"]),
        ("simsearch train --model lenet5 --preset ", ["paper", "distorted"]),
        ("simsearch train --set learning", ["learning_rate="]),
        ("simsearch build --features fc7-2", ["fc7-256"]),
        ("simsearch eval robustness --change ro", ["rotation"]),
        ("simsearch query a.png --device c", ["cpu", "cuda"]),
        ("simsearch query -i index --filter la", ["label="]),
        ("simsearch query -i index --filter y", ["year="]),
        ("simsearch query -i index --filter label=", ["label=cat", "label=dog"]),
        ("simsearch query -i index --filter year!=2", [r"year\!=2024"]),
        ("simsearch query -i index --filter 'place=New", ["place=New York"]),
        ("simsearch query -i index --filter place=N", [r"place=New\ York", "place=Nara"]),
        ("simsearch query -i index --filter place=O", [r"place=O\'Fallon"]),
        ("simsearch query -i index id:", ["id:1", "id:2", "id:3"]),
        ("simsearch query -i index a.png --plus id:2", ["id:2"]),
        ("simsearch remove -i index id:3", ["id:3"]),
        ("simsearch query -i index --filter colour=", []),
        ("simsearch query -i missing --filter label=", []),
        ("simsearch query -i milvus://localhost/photos --filter label=", []),
    ],
)
def test_names_and_values(line, found, folder, capsys, monkeypatch):
    assert complete(line, folder, capsys, monkeypatch) == [("plain", each) for each in found]


@pytest.mark.parametrize(
    "line",
    [
        "simsearch query ",
        "simsearch query pho",
        "simsearch query -i index id:9",
        "simsearch build --model ./w",
        "simsearch build --features ind",
        "simsearch merge ",
    ],
)
def test_files(line, folder, capsys, monkeypatch):
    assert [kind for kind, _ in complete(line, folder, capsys, monkeypatch)] == ["file"]


def test_default_index(folder, capsys, monkeypatch):
    monkeypatch.setenv("SIMSEARCH_INDEX", str(folder / "index"))
    assert complete("simsearch query --filter label=d", folder, capsys, monkeypatch) == [("plain", "label=dog")]


@pytest.mark.parametrize(
    ("current", "found"), [("N", r"New\ York"), ("", r"New\ York"), ("place=N", r"place=New\ York")]
)
def test_bash_splits_words_at_colon_and_equals(current, found, folder, capsys, monkeypatch):
    line = f"simsearch query -i index --filter place={current.removeprefix('place=')}"
    printed = complete(line, folder, capsys, monkeypatch, COMP_CURRENT=current)
    assert printed[0] == ("plain", found)


def test_completion_imports_no_torch(folder):
    asked = {"_SIMSEARCH_COMPLETE": "bash_complete", "COMP_WORDS": "simsearch query -i index --filter label=c"}
    code = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules or 'faiss' in sys.modules));"
    code += "from simsearch.cli.main import main; main(prog_name='simsearch')"
    environment = {**os.environ, **asked}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["plain,label=cat", "False"]


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("query -i index --filter y", ["-S -a open: year="]),
        ("build --model al", ["-a plain: alexnet"]),
        ("query -i index id:", [r"noted: id\:1:a.png id\:2:b.png id\:3:c.png"]),
        ("query -i index --filter label=", ["noted: label=cat:2 items label=dog:1 items"]),
    ],
)
def test_zsh_puts_no_space_behind_what_goes_on(line, found, folder, tmp_path):
    code = "from simsearch.cli.main import main; main(prog_name='simsearch')"
    program = tmp_path / "simsearch"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
    program.chmod(0o755)
    stubs = """
    compdef() { true }
    compadd() { print -r -- ${${@:#-U}:#(-V|unsorted)}: ${(P)@[-1]} }
    _describe() { print -r -- $3: ${(P)3} }
    """
    words = ["simsearch", *line.split()]
    call = f"words=({' '.join(map(shlex.quote, words))}); CURRENT={len(words)}; _simsearch_completion"
    script = CliRunner().invoke(main, ["completion", "zsh"]).stdout
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["zsh", "-f", "-c", "\n".join([stubs, script, call])],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.splitlines(), done.stderr) == (found, "")
