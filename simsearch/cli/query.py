"""The command `query`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simsearch import api
from simsearch.cli.console import (
    NO_MATCH,
    check_folder_exists,
    check_links,
    echo_data,
    echo_ready,
    note,
    note_unshown,
    show_path,
    warn_if_incomplete,
)
from simsearch.cli.options import (
    device_option,
    html_option,
    index_option,
    links_option,
    moved_model_option,
    root_option,
    version_option,
)
from simsearch.cli.params import QueryImage
from simsearch.cli.query_args import ask_each
from simsearch.cli.search_options import example_images, search_arguments, search_options
from simsearch.common.lazy import LazyModule
from simsearch.common.links import item_link
from simsearch.common.printable import printable
from simsearch.engine import Engine
from simsearch.errors import SimsearchError, UsageError
from simsearch.images import decode
from simsearch.images.boxes import Box
from simsearch.reports import text as reports_text
from simsearch.search import results
from simsearch.search.results import Match
from simsearch.storage import item_files

if TYPE_CHECKING:
    from PIL import Image

    from simsearch.reports import html as reports_html
    from simsearch.reports import montage as reports_montage
    from simsearch.reports import terminal as reports_terminal
    from simsearch.reports import tiles
else:  # only needed to show pictures
    reports_html = LazyModule("simsearch.reports.html")
    reports_montage = LazyModule("simsearch.reports.montage")
    tiles = LazyModule("simsearch.reports.tiles")
    reports_terminal = LazyModule("simsearch.reports.terminal")


SHOWN_SIDE = 256
"""Shorter side of query images as they are shown, in pixels."""


@click.command("query")
@click.argument("image", nargs=-1, required=True, type=QueryImage())
@search_options
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "jsonl", "csv", "paths"]),
    help="Output format.  [default: table]",
)
@click.option("-0", "--print0", is_flag=True, help="Print paths, each with a NUL at its end.")
@click.option("--relative", is_flag=True, help="Print paths as stored, relative to their source.")
@html_option
@links_option
@click.option(
    "--montage", type=click.Path(path_type=Path), metavar="FILE", help="Write one picture with a row for each query."
)
@click.option("--show", is_flag=True, help="Show the images in the terminal.")
@click.option(
    "--open",
    "open_page",
    is_flag=True,
    help="Open the HTML report in the browser. Without --html, it is a temporary file.",
)
@root_option
@moved_model_option
@device_option
@index_option
@version_option
def query_command(
    image: Sequence[str],
    form: str | None,
    print0: bool,
    relative: bool,
    html_file: Path | None,
    service: str | None,
    montage: Path | None,
    show: bool,
    open_page: bool,
    roots: tuple[tuple[str, str], ...],
    model: str | None,
    index_path: str,
    device: str,
    **options: Any,
) -> None:
    """Finds the indexed images most like each IMAGE: a path, id:N, an http(s) URL, or - for standard input.

    An IMAGE that is a folder stands for all pictures in it. Exits 1 if no match was found.
    """
    if print0 and form not in {None, "paths"}:
        raise UsageError(f"--print0 prints paths, not {form}", hint="leave out --print0 or --format")
    if show and (print0 or form not in {None, "table"}):
        raise UsageError("--show needs the format table", hint="leave out --show, or --format and --print0")
    if montage:
        reports_montage.montage_extension(montage)
    for file in (montage, html_file):
        check_folder_exists(file)
    check_links(service, html_file, open_page)
    if [*image, *example_images(options)].count("-") > 1:
        raise UsageError("standard input can be read only once, but - is given several times")
    k, chosen = search_arguments(options)
    with warn_if_incomplete(api.open(index_path, model=model, device=device, roots=dict(roots))) as engine:

        def ask(names: Sequence[str], pictures: Sequence[Any]) -> Iterator[results.QueryResult]:
            clock = time.perf_counter()
            found = engine.search_many(pictures, k, **chosen)
            took = 1000 * (time.perf_counter() - clock) / len(found)
            for name, matches in zip(names, found, strict=True):
                shown = [replace(match, path=match.relative) for match in matches] if relative else matches
                yield results.QueryResult(name, engine.meta.model, matches.exact, took, shown)

        asked = ask_each(ask, image)
        answers = asked.answers
        form = "paths" if print0 else form or "table"
        path_cell = printable if relative else show_path
        text = reports_text.render(answers, form, "\0" if print0 else "\n", path_cell)
        (echo_ready if form == "table" else echo_data)(text, nl=False)
        html_file = html_file or (_temporary_page() if open_page else None)
        if montage or html_file or show:
            _show_images(engine, asked.pictures, answers, montage, html_file, show, service, chosen.get("crop"))
        if not any(answer.matches for answer in answers):
            _explain_conditions(engine, chosen.get("where"))
    if open_page and html_file:
        _open_page(html_file)
    asked.exit_if_failed()
    if not any(answer.matches for answer in answers):
        raise click.exceptions.Exit(NO_MATCH)


def _explain_conditions(engine: Engine, where: Any) -> None:
    """Prints a note about each condition that no item meets, with the values that were probably meant."""
    with contextlib.suppress(SimsearchError):  # the result is printed already
        for sentence in engine.unmet(where or ()):
            note(sentence)


def _open_page(file: Path) -> None:
    """Opens a page in the browser. Without a desktop, prints a note with the path of the page instead."""
    if sys.platform == "linux" and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        note(f"there is no desktop to open {file} on")
        return
    click.launch(file.absolute().as_uri())


def _temporary_page() -> Path:
    """Makes a temporary HTML file for a report and returns its path.

    The file is not deleted when the command ends, because the browser may read it later.
    """
    handle, name = tempfile.mkstemp(prefix="simsearch-", suffix=".html")
    os.close(handle)
    return Path(name)


def _show_images(
    engine: Engine,
    pictures: Sequence[Any],
    answers: Sequence[results.QueryResult],
    montage: Path | None,
    html_file: Path | None,
    show: bool,
    service: str | None,
    crop: Box | None,
) -> None:
    """Shows queries and matches with their images: as a montage, in an HTML file and in the terminal, as requested.

    service: URL of the service that the HTML file links to; see `item_link`. crop: the part of the queries to mark.
    """

    def tile(match: Match) -> tiles.Tile:
        image = engine.thumbnail(match.id)
        link = item_link(service, match.id) if service else None
        return tiles.Tile(image, match.path, match.label, match.id, match.distance, match.similarity, link=link)

    rows = [
        tiles.ResultRow(
            tiles.Tile(_query_image(engine, picture, crop), answer.query), [tile(match) for match in answer.matches]
        )
        for picture, answer in zip(pictures, answers, strict=True)
    ]
    note_unshown(engine, rows)
    if show:
        _show_in_terminal(rows)
    if montage:
        reports_montage.save_montage(rows, montage)
        note(f"wrote {montage}")
    if html_file:
        facts = {"index": str(engine.path), "model": engine.meta.model, "items": f"{len(engine):,}"}
        reports_html.save_html(rows, html_file, "Most similar pictures", facts)
        note(f"wrote {html_file}")


def _query_image(engine: Engine, picture: Any, crop: Box | None) -> Image.Image | None:
    """Returns the image of a query, with its crop marked, to show to people; None if the image cannot be read."""
    found = item_files.decoded(engine.opened_index, picture, SHOWN_SIDE)
    if found is None or crop is None:
        return None if found is None else found.image
    size = found.width, found.height
    return tiles.mark_part(found.image, decode.check_box(crop, size), size)


def _show_in_terminal(rows: Sequence[tiles.ResultRow]) -> None:
    """Draws queries and matches in the terminal; prints a note if the terminal cannot show images."""
    from rich.console import Console

    console = Console()
    if not reports_terminal.can_show(console):
        note("--show needs a terminal with colours; use --montage FILE or --html FILE instead")
        return
    if advice := reports_terminal.advice():
        note(advice)
    reports_terminal.show(rows, console, reports_terminal.graphics())
