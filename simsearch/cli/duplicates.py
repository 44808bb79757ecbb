"""The commands `duplicates` and `restore`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from simsearch import api
from simsearch.cli import completion, duplicate_groups
from simsearch.cli.console import (
    NO_MATCH,
    check_folder_exists,
    check_links,
    echo,
    note,
    note_unshown,
    pluralize,
    warn_if_incomplete,
)
from simsearch.cli.options import device_option, html_option, index_option, links_option, version_option
from simsearch.cli.progress import show_progress
from simsearch.common.links import item_link
from simsearch.curation.cleanup import ignored, keep, run
from simsearch.curation.cleanup import restore as restoring
from simsearch.curation.cleanup.plan import Plan, make_plan
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.reports import text
from simsearch.reports.html import save_html
from simsearch.reports.tiles import ResultRow, Tile
from simsearch.search import duplicates as near
from simsearch.search import near_rows
from simsearch.search.copy_threshold import Threshold, copy_threshold
from simsearch.storage.reader import modified

Groups = list[list[near.Member]]

_DOING = {"move": "moved", "trash": "put into the trash", "hardlink": "replaced by hard links"}

_SHOWN = 5
"""Largest number of problems that are printed, each in a note."""


@click.command("duplicates")
@click.option(
    "--max-distance",
    type=click.FloatRange(0),
    metavar="D",
    help="Call images near-identical if their distance is at most D, without comparing their pixels.  [default: compare"
    " the pixels of two images up to a distance that is measured with changed copies of the index's images]",
)
@click.option(
    "--keep",
    "rule",
    metavar="RULE",
    help="Which image of each group is kept: largest (in pixels), oldest, newest, shortest-path, under:DIR (every image"
    " in DIR is kept), or against (the image in the INDEX or FOLDER of --against).  [default: against with --against,"
    " else largest]",
)
@click.option(
    "--against",
    metavar="INDEX|FOLDER",
    help="Only list images that INDEX or FOLDER has too. The files of INDEX or FOLDER are never changed.",
    shell_complete=completion.files,
)
@click.option("--move-to", metavar="DIR", help="Move duplicates of the kept image to their relative paths in DIR.")
@click.option("--trash", is_flag=True, help="Put duplicates of the kept image into the desktop's trash.")
@click.option("--hardlink", is_flag=True, help="Replace files identical to the kept image by hard links to it.")
@click.option(
    "-y",
    "--yes",
    is_flag=True,
    help="Carry out --move-to, --trash or --hardlink; without --yes, only print what would be done.",
)
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to record each action in, for `restore`.  [default: simsearch-cleanup-TIME.jsonl in the current folder]",
)
@click.option(
    "--ignore",
    "ignore",
    multiple=True,
    metavar="NAME",
    help="Do not list the group of this image (path, id:N or glob) any more; repeatable.",
)
@click.option("--all", "everything", is_flag=True, help="Also list groups that are ignored.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "jsonl", "csv", "paths"]),
    default="table",
    show_default=True,
    help="Output format. With paths, kept images are left out.",
)
@html_option
@links_option
@click.option("--exact", is_flag=True, help="Compare all pairs, whatever the number of items.")
@device_option
@index_option
@version_option
def duplicates_command(
    max_distance: float | None,
    rule: str | None,
    against: str | None,
    move_to: str | None,
    trash: bool,
    hardlink: bool,
    yes: bool,
    journal: Path | None,
    ignore: tuple[str, ...],
    everything: bool,
    form: str,
    html_file: Path | None,
    service: str | None,
    exact: bool,
    device: str,
    index_path: str,
) -> None:
    """Finds groups of near-identical images, and on request moves or links all but one image of each group.

    Two images are in the same group if they are near-identical, or if a chain of near-identical images connects them.
    One image of each group is kept. --move-to, --trash and --hardlink act on the images that are near-identical to the
    kept one; without --yes, they only print what they would do. The command `restore` takes the actions back.
    Exits 1 if there are no groups.
    """
    action = _action(move_to, trash, hardlink)
    _check(action, against, yes, journal, ignore)
    check_folder_exists(html_file)
    check_links(service, html_file)
    if rule is None and (action or against):
        rule = "against" if against else "largest"
    chosen = None if rule is None else keep.KeepRule.parse(rule, against is not None)
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(warn_if_incomplete(api.open(index_path, device=device)))
        other = stack.enter_context(api.comparable(against, engine)) if against else None
        limit = Threshold(max_distance) if max_distance is not None else _calibrate(engine)
        with show_progress("comparing") as progress:
            groups = engine.duplicates(
                limit, keep=rule, against=other, ignored=everything, exact=exact, progress=progress
            )
        if ignore:
            groups = _ignore(engine, groups, ignore)
        plan = make_plan(groups, chosen, action, limit.distance, move_to or "") if chosen else None
        if html_file:
            _write_report(engine, groups, limit, html_file, service)
        duplicate_groups.print_groups(groups, plan, form)
        echo(duplicate_groups.summary(groups, limit), err=True)
        if len(engine) > near_rows.EXACT and not exact and not other:
            _note_completeness(engine, groups, limit)
        if plan and action and groups:
            _act(plan, yes, journal, index_path)
    if not groups and not ignore:
        raise click.exceptions.Exit(NO_MATCH)


def _calibrate(engine: Engine) -> Threshold:
    with show_progress("calibrating by changed copies") as progress:
        return copy_threshold(engine.opened_index, engine.model, progress=progress)


def _action(move_to: str | None, trash: bool, hardlink: bool) -> str:
    """Returns the requested action: "move", "trash", "hardlink", or "" for none. Raises UsageError for several."""
    given = {"move": move_to is not None, "trash": trash, "hardlink": hardlink}
    if sum(given.values()) > 1:
        raise UsageError("--move-to, --trash and --hardlink exclude each other")
    if move_to == "":
        raise UsageError("--move-to '' names no folder")
    return next((name for name, asked in given.items() if asked), "")


def _check(action: str, against: str | None, yes: bool, journal: Path | None, ignore: tuple[str, ...]) -> None:
    if against == "":
        raise UsageError("--against '' names no index and no folder")
    if not action and (yes or journal):
        raise UsageError(
            f"{'--yes' if yes else '--journal'} needs an action", hint="--move-to DIR, --trash or --hardlink"
        )
    if action and ignore:
        raise UsageError("--ignore only marks groups, and changes no files", hint="clean up in a second command")
    check_folder_exists(journal)


def _ignore(engine: Engine, groups: Groups, names: tuple[str, ...]) -> Groups:
    """Marks the groups of the named items as ignored, and returns the other groups.

    Raises UsageError if a named item is in no group.
    """
    wanted = {item.id for item in engine.find(list(names))}
    chosen = [group for group in groups if any(m.own and m.item.id in wanted for m in group)]
    grouped = {member.item.id for group in chosen for member in group if member.own}
    if missing := sorted(wanted - grouped):
        raise UsageError(
            f"not in any group: {pluralize(len(missing), 'named image')}, the first is id:{missing[0]}",
            hint="no group was marked as ignored",
        )
    ignored.ignore(engine.opened_index, chosen)
    note(f"{pluralize(len(chosen), 'group')} will not be listed again; --all lists them")
    return [group for group in groups if group not in chosen]


def _act(plan: Plan, yes: bool, journal: Path | None, index_path: str) -> None:
    doing = _DOING[plan.action] + (f" to {plan.into}" if plan.into else "")
    size = text.format_size(plan.size)
    if not yes:
        files = pluralize(plan.count, "file")
        note(f"{files} ({size}) would be {doing}; nothing was changed, --yes does it")
        return
    log = (journal or run.journal_path()).absolute()
    existed = log.exists()
    try:
        with show_progress("cleaning up") as progress:
            report = run.carry_out(plan, index_path, log, progress)
    except BaseException:
        if log.exists() and not existed:
            note(f"simsearch restore {log} takes back what was done")
        raise
    echo(f"{pluralize(report.files, 'file')} ({text.format_size(report.bytes)}) {doing}", err=True)
    if report.files:
        note(f"simsearch restore {report.journal} takes it back; simsearch build brings the index in step")
    _report_problems(report.problems, "left alone")


def _report_problems(problems: list[tuple[str, str]], outcome: str) -> None:
    """Prints the path and reason of the first problems. Raises UsageError (exit code 2) if there are any problems.

    problems: (path, reason) pairs. outcome: what happened to these files, such as "left alone".
    """
    for path, reason in problems[:_SHOWN]:
        note(f"{path}: {reason}")
    if problems:
        path, reason = problems[0]
        raise UsageError(f"{outcome}: {pluralize(len(problems), 'file')}, the first is {path}: {reason}")


def _note_completeness(engine: Engine, groups: Groups, limit: Threshold) -> None:
    pairs, together = near.checked(engine.snapshots, groups, limit)
    note(
        f"{together:,} of {pairs:,} near pairs of {near.CHECKED} random items are in one group;"
        " --exact compares all pairs"
    )


def _write_report(engine: Engine, groups: Groups, limit: Threshold, file: Path, service: str | None) -> None:
    def tile(member: near.Member, first: bool = False) -> Tile:
        item = member.item
        parts = [f"{item.width} × {item.height}", text.format_size(item.size)]
        if date := modified(item.stamp):
            parts.append(f"{date:%Y-%m-%d %H:%M}")
        if not first:
            parts.append(f"distance {text.format_distance(member.distance)}")
        number = item.id if member.own else None
        link = item_link(service, item.id) if service and member.own else None
        return Tile(near.thumbnail(member), member.path, item.label, number, details=", ".join(parts), link=link)

    rows = [ResultRow(tile(group[0], True), [tile(member) for member in group[1:]]) for group in groups]
    facts = {
        "index": str(engine.path),
        "model": engine.meta.model,
        "largest distance of linked pictures": f"{limit.farthest:.4g}",
    }
    note_unshown(engine, rows)
    save_html(rows, file, "Near-identical pictures", facts, groups=True)
    note(f"wrote {file}")


@click.command("restore")
@click.argument("journal", type=click.Path(path_type=Path), shell_complete=completion.files)
@version_option
def restore_command(journal: Path) -> None:
    """Takes back what `duplicates` moved or linked.

    JOURNAL is the file that `duplicates` wrote. Files that cannot be put back, for example because another file has
    their path, are listed and left where they are. Nothing is overwritten. The command can be repeated, for example
    after an interruption.
    """
    with show_progress("restoring") as progress:
        result = restoring.restore(journal, progress)
    untouched = f", {result.untouched:,} at their places already" if result.untouched else ""
    echo(f"{pluralize(result.files, 'file')} restored{untouched}")
    _report_problems(result.problems, "not restored")
