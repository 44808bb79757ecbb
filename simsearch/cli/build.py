"""The commands that change the items of an index: `build`, `add` and `remove`."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from typing import Any

import click

from simsearch import api
from simsearch.cli import completion, following
from simsearch.cli.console import echo, echo_ready, format_counts, note, pluralize, show_path
from simsearch.cli.options import (
    DEFAULT_INDEX,
    index_option,
    moved_model_option,
    new_index_option,
    root_option,
    source_options,
    version_option,
)
from simsearch.cli.progress import show_progress
from simsearch.cluster import ray
from simsearch.common.milvus_address import parse_address
from simsearch.errors import UsageError
from simsearch.indexing import options as indexing_options


@click.command("build")
@click.argument("source", nargs=-1, shell_complete=completion.files)
@click.option(
    "--model",
    metavar="NAME|FILE",
    help="Model of a new index; `simsearch models` lists the models.",
    shell_complete=completion.models,
)
@click.option(
    "--features",
    metavar="NAME|INDEX",
    help="Features of a new index: fc7, another name in docs/models.md, or an INDEX, to use its features.",
    shell_complete=completion.features,
)
@click.option("--no-prune", is_flag=True, help="Keep items whose image no longer exists.")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="R",
    help="After the build, choose the fastest way to search, as `tune --recall R` does.",
)
@click.option("--on", metavar="ray[://HOST:PORT]", help="Compute the features on the machines of a Ray cluster.")
@click.option(
    "--push", "address", metavar="ADDRESS", help="After the build, copy the index to Milvus, as `push ADDRESS` does."
)
@click.option(
    "--watch", is_flag=True, help="After the build, watch the sources and index all changes, until interrupted."
)
@root_option
@new_index_option
@source_options
@click.pass_context
def build_command(
    context: click.Context,
    /,
    source: tuple[str, ...],
    model: str | None,
    features: str | None,
    no_prune: bool,
    dry_run: bool,
    recall: float | None,
    on: str | None,
    address: str | None,
    watch: bool,
    roots: tuple[tuple[str, str], ...],
    index_path: str,
    device: str,
    form: str,
    **options: Any,
) -> None:
    """Makes an index of the images in SOURCEs, or updates it.

    A SOURCE is a folder, a .zip or .tar archive, a .csv or .jsonl list of images (columns path, label and any others),
    a .parquet file with image bytes, a single image, torchvision/NAME, or a folder or archive at s3://, gs:// or
    https://. Features are computed for new and changed images only. Moved images are recognised by their content, and
    missing images are removed from the index. Without SOURCE, all sources of the index are updated. If a build is
    interrupted, the next build continues it.
    """
    if watch:
        _check_watch(dry_run, on, address)
    if address is not None:
        parse_address(address)
    extractor = ray.on_ray(on, device=device, threads=options["workers"], say=note) if on is not None else None
    chosen = indexing_options.BuildOptions(prune=not no_prune, **options)
    if dry_run:
        _print_summary(api.plan(source, index_path, model, chosen, features), index_path, form, dry_run=True)
        return
    with show_progress("indexing") as progress:
        chosen = indexing_options.BuildOptions(prune=not no_prune, progress=progress, extractor=extractor, **options)
        engine, summary = api.build_with_summary(
            source, index_path, model, device=device, options=chosen, roots=dict(roots), features=features
        )
    _print_summary(summary, index_path, form)
    if not watch:
        engine.close()
    if recall is not None:
        _go_on(context, "tune", recall=recall, form=form, index_path=index_path)
    if address is not None:
        _go_on(context, "push", address=address, form=form, index_path=index_path)
    if watch:
        with engine:
            following.follow_index(engine, options, not no_prune, form)


def _go_on(context: click.Context, name: str, **options: Any) -> None:
    """Imports and runs the command `name` of simsearch. Options that are not given have their defaults."""
    group = context.find_root().command
    command = group.get_command(context, name) if isinstance(group, click.Group) else None
    assert command is not None
    context.invoke(command, **options)


def _check_watch(dry_run: bool, on: str | None, address: str | None) -> None:
    """Raises UsageError if `--watch` is combined with `--dry-run`, `--on` or `--push`.

    on, address: the values of `--on` and `--push`; None for an option that is not given.
    Raises MissingExtraError if the packages for `--watch` are not installed.
    """
    for name, given in {"--dry-run": dry_run, "--on": on is not None, "--push": address is not None}.items():
        if given:
            raise UsageError(f"--watch and {name} exclude each other")
    following.check_available()


@click.command("add")
@click.argument("path", nargs=-1, required=True, shell_complete=completion.files)
@moved_model_option
@index_option
@source_options
def add_command(
    path: tuple[str, ...], model: str | None, index_path: str, device: str, form: str, **options: Any
) -> None:
    """Adds images, folders or other sources to an index. Nothing is removed."""
    with api.open(index_path, model=model, device=device) as engine, show_progress("indexing") as progress:
        summary = engine.add(path, progress=progress, **options)
    _print_summary(summary, index_path, form)


def _print_summary(summary: indexing_options.Summary, index_path: str, form: str, dry_run: bool = False) -> None:
    if form == "json":
        echo(json.dumps(dataclasses.asdict(summary)))
        return
    for path, reason in summary.unread:
        note(f"{path} could not be read: {reason}")
    for reason, count in summary.left_out.items():
        note(f"{count:,} left out: {reason}")
    if summary.unlabelled:
        images = pluralize(summary.unlabelled, "image")
        note(f"{images} had a label and now have none")
    for pattern in summary.unmatched:
        note(f"--exclude {pattern} matched nothing")
    if dry_run:
        echo(
            f"{index_path}: would read {pluralize(summary.to_read, 'image')}, remove {summary.removed:,},"
            f" leave {summary.unchanged:,}; nothing was changed"
        )
        return
    changes = format_counts(
        {
            "added": summary.added,
            "updated": summary.updated,
            "moved": summary.moved,
            "removed": summary.removed,
            "unchanged": summary.unchanged,
            "failed": summary.failed,
            "skipped": summary.skipped,
        }
    )
    rate = f" ({summary.computed / summary.seconds:,.0f} images/s)" if summary.computed > 20 else ""
    items = pluralize(summary.items, "item")
    echo(f"{index_path}: {items}; {changes or 'no images'}; {summary.seconds:.1f} s{rate}")
    place = "" if index_path == DEFAULT_INDEX else f" -i {shlex.quote(index_path)}"
    for reason, count in summary.missing_extras.items():
        note(f"{count:,} failed: {reason}")
    if summary.failed:
        note(f"`simsearch info --failures{place}` lists the reasons")
    if not summary.items:
        note("there is nothing to search yet; build again when the source has images")
    if summary.items and summary.items == summary.added:  # the index is new
        note(f"`simsearch query IMAGE{place}` searches it, `simsearch serve{place}` shows it in the browser")


@click.command("remove")
@click.argument("name", metavar="PATH|ID|GLOB", nargs=-1, required=True, shell_complete=completion.pictures)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@index_option
@version_option
def remove_command(name: tuple[str, ...], yes: bool, index_path: str) -> None:
    """Removes items from an index by path, folder, id:N or glob. The image files are never touched."""
    with api.open(index_path, device="cpu") as engine:
        items = engine.find(name)
        if not yes:
            for item, path in zip(items[:20], engine.paths(items[:20]), strict=True):
                echo_ready(f"id:{item.id}  {show_path(path)}")
            if len(items) > 20:
                echo(f"and {len(items) - 20:,} more")
            if not sys.stdin.isatty():
                raise UsageError(
                    f"removing {pluralize(len(items), 'item')} must be confirmed; nothing was removed", hint="add --yes"
                )
            if not click.confirm(f"Remove {pluralize(len(items), 'item')} from {index_path}?"):
                echo("nothing was removed")
                return
        count = engine.remove([item.id for item in items])
        echo(f"{index_path}: {pluralize(len(engine), 'item')}; {count:,} removed")
