"""The verbs that measure an index: `eval search`, `eval recall` and `eval robustness`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from simsearch.cli.console import many, opened, progress
from simsearch.cli.models import device, form, index, version
from simsearch.cli.models import evaluation as evaluation

if TYPE_CHECKING:
    from simsearch.engine import Engine
    from simsearch.evaluate_search import Query, Verdict
    from simsearch.report import Row

seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the items drawn.")

SHOWN = ("P@1", "P@6", "R-precision", "mAP", "knn_accuracy")
"""What is told of each class."""


@evaluation.command("search")
@click.option("--queries", "sources", multiple=True, metavar="SOURCE",
              help="Query with these labelled pictures, not with the index's own; repeatable.")  # fmt: skip
@click.option("--per-class", is_flag=True, help="Print a line a class as well.")
@click.option("--html", "html_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the scores, and the best and worst queries, in one HTML file.")  # fmt: skip
@form
@device
@index
@version
def search(
    sources: tuple[str, ...], per_class: bool, html_file: Path | None, form: str, device: str, index_path: str
) -> None:
    """How well an index retrieves, by its labels: P@k, R-precision, mAP, recall, kNN, with 95 % intervals.

    Each labelled item queries once, itself left out; items of its label are relevant. The whole ranking by exact
    distance is evaluated. Intervals are by bootstrap over the queries.
    """
    import json

    from simsearch import evaluate_search, output, trainset
    from simsearch.api import open as open_index

    pictures = trainset.labelled(sources) if sources else None
    with opened(open_index(index_path, device=device)) as engine:
        with progress("evaluating") as callback:
            verdict = evaluate_search.evaluate(engine, pictures, callback)
        if html_file:
            _report(engine, verdict, html_file)
    if form == "json":
        click.echo(json.dumps(verdict.to_dict(), indent=1))
        return
    left = f", {many(verdict.unlabelled, 'item')} without a label left out" if verdict.unlabelled else ""
    failed = f", {many(verdict.failed, 'query', 'queries')} could not be decoded" if verdict.failed else ""
    queries, items = many(verdict.count, "query", "queries"), many(verdict.items, "item")
    click.echo(f"{verdict.model}: {queries} over {items} of {many(len(verdict.classes), 'class', 'classes')}"
               f"{left}{failed}; P@k by chance {verdict.chance:.3f}")  # fmt: skip
    for line in output.table([(name, f"{e.value:.3f}", f"({e.low:.3f} to {e.high:.3f})")
                              for name, e in verdict.scores.items()]):  # fmt: skip
        click.echo(line)
    if per_class:
        rows: list[tuple[str, ...]] = [("queries", *SHOWN, "class")]
        for label, (count, scores) in verdict.classes.items():
            rows.append((f"{count:,}", *(f"{scores[name].value:.3f}" for name in SHOWN), output.printable(label)))
        for line in ("", *output.table(rows, right=len(SHOWN) + 1)):
            click.echo(line)


def _report(engine: Engine, verdict: Verdict, path: Path, each: int = 10) -> None:
    """The worst and the best queries with their six nearest items, below the scores."""
    from simsearch import report

    shown = [*verdict.queries[:each], *verdict.queries[each:][-each:][::-1]]
    rows = [_row(engine, query) for query in shown]
    scores = {name: f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})" for name, e in verdict.scores.items()}
    facts = {"index": str(engine.path), "model": verdict.model, "features": engine.meta.features,
             "items": f"{verdict.items:,}", "queries": f"{verdict.count:,}",
             "below": f"the {each} worst queries by average precision, then the best",
             "P@k by chance": f"{verdict.chance:.3f}", **scores}  # fmt: skip
    table: list[tuple[str, ...]] = [("class", "queries", *SHOWN)]
    for label, (count, found) in verdict.classes.items():
        table.append((label, f"{count:,}", *(f"{found[name].value:.3f}" for name in SHOWN)))
    report.save_html(rows, path, "How well the index retrieves", facts, table)
    click.echo(f"note: wrote {path}", err=True)


def _row(engine: Engine, query: Query) -> Row:
    from simsearch import report

    matches = engine.search_many([query.query], 6)[0]
    name = engine.paths([engine.item(query.query)])[0] if isinstance(query.query, int) else query.query
    title = f"{name} (average precision {query.average_precision:.3f})"
    tiles = []
    for match in matches:
        told = ("✓ " if match.label == query.label else "✗ ") + (match.label or "no label")
        tiles.append(report.Picture(engine.thumbnail(match.id), match.path, told, match.id, match.distance,
                                    match.similarity))  # fmt: skip
    return report.Row(report.Picture(engine.thumbnail(query.query), title, query.label), tiles)


@evaluation.command("recall")
@click.option("-k", "--top-k", "k", type=click.IntRange(1), default=10, show_default=True, help="Matches a query.")
@click.option("-n", "--count", type=click.IntRange(1), default=200, show_default=True, help="Items that query.")
@seed
@form
@index
@version
def recall(k: int, count: int, seed: int, form: str, index_path: str) -> None:
    """Which share of the exact k nearest items the index's own search finds, over random items.

    An index that is searched exactly has recall 1.
    """
    import json

    from simsearch import evaluate_search
    from simsearch.api import open as open_index

    with opened(open_index(index_path, device="cpu")) as engine, progress("evaluating") as callback:
        found = evaluate_search.recall(engine, k, count, seed, callback)
    if form == "json":
        click.echo(json.dumps(found.to_dict(), indent=1))
        return
    queries = many(found.queries, "query", "queries")
    click.echo(f"{found.kind} search: recall@{k} {found.recall.value:.4f} ({found.recall.low:.4f} to"
               f" {found.recall.high:.4f}) over {queries}; {found.milliseconds:.1f} ms a query,"
               f" exact {found.exact_milliseconds:.1f} ms")  # fmt: skip


@evaluation.command("robustness")
@click.option("-n", "--count", type=click.IntRange(1), default=200, show_default=True, help="Items that are changed.")
@click.option("--change", "changes", multiple=True, metavar="NAME",
              help="Only this change: shift, rotation, scale, crop, flip, noise, blur, jpeg, colour or text;"
              " repeatable.")  # fmt: skip
@click.option("--hash", "hash_too", is_flag=True, help="Measure a 64-bit perceptual hash as well.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the curves into a .png file.")
@seed
@form
@device
@index
@version
def robustness(
    count: int, changes: tuple[str, ...], hash_too: bool, plot: Path | None, seed: int, form: str, device: str,
    index_path: str,
) -> None:  # fmt: skip
    """How often a changed picture still finds its original first, and how far from it it lies.

    Distances are in units of the median distance of random pairs.
    """
    import dataclasses
    import json

    from simsearch import output, pictures, robustness
    from simsearch.api import open as open_index
    from simsearch.errors import UsageError
    from simsearch.files import write_atomically

    if plot and plot.suffix.lower() != ".png":
        raise UsageError(f"{plot}: curves are drawn as PNG", hint=f"{plot.with_suffix('.png')}")
    with opened(open_index(index_path, device=device)) as engine, progress("changes") as callback:
        found = robustness.of_index(engine, count, changes or tuple(robustness.CHANGES), seed, hash_too=hash_too,
                                    progress=callback)  # fmt: skip
    if plot:
        write_atomically(plot, pictures.png(robustness.draw(found)))
        click.echo(f"note: wrote {plot}", err=True)
    if form == "json":
        plain = {name: [dataclasses.asdict(point) for point in points] for name, points in found.items()}
        click.echo(json.dumps(plain, indent=1))
        return
    for name, points in found.items():
        click.echo(name)
        rows = [("change", "strength", "first", "95 % interval", "distance")]
        rows += [(p.change, f"{p.strength:g}", f"{p.first.value:.1%}", f"{p.first.low:.1%} to {p.first.high:.1%}",
                  f"{p.distance:.3f}") for p in points]  # fmt: skip
        for line in output.table(rows):
            click.echo(line)
