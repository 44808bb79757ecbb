"""The commands that measure a model or an index: `eval model`, `eval search`, `eval recall` and `eval robustness`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import click

from simsearch import api
from simsearch.cli import completion
from simsearch.cli.console import (
    check_folder_exists,
    check_links,
    echo,
    note,
    note_unshown,
    pluralize,
    warn_if_incomplete,
)
from simsearch.cli.lazy import ListingGroup
from simsearch.cli.options import (
    crops_option,
    device_option,
    exclude_option,
    format_option,
    index_option,
    links_option,
    model_option,
    seed_option,
    version_option,
)
from simsearch.cli.progress import show_progress
from simsearch.common.atomic_files import atomic_write
from simsearch.common.links import item_link
from simsearch.common.printable import printable
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.evaluation import classification, retrieval, robustness
from simsearch.evaluation.reliability import Reliability, ReliabilityReport, draw_reliability
from simsearch.images import perturb
from simsearch.images.sources import labelled as sources_labelled
from simsearch.models import classify, load, registry
from simsearch.reports import charts, text
from simsearch.reports.html import Table, save_html
from simsearch.reports.tiles import ResultRow, Tile

CLASS_SCORES = ("P@1", "P@6", "R-precision", "mAP", "knn_accuracy")
"""The scores shown for each class."""


@click.group("eval", cls=ListingGroup)
@version_option
def eval_command() -> None:
    """Measures the quality of a model or an index."""


@eval_command.command("model")
@click.argument("source", nargs=-1, required=True, shell_complete=completion.files)
@crops_option
@click.option(
    "--held-out", is_flag=True, help="Use only the images that were held out when the model was trained on SOURCEs."
)
@exclude_option
@format_option
@model_option
@device_option
@version_option
def model_command(
    source: tuple[str, ...],
    crops: str,
    held_out: bool,
    exclude: tuple[str, ...],
    form: str,
    model: str | None,
    device: str,
) -> None:
    """Measures a model's top-1 and top-5 error on labelled SOURCEs, with 95 % intervals.

    A SOURCE is as for `train`. Images of classes that the model does not know are counted and left out. A note warns if
    the model was trained on some of the images, since its error is then too small. A note also warns if the weights do
    not record the training images.
    """
    labelled = sources_labelled.list_labelled(source, exclude, note)
    chosen = load.load_model(model or registry.DEFAULT, device, images=len(labelled))
    with show_progress("evaluating") as progress:
        verdict = classification.evaluate_classifier(
            chosen, labelled, int(crops), progress, record=load.training_record(model), held_out=held_out
        )
    _note_trained_on(verdict)
    if form == "json":
        echo(json.dumps(verdict.to_dict(), indent=1))
        return
    left = f", {verdict.unknown:,} of unknown classes left out" if verdict.unknown else ""
    failed = f", {verdict.failed:,} could not be decoded" if verdict.failed else ""
    images = pluralize(verdict.images, "image")
    echo(f"{printable(verdict.model)}: {images}{left}{failed}; {crops} crop{'s' * (crops != '1')}")
    errors = {"top-1 error": verdict.top1_error, "top-5 error": verdict.top5_error}
    if len(classify.check_classes(chosen)) < 10:  # five random guesses would be right more than half the time
        del errors["top-5 error"]
    for name, share in errors.items():
        echo(f"{name}  {share.value:6.2%}  ({share.low:.2%} to {share.high:.2%})")


def _note_trained_on(verdict: classification.ClassificationReport) -> None:
    """Prints a note if the model was trained on some of the images, or does not record its training images."""
    name = printable(verdict.model)
    if verdict.trained_on is None:
        note(f"{name} does not record which images it was trained on; if these are among them, the error is too small")
    elif verdict.trained_on:
        of = "all" if verdict.trained_on == verdict.images else f"{verdict.trained_on:,} of the {verdict.images:,}"
        note(f"{name} was trained on {of} images, so the error looks too small; --held-out leaves them out")


@eval_command.command("search")
@click.option(
    "--queries",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Query with these labelled images instead of the index's own; repeatable.",
)
@click.option("--per-class", is_flag=True, help="Also print a line for each class.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the scores and the best and worst queries to an HTML file.",
)
@links_option
@format_option
@device_option
@index_option
@version_option
def search_command(
    sources: tuple[str, ...],
    per_class: bool,
    html_file: Path | None,
    service: str | None,
    form: str,
    device: str,
    index_path: str,
) -> None:
    """Measures how well an index retrieves: P@k, R-precision, mAP, recall and kNN accuracy, with 95 % intervals.

    Each labelled item is a query. All other labelled items are ranked by their exact distance from the query; those
    with the query's label are relevant. The intervals come from a bootstrap over the queries. Two more tables group
    the six nearest items of each query by similarity, and tell how many of each group have the query's label. The first
    table groups by similarity word (copy, close, similar, weak), the second by ranges of the similarity (0 to 0.1, 0.1
    to 0.2 and so on).
    """
    check_folder_exists(html_file)
    check_links(service, html_file)
    labelled = sources_labelled.list_labelled(sources) if sources else None
    with warn_if_incomplete(api.open(index_path, device=device)) as engine:
        with show_progress("evaluating") as progress:
            verdict = retrieval.evaluate_retrieval(engine, labelled, progress)
        if html_file:
            _write_report(engine, verdict, html_file, service)
    if form == "json":
        echo(json.dumps(verdict.to_dict(), indent=1))
        return
    _print_scores(verdict)
    _print_reliability(verdict.reliability)
    if per_class:
        _print_class_scores(verdict)


def _print_scores(verdict: retrieval.RetrievalReport) -> None:
    queries, items = pluralize(verdict.count, "query", "queries"), pluralize(verdict.items, "item")
    classes = pluralize(len(verdict.classes), "class", "classes")
    left = failed = ""
    if verdict.unlabelled:
        left = f", {pluralize(verdict.unlabelled, 'item')} without a label left out"
    if verdict.failed:
        failed = f", {pluralize(verdict.failed, 'query', 'queries')} could not be decoded"
    if verdict.unknown:
        failed += f", {pluralize(verdict.unknown, 'query', 'queries')} of labels that no item has left out"
    chance = f"P@k by chance {verdict.chance:.3f}"
    echo(f"{printable(verdict.model)}: {queries} over {items} of {classes}{left}{failed}; {chance}")
    rows = [(name, f"{e.value:.3f}", f"({e.low:.3f} to {e.high:.3f})") for name, e in verdict.scores.items()]
    for line in text.table(rows):
        echo(line)


def _print_reliability(found: ReliabilityReport) -> None:
    """Prints the share of matches with the query's label, per similarity word and per range of similarity, 0.1 wide."""
    for heading, parts in (("word", found.words), ("similarity", found.curve[::-1])):
        for line in ("", *text.table(_reliability_rows(heading, parts))):
            echo(line)
    means = [
        f"{mean:.3f} {name}" for name, mean in (("right", found.right), ("wrong", found.wrong)) if mean is not None
    ]
    echo(f"mean similarity: {', '.join(means)}")


def _reliability_rows(heading: str, parts: Sequence[Reliability]) -> list[tuple[str, str, str, str]]:
    """Returns a row of headings, `heading` first, and a row for each of `parts` that has matches."""
    rows = [(heading, "matches", "right", "95 % interval")]
    for part in parts:
        if part.right is not None:
            share = f"{part.right.value:.1%}", f"{part.right.low:.1%} to {part.right.high:.1%}"
            rows.append((part.name, f"{part.matches:,}", *share))
    return rows


def _print_class_scores(verdict: retrieval.RetrievalReport) -> None:
    rows: list[tuple[str, ...]] = [("queries", *CLASS_SCORES, "class")]
    for label, (count, scores) in verdict.classes.items():
        values = (f"{scores[name].value:.3f}" for name in CLASS_SCORES)
        rows.append((f"{count:,}", *values, printable(label)))
    for line in ("", *text.table(rows, right=len(CLASS_SCORES) + 1)):
        echo(line)


def _write_report(
    engine: Engine, verdict: retrieval.RetrievalReport, path: Path, service: str | None, each: int = 10
) -> None:
    """Writes an HTML report: scores, up to `each` worst and up to `each` best queries. service: see `item_link`."""
    shown = [*verdict.queries[:each], *verdict.queries[each:][-each:][::-1]]
    rows = [_report_row(engine, query, service) for query in shown]
    facts = {
        "index": str(engine.path),
        "model": verdict.model,
        "features": engine.meta.features,
        "items": f"{verdict.items:,}",
        "queries": f"{verdict.count:,}",
        "below": f"the {each} worst queries by average precision, then the best",
        "P@k by chance": f"{verdict.chance:.3f}",
    }
    scores = [("score", "mean", "95 % interval")]
    scores += [(name, f"{e.value:.3f}", f"{e.low:.3f} to {e.high:.3f}") for name, e in verdict.scores.items()]
    classes: list[tuple[str, ...]] = [("class", "queries", *CLASS_SCORES)]
    for label, (count, found) in verdict.classes.items():
        classes.append((label, f"{count:,}", *(f"{found[name].value:.3f}" for name in CLASS_SCORES)))
    words = _reliability_rows("word", verdict.reliability.words)
    tables: list[Table] = [
        ("Scores", scores),
        ("How often a match was right, by its word", words),
        ("By class", classes),
    ]
    curve = {"How often a match was right, by its similarity": draw_reliability(verdict.reliability)}
    note_unshown(engine, rows)
    save_html(rows, path, "How well the index retrieves", facts, tables=tables, charts=curve)
    note(f"wrote {path}")


def _report_row(engine: Engine, query: retrieval.Query, service: str | None) -> ResultRow:
    name = engine.paths([engine.item(query.query)])[0] if isinstance(query.query, int) else query.query
    tiles = []
    for match in engine.search_many([query.query], 6)[0]:
        label = ("✓ " if match.label == query.label else "✗ ") + (match.label or "no label")
        image = engine.thumbnail(match.id)
        link = item_link(service, match.id) if service else None
        tiles.append(Tile(image, match.path, label, match.id, match.distance, match.similarity, link=link))
    precision = f"average precision {query.average_precision:.3f}"
    return ResultRow(Tile(engine.thumbnail(query.query), name, query.label, details=precision), tiles)


@eval_command.command("recall")
@click.option("-k", "--top-k", "k", type=click.IntRange(1), default=10, show_default=True, help="Matches per query.")
@click.option("-n", "--count", type=click.IntRange(1), default=200, show_default=True, help="Number of queries.")
@seed_option
@format_option
@index_option
@version_option
def recall_command(k: int, count: int, seed: int, form: str, index_path: str) -> None:
    """Measures the recall of the index's search: the share of the true k nearest items that the search finds.

    The queries are random items. An index that is searched exactly has recall 1.
    """
    with (
        warn_if_incomplete(api.open(index_path, device="cpu")) as engine,
        show_progress("evaluating") as progress,
    ):
        found = retrieval.measure_recall(engine, k, count, seed, progress)
    if form == "json":
        echo(json.dumps(found.to_dict(), indent=1))
        return
    queries = pluralize(found.queries, "query", "queries")
    echo(
        f"{found.kind} search: recall@{k} {found.recall.value:.4f} ({found.recall.low:.4f} to"
        f" {found.recall.high:.4f}) over {queries}; {found.milliseconds:.1f} ms per query,"
        f" exact {found.exact_milliseconds:.1f} ms"
    )


@eval_command.command("robustness")
@click.option(
    "-n", "--count", type=click.IntRange(1), default=200, show_default=True, help="Number of items to change."
)
@click.option(
    "--change",
    "changes",
    multiple=True,
    metavar="NAME",
    shell_complete=completion.changes,
    help="Make only this change: shift, rotation, scale, crop, flip, noise, blur, jpeg, colour or text; repeatable.",
)
@click.option("--hash", "hash_too", is_flag=True, help="Also measure a 64-bit perceptual hash.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw charts of the results (.png).")
@seed_option
@format_option
@device_option
@index_option
@version_option
def robustness_command(
    count: int,
    changes: tuple[str, ...],
    hash_too: bool,
    plot: Path | None,
    seed: int,
    form: str,
    device: str,
    index_path: str,
) -> None:
    """Measures how often a search by a changed image finds the original first, and the distance between the two.

    Images of the index are changed, for example rotated or blurred. Distances are in units of the median distance of
    random pairs of items.
    """
    if plot and plot.suffix.lower() != ".png":
        raise UsageError(f"{plot}: charts are drawn as PNG", hint=f"{plot.with_suffix('.png')}")
    names = changes or tuple(perturb.CHANGES)
    with (
        warn_if_incomplete(api.open(index_path, device=device)) as engine,
        show_progress("changes") as progress,
    ):
        found = robustness.of_index(engine, count, names, seed, hash_too=hash_too, progress=progress)
    if plot:
        atomic_write(plot, charts.png(robustness.draw(found)))
        note(f"wrote {plot}")
    if form == "json":
        plain = {name: [dataclasses.asdict(point) for point in points] for name, points in found.items()}
        echo(json.dumps(plain, indent=1))
        return
    for name, points in found.items():
        echo(name)
        for line in text.table(
            [("change", "strength", "first", "95 % interval", "distance"), *map(_point_row, points)]
        ):
            echo(line)


def _point_row(point: robustness.RobustnessPoint) -> tuple[str, str, str, str, str]:
    interval = f"{point.first.low:.1%} to {point.first.high:.1%}"
    return point.change, f"{point.strength:g}", f"{point.first.value:.1%}", interval, f"{point.distance:.3f}"
