"""The command `map`, which draws an index as an interactive page, and the map for `export --map`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click

from simsearch import api
from simsearch.cli.console import check_folder_exists, echo, note, pluralize, warn_if_incomplete
from simsearch.cli.options import device_option, index_option, root_option, version_option
from simsearch.cli.progress import show_progress
from simsearch.curation import cluster_names
from simsearch.curation import map as maps
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.reports import text
from simsearch.reports.map import MapData, save_map
from simsearch.reports.thumbnail_sheets import SIDE, Sheets, make_sheets
from simsearch.search.duplicates import thumbnail

THUMBNAILS, MOST_THUMBNAILS = 2000, 20_000
"""Default and largest number of thumbnails in a page. Each thumbnail takes about 2.5 kB."""

_CLUSTERS_HELP = "Largest number of clusters.  [default: as many as stand out, at most 60]"


@click.command("map")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path),
    default=Path("map.html"),
    show_default=True,
    metavar="FILE",
    help="HTML file to write; an existing one is replaced.",
)
@click.option("--clusters", type=click.IntRange(1, 1000), metavar="N", help=_CLUSTERS_HELP)
@click.option(
    "--names",
    type=click.Choice(cluster_names.KINDS),
    default="auto",
    show_default=True,
    help="Name clusters after the labels of their items, after the model's guesses for some of their pictures, or by"
    " numbers; auto uses labels if at least half of a cluster's items have one, else guesses.",
)
@click.option(
    "--thumbnails",
    type=click.IntRange(0, MOST_THUMBNAILS),
    default=THUMBNAILS,
    show_default=True,
    metavar="N",
    help="Number of small pictures in the file, about 2.5 kB each; 0 for none.",
)
@click.option("--title", metavar="TEXT", help="Title of the page.  [default: Map of INDEX]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the layout.")
@device_option
@root_option
@index_option
@version_option
def map_command(
    file: Path,
    clusters: int | None,
    names: str,
    thumbnails: int,
    title: str | None,
    seed: int,
    device: str,
    roots: tuple[tuple[str, str], ...],
    index_path: str,
) -> None:
    """Draws a map of an index: all pictures on a plane, similar ones side by side, in one HTML file.

    Positions are computed by t-SNE from the exact nearest neighbours of every picture. The same index and seed give the
    same map. In the page, zoom in to see the pictures, and draw a line around some pictures to get their paths. The web
    page of `serve` shows the map too. Needs the [map] extra.
    """
    check_output(file)
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(warn_if_incomplete(api.open(index_path, device=device, roots=dict(roots))))
        began = time.monotonic()
        drawn = draw(engine, clusters, names, seed)
        seconds = time.monotonic() - began
        sheets = _thumbnails(drawn, thumbnails)
    shown = title or f"Map of {Path(index_path).name or index_path}"
    size = save_map(_page_data(drawn, sheets), file, shown, _facts(engine, drawn, seed))
    items, kinds = pluralize(len(drawn.members), "item"), pluralize(len(drawn.clusters), "cluster")
    pictures = pluralize(len(sheets.places), "small picture")
    echo(f"{file}: {items} in {kinds}, {pictures}, {text.format_size(size)}; {seconds:.1f} s")


def check_output(file: Path) -> None:
    """Raises UsageError if `file` is a folder or if its folder does not exist. To be called before the map is drawn."""
    check_folder_exists(file)
    if file.is_dir():
        raise UsageError(f"{file} is a folder", hint=f"-o {file / 'map.html'}")


def draw(engine: Engine, clusters: int | None = None, names: str = "auto", seed: int = 0) -> maps.ItemMap:
    """Draws a map of an index, stores it in the index for the web page, and returns it. Shows the progress.

    clusters: the largest number of clusters; None for the number of clusters that stand out, at most 60.
    names: the way to name clusters, one of `cluster_names.KINDS`. seed: the seed of the layout.
    """
    if names == "guesses":  # before the steps that take minutes
        cluster_names.check_classifier(engine.load_model())
    with show_progress("searching for neighbours") as progress:
        near = maps.read_neighbours(engine.snapshots, seed=seed, progress=progress)
    with show_progress("laying out") as progress:
        drawn = maps.draw_map(near, clusters, seed, progress)
    with show_progress("naming clusters") as progress:
        drawn = cluster_names.name_clusters(drawn, names, engine.load_model, progress)
    try:
        maps.keep(engine.opened_index, drawn, seed)
    except OSError as error:
        note(f"the web page will not show this map, which cannot be kept in the index: {error.strerror or error}")
    return drawn


def _thumbnails(drawn: maps.ItemMap, count: int) -> Sheets:
    chosen = maps.representatives(drawn.positions, count).tolist() if count else []
    with show_progress("reading pictures") as progress:
        sheets = make_sheets(chosen, lambda place: thumbnail(drawn.members[place], SIDE), progress)
    if missing := len(chosen) - len(sheets.places):
        note(f"{missing:,} of {pluralize(len(chosen), 'picture')} cannot be read, so the map shows points for them")
    return sheets


def _page_data(drawn: maps.ItemMap, sheets: Sheets) -> MapData:
    items = [member.item for member in drawn.members]
    return MapData(
        positions=drawn.positions,
        ids=drawn.ids,
        clusters=drawn.cluster_ids,
        cluster_names=[cluster.name for cluster in drawn.clusters],
        cluster_notes=[cluster.note for cluster in drawn.clusters],
        paths=[member.path for member in drawn.members],
        labels=[item.label for item in items],
        metadata=[item.metadata for item in items],
        neighbours=drawn.places,
        sheets=sheets,
    )


def _facts(engine: Engine, drawn: maps.ItemMap, seed: int) -> dict[str, str]:
    return {"index": str(engine.path), "model": engine.meta.model, **drawn.facts(seed)}
