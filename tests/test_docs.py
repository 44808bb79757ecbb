"""README and docs/: their commands run, their links lead somewhere, and the files that they name exist.

Blocks of `console` (lines after `$ ` are run, what follows is compared), `sh` (each line is run) and `python` are run page
by page, in order, in a folder of the page's own. `<!-- not run: reason -->` on the line before a block leaves it out.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from simsearch.cli.main import help_texts, main
from simsearch.server.settings import Settings
from tests.helpers.live import process

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LARGEST = 10_240
"""Bytes of the README."""

_BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_SHELL = set("|<>$&;*?`~(")
"""Characters that need a shell; any other command is run in this process, which is faster."""
_MAY_FIND_NOTHING = re.compile(r"simsearch (duplicates|query .*--max-distance|info \w.*/)")
"""Distances depend on the weights; what `info PATH` is asked for may not be in the index."""
_SERVICE = "http://127.0.0.1:8000"


class Block(NamedTuple):
    kind: str
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    return [Block(found["kind"], found["text"], found["reason"]) for found in _BLOCK.finditer(page.read_text())]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return _BLOCK.sub("", page.read_text())


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a block and the lines of output shown below it."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.kind == "sh":
        yield from ((line, []) for line in lines if line.strip() and not line.startswith("#"))
        return
    command = ""
    shown: list[str] = []
    for line in lines:
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line[2:], []
        elif line:
            shown.append(line)
    yield command, shown


def masked(line: str) -> str:
    """A line of output without its numbers and paths, which differ from machine to machine and from weights to weights."""
    return " ".join(re.sub(r"[\d.,]+(ms|s|%|B|KiB|MiB)?\b|/\S+", "#", line).split())


class Session:
    """Runs the blocks of one page in the current folder."""

    def __init__(self, capfd: pytest.CaptureFixture[str], stack: contextlib.ExitStack, drawn: Path) -> None:
        self.capfd, self.stack, self.drawn = capfd, stack, drawn
        self.url = _SERVICE
        self.names: dict[str, object] = {"__name__": "docs"}

    def run(self, block: Block) -> None:
        if block.kind == "python":
            exec(compile(block.text, "docs", "exec"), self.names)
            self.capfd.readouterr()
            return
        for command, shown in commands(block):
            code, out = self.call(command.replace(_SERVICE, self.url))
            assert code in ({0, 1} if _MAY_FIND_NOTHING.search(command) else {0}), f"$ {command}\nexits {code}\n{out}"
            if shown and shown[0] != "...":
                assert masked(shown[0]) in map(masked, out.splitlines()), f"$ {command}\n{out}"

    def call(self, command: str) -> tuple[int, str]:
        """Exit code and both streams of a command."""
        words = shlex.split(command, comments=True)
        if words[:2] == ["simsearch", "serve"]:
            _, url, log = self.stack.enter_context(process(*words[2:]))
            assert url, log
            self.url = url.rstrip("/.")
            return 0, "".join(log)
        if words[:2] == ["simsearch", "sample"]:
            return 0, sample(words[2:], self.drawn)
        if words[0] != "simsearch" or _SHELL & set(command):
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
            return done.returncode, done.stdout + done.stderr
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(words[1:])
        return int(exit.value.code or 0), "".join(self.capfd.readouterr())


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `simsearch` and a `python` that run this checkout."""
    folder = tmp_path_factory.mktemp("tools")
    for name, arguments in {"simsearch": " -m simsearch", "python": ""}.items():
        tool = folder / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        tool.chmod(0o755)
    return folder


def sample(arguments: list[str], drawn: Path) -> str:
    """Draws pictures into the current folder, each set only once; the output."""
    kept = drawn / " ".join(arguments)
    if not kept.exists():
        with pytest.raises(SystemExit) as exit, contextlib.redirect_stdout(io.StringIO()) as out:
            main(["sample", str(kept), *arguments[1:]])
        assert not exit.value.code
        (drawn / f"{kept.name}.txt").write_text(out.getvalue().replace(str(kept), arguments[0]))
    shutil.copytree(kept, arguments[0])
    return (drawn / f"{kept.name}.txt").read_text()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `sample` keeps pictures."""
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Path:
    """The folder that the README's first commands leave behind, in which all other pages begin."""
    folder = tmp_path_factory.mktemp("collection") / "building"
    folder.mkdir()
    first = next(block for block in blocks(ROOT / "README.md") if block.kind == "console")
    with contextlib.chdir(folder):
        for command, _ in commands(first):
            if command.startswith("simsearch sample "):
                sample(shlex.split(command)[2:], drawn)
            elif command.startswith("simsearch build "):
                with pytest.raises(SystemExit) as exit:
                    main(shlex.split(command)[1:])
                assert not exit.value.code
            elif command.startswith("cp "):
                subprocess.run(["bash", "-c", command], check=True)
    return folder.rename(folder.with_name("built"))  # so that the index of a copy takes its pictures from the copy


@pytest.mark.parametrize("name", NAMES)
def test_commands_run(name, tmp_path, drawn, collection, tools, capfd, monkeypatch):
    wanted = [block for block in blocks(ROOT / name) if block.kind in {"console", "sh", "python"} and not block.reason]
    if not wanted:
        return
    place = tmp_path / "home"
    if any("$ simsearch sample photos" in block.text for block in wanted):  # begins with nothing
        place.mkdir()
    else:
        shutil.copytree(collection, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with contextlib.ExitStack() as stack:
        session = Session(capfd, stack, drawn)
        for block in wanted:
            session.run(block)


def test_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= LARGEST


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(file), f"{name}: {target}"


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_installs_name_the_checkout():
    """The package index does not have simsearch under its name, but may have a stranger's package."""
    named = re.compile(r"""pip install[^\n`]*?['" ]simsearch\b""")
    assert named.search("pip install 'simsearch[map]'")
    scripts = [path for path in (ROOT / "scripts").rglob("*") if path.is_file() and path.suffix in {"", ".py", ".md"}]
    for path in [*PAGES, *scripts]:
        assert not named.search(path.read_text()), path
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = {
        extra
        for page in PAGES
        for found in re.findall(r"'\.\[([\w,]+)\]'", page.read_text())
        for extra in found.split(",")
    }
    assert used <= set(extras)
    listed = set(re.findall(r"'\.\[(\w+)\]'", (DOCS / "quickstart.md").read_text()))
    assert set(extras) - {"test", "bench", "dev"} <= listed


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (DOCS / "README.md").read_text()))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"README.md"}


def test_options_of_create_app_are_listed():
    table = (DOCS / "http.md").read_text().partition("`create_app` takes")[2]
    listed = re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.M)
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    assert sorted(name for name, _ in listed) == sorted(defaults)
    for name, shown in listed:
        assert name == "max_body" or ast.literal_eval(shown.strip("`")) == defaults[name], name


def test_every_command_is_documented():
    text = (DOCS / "cli.md").read_text()
    table = (ROOT / "README.md").read_text()
    for name, help in help_texts().items():
        assert f"\n## simsearch {name}\n" in text, f"{name} is missing from docs/cli.md: run scripts/reference.py"
        assert help in text, f"docs/cli.md is out of date about {name}: run scripts/reference.py"
        assert f"(docs/cli.md#simsearch-{name.split()[0]})" in table, f"{name} is missing from the README's table"


def test_every_module_is_listed():
    reference = runpy.run_path(str(ROOT / "scripts" / "reference.py"))
    assert (DOCS / "modules.md").read_text() == reference["modules"](), "run scripts/reference.py"
    listed = [line for line in reference["modules"]().splitlines() if line.startswith("| `")]
    assert len(listed) == sum(path.name != "__init__.py" for path in (ROOT / "simsearch").rglob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_files_named_exist(name):
    for path in re.findall(r"`((?:simsearch|scripts|tests|docs)/[\w./-]+)`", (ROOT / name).read_text()):
        assert (ROOT / path).exists(), f"{name}: {path}"


@pytest.mark.parametrize("name", ["docs/architecture.md", "docs/contributing.md"])
def test_short_names_are_in_the_folder_before_them(name):
    for paragraph in re.split(r"\n(?=\n|- |\d\. )", (ROOT / name).read_text()):
        folder = None
        for path in re.findall(r"`([\w./-]+)`", paragraph):
            if path.startswith("simsearch/"):
                folder = ROOT / path if (ROOT / path).is_dir() else (ROOT / path).parent
            elif re.fullmatch(r"\w+\.py", path):
                assert folder is not None and (folder / path).exists(), f"{name}: {path} in {paragraph[:60]!r}"
