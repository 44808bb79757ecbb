"""The commands that judge a data set: `curate outliers`, `labels`, `leaks`, `diverse` and `tags`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from simsearch import api
from simsearch.cli import completion
from simsearch.cli.console import NO_MATCH, check_folder_exists, echo, echo_data, note, pluralize, warn_if_incomplete
from simsearch.cli.lazy import ListingGroup
from simsearch.cli.options import device_option, html_option, index_option, version_option
from simsearch.cli.params import NameLabel
from simsearch.cli.progress import show_progress
from simsearch.common.links import shortest
from simsearch.common.progress import Progress
from simsearch.curation import diverse, labels, leaks, outliers, tags
from simsearch.curation.graph import Finding
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.reports import text
from simsearch.reports.html import save_html
from simsearch.reports.tiles import ResultRow, Tile
from simsearch.search import duplicates as near
from simsearch.search.copy_threshold import copy_threshold
from simsearch.storage.compatible import check_same_features

_count_option = click.option(
    "-n", "--count", type=click.IntRange(1), metavar="N", help="Largest number of images.  [default: all]"
)


def _neighbours_option(default: int) -> Callable[[Any], Any]:
    return click.option(
        "-k",
        "--neighbours",
        type=click.IntRange(1, 1000),
        default=default,
        show_default=True,
        metavar="K",
        help="Number of nearest neighbours to consider for each image.",
    )


def _shared_options(command: Any) -> Any:
    """Adds the options that all commands of `curate` share."""
    decorators = (
        click.option(
            "--format",
            "form",
            type=click.Choice(text.FORMATS),
            default="table",
            show_default=True,
            help="Output format.",
        ),
        html_option,
        device_option,
        index_option,
        version_option,
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@click.group("curate", cls=ListingGroup)
@version_option
def curate_command() -> None:
    """Finds outliers, wrong labels and leaks in a data set, chooses representative images, and spreads labels.

    All commands use the exact nearest neighbours of images in an index, and change nothing. They exit with 1 if they
    find nothing.
    """


@curate_command.command("outliers")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    help="Number of images.",
)
@_neighbours_option(outliers.NEIGHBOURS)
@_shared_options
def outliers_command(
    count: int, neighbours: int, form: str, html_file: Path | None, device: str, index_path: str
) -> None:
    """Lists the images that are least like all others.

    The score of an image is its mean distance to its nearest neighbours, divided by the mean distance of these
    neighbours to their own nearest neighbours. Most images score about 1.
    """

    def find(engine: Engine, progress: Progress) -> list[Finding]:
        return outliers.outliers(engine.snapshots, count, neighbours, progress)

    _run(find, "Outliers", form, html_file, device, index_path)


@curate_command.command("labels")
@_count_option
@_neighbours_option(labels.NEIGHBOURS)
@_shared_options
def labels_command(
    count: int | None, neighbours: int, form: str, html_file: Path | None, device: str, index_path: str
) -> None:
    """Lists images whose label does not fit the labels of their neighbours, with a better label for each.

    The clearest cases come first.
    """

    def find(engine: Engine, progress: Progress) -> list[Finding]:
        return labels.suspicious_labels(engine.snapshots, count, neighbours, progress)

    _run(find, "Suspicious labels", form, html_file, device, index_path)


@curate_command.command("leaks")
@click.option(
    "--against",
    required=True,
    metavar="INDEX|FOLDER",
    help="Index or folder to compare with, for example the training set.",
    shell_complete=completion.files,
)
@click.option(
    "--max-distance",
    type=click.FloatRange(0),
    metavar="D",
    help="Largest distance between near-identical images.  [default: measured between images of the index"
    " and slightly changed copies of them]",
)
@_shared_options
def leaks_command(
    against: str, max_distance: float | None, form: str, html_file: Path | None, device: str, index_path: str
) -> None:
    """Lists images that are also in another index, unchanged or slightly changed.

    This finds the images of a test set that are in the training set too. The search is exact, so every image within
    --max-distance of an image of the other index is found.
    """
    if not against:
        raise UsageError("--against '' names no index and no folder")

    def find(engine: Engine, progress: Progress) -> list[Finding]:
        with api.comparable(against, engine) as other:
            check_same_features(engine.opened_index, other.opened_index)
            limit = max_distance
            if limit is None:
                limit = copy_threshold(engine.opened_index, engine.model, progress=progress).distance
            found = leaks.leaks(engine.snapshots, other.snapshots, limit, progress)
            note(f"{len(found):,} of {pluralize(len(engine), 'item')} within {limit:.4g} of an item of {against}")
            if html_file:
                _write_report(engine, found, "Leaks", html_file)
            return found

    _run(find, "", form, html_file, device, index_path)


@curate_command.command("diverse")
@click.option("-n", "--count", type=click.IntRange(1), required=True, metavar="N", help="Number of images.")
@_shared_options
def diverse_command(count: int, form: str, html_file: Path | None, device: str, index_path: str) -> None:
    """Chooses N images that represent all others.

    The first image is the most central one. Each further image is the one that is farthest from its nearest chosen
    image. The radius is the largest distance from any image to its nearest chosen image. It is at most twice the
    smallest radius that is possible with N images.
    """

    def find(engine: Engine, progress: Progress) -> list[Finding]:
        return diverse.diverse(engine.snapshots, count, progress)

    _run(find, "Diverse pictures", form, html_file, device, index_path)


@curate_command.command("tags")
@click.option(
    "--tag",
    "seeds",
    multiple=True,
    type=NameLabel(),
    metavar="NAME=LABEL",
    help="Give LABEL to the images that match NAME (path, id:N or glob), and spread these labels instead of "
    "the index's own labels. Repeatable.",
)
@_count_option
@_neighbours_option(tags.NEIGHBOURS)
@_shared_options
def tags_command(
    seeds: tuple[tuple[str, str], ...],
    count: int | None,
    neighbours: int,
    form: str,
    html_file: Path | None,
    device: str,
    index_path: str,
) -> None:
    """Spreads the labels of a few images to the images without a label.

    Lists the images with their new labels, the most certain first. The index is not changed.
    """

    def find(engine: Engine, progress: Progress) -> list[Finding]:
        chosen = {item.id: label for name, label in seeds for item in engine.find(name)}
        return tags.spread_labels(engine.snapshots, chosen, neighbours, progress)[:count]

    _run(find, "Labels", form, html_file, device, index_path)


def _run(
    find: Callable[[Engine, Progress], list[Finding]],
    title: str,
    form: str,
    html_file: Path | None,
    device: str,
    index_path: str,
) -> None:
    """Runs `find` on the index, prints the findings, and writes a report of them to `html_file`, if given.

    Exits with 1 if nothing is found. form: the output format, such as "json".
    title: the title of the report; "" if no report is to be written here, because `find` has written it.
    """
    check_folder_exists(html_file)
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(warn_if_incomplete(api.open(index_path, device=device)))
        with show_progress("comparing") as progress:
            found = find(engine, progress)
        if html_file and title:
            _write_report(engine, found, title, html_file)
    _print(found, form)
    if not found:
        raise click.exceptions.Exit(NO_MATCH)


def _print(found: Sequence[Finding], form: str) -> None:
    if form == "json":
        echo(json.dumps([_entry(finding) for finding in found], indent=1))
    elif form == "jsonl":
        for finding in found:
            echo(json.dumps(_entry(finding)))
    elif form == "csv":
        echo_data(_csv(found), nl=False)
    elif form == "paths":
        for finding in found:
            echo_data(finding.member.path)
    elif found:
        numbers = len(found[0].facts.keys() - {"label"}) + 1
        echo("\n".join(text.table([_headings(found[0]), *map(_row, found)], right=numbers)))


def _entry(finding: Finding) -> dict[str, Any]:
    member = finding.member
    values = {"id": member.item.id, "path": member.path, "label": member.item.label, **finding.facts}
    if finding.evidence:
        values["neighbours"] = [
            {
                "id": other.item.id if other.own else None,
                "path": other.path,
                "label": other.item.label,
                "distance": other.distance,
            }
            for other in finding.evidence
        ]
    return values


def _csv(found: Sequence[Finding]) -> str:
    rows = []
    for finding in found:
        values = {name: value for name, value in _entry(finding).items() if name != "neighbours"}
        rows.append(values | ({"nearest": finding.evidence[0].path} if finding.evidence else {}))
    return text.to_csv([rows[0], *(row.values() for row in rows)]) if rows else ""


def _headings(finding: Finding) -> list[str]:
    nearest = ["nearest"] if finding.evidence else []
    return [*(name.replace("_", " ") for name in finding.facts if name != "label"), "id", "label", "path", *nearest]


def _row(finding: Finding) -> list[str]:
    member = finding.member
    facts = [_cell(value) for name, value in finding.facts.items() if name != "label"]
    label = finding.facts.get("label", member.item.label) or "-"
    paths = [member.path, *(other.path for other in finding.evidence[:1])]
    return [*facts, str(member.item.id), label, *map(shortest, paths)]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return text.format_distance(value) if isinstance(value, float) else str(value)


def _write_report(engine: Engine, found: Sequence[Finding], title: str, file: Path) -> None:
    def tile(member: near.Member, details: str = "", distance: float | None = None) -> Tile:
        number = member.item.id if member.own else None
        return Tile(near.thumbnail(member), member.path, member.item.label, number, distance, details=details)

    def subject(finding: Finding) -> Tile:
        facts = ", ".join(f"{name.replace('_', ' ')} {_cell(value)}" for name, value in finding.facts.items())
        return tile(finding.member, facts)

    facts = {"index": str(engine.path), "model": engine.meta.model}
    if any(finding.evidence for finding in found):
        rows = [
            ResultRow(subject(finding), [tile(other, "", other.distance) for other in finding.evidence])
            for finding in found
        ]
        save_html(rows, file, title, facts)
    else:
        group = [subject(finding) for finding in found]
        save_html([ResultRow(group[0], group[1:])] if group else [], file, title, facts, groups=True)
    note(f"wrote {file}")
