"""`simsearch VERB`: each verb parses, calls the Python API once, and prints. Heavy imports wait inside the verbs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from simsearch import cli_cluster, cli_eval, cli_models, cli_search, cli_serve
from simsearch.cli_models import device, files, form, index, version
from simsearch.console import DAMAGED, NO_MATCH, Main, many, missing, opened, progress

if TYPE_CHECKING:
    from simsearch.engine import Engine
    from simsearch.output import Answer
    from simsearch.search import Match
    from simsearch.sync import Summary

Command = TypeVar("Command", bound=Callable[..., Any])
root = click.option(
    "--root", "roots", multiple=True, metavar="[OLD=]NEW", help="Where the images are now, if they have moved."
)
known_model = click.option("--model", metavar="NAME|FILE", help="The index's model, where its weights have moved.")


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@version
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def main(debug: bool) -> None:
    """Finds the pictures most like a picture.

    \b
    simsearch build photos/             make an index of a folder, or bring it up to date
    simsearch query cat.jpg             the six indexed pictures most like cat.jpg
    """


def _engine(path: str, *, model: str | None = None, device: str = "auto", roots: Sequence[str] = ()) -> Engine:
    from simsearch import api

    return api.open(path, model=model, device=device, roots=_roots(roots))


def _roots(pairs: Sequence[str]) -> dict[str, str]:
    """`OLD=NEW` by recorded root; a bare NEW stands for all others."""
    split = [pair.rpartition("=") for pair in pairs]
    return {old: str(Path(new).absolute()) for old, _, new in split}


def sources_and_options(command: Command) -> Command:
    """What `build` and `add` share."""
    shown = (
        click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out matching paths or names; repeatable."),
        click.option("--labels", type=click.Choice(["auto", "folder", "none"]), default="auto", show_default=True,
                     help="Label images by the folder they sit in: auto if all sit in one."),
        click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images computed at once."),
        click.option("--workers", type=click.IntRange(1), metavar="N", help="Images decoded at once."),
        device, index, form, version,
    )  # fmt: skip
    for option in reversed(shown):
        command = option(command)
    return command


@main.command()
@click.argument("source", nargs=-1, shell_complete=files)
@click.option("--model", metavar="NAME|FILE", help="Model of a new index; `simsearch models` lists them.")
@click.option(
    "--features",
    metavar="NAME|INDEX",
    help="Features of a new index: fc7, a smaller or better recipe (see the README), or those of an index.",
)
@click.option("--no-prune", is_flag=True, help="Keep items whose image is gone.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--recall", type=click.FloatRange(0, 1, min_open=True), metavar="R",
              help="Afterwards, choose how to search, as `tune --recall R` does.")  # fmt: skip
@click.option("--on", metavar="ray[://HOST:PORT]", help="Compute with the machines of a Ray cluster.")
@click.option("--push", "address", metavar="ADDRESS", help="Afterwards, copy it to Milvus, as `push ADDRESS` does.")
@root
@sources_and_options
def build(
    source: tuple[str, ...], model: str | None, features: str | None, no_prune: bool, dry_run: bool,
    recall: float | None, on: str | None, address: str | None, roots: tuple[str, ...], index_path: str, device: str,
    form: str, **options: Any,
) -> None:  # fmt: skip
    """Makes an index from SOURCEs or brings it in step with them.

    A SOURCE is a folder, a .zip or .tar archive, a .csv or .jsonl manifest (columns path, label, any others), a
    .parquet file with image bytes, a single image, or torchvision/NAME. New and changed images are computed, moved
    ones recognised by their content, and gone ones removed from the index. Without SOURCE, all sources that the
    index knows are brought up to date. An interrupted build continues where it was.
    """
    from simsearch import api, sync

    if address is not None:
        from simsearch.addresses import parse

        parse(address)
    extractor = cli_cluster.extractor(on, device, options["workers"]) if on is not None else None
    chosen = sync.Options(prune=not no_prune, **options)
    if dry_run:
        _say(api.plan(source, index_path, model, chosen, features), index_path, form, dry_run=True)
        return
    with progress("indexing") as callback:
        chosen = sync.Options(prune=not no_prune, progress=callback, extractor=extractor, **options)
        engine, summary = api.build_with_summary(
            source, index_path, model, device=device, options=chosen, roots=_roots(roots), features=features
        )
    with engine:
        _say(summary, index_path, form)
        if recall is not None:
            cli_search.choose(engine.index, recall, None, index_path)
        if address is not None:
            cli_cluster.send(engine.index, address, form=form)


@main.command()
@click.argument("path", nargs=-1, required=True, shell_complete=files)
@known_model
@sources_and_options
def add(path: tuple[str, ...], model: str | None, index_path: str, device: str, form: str, **options: Any) -> None:
    """Adds images, folders or other sources to an index; nothing is removed from it."""
    with _engine(index_path, model=model, device=device) as engine, progress("indexing") as callback:
        summary = engine.add(path, progress=callback, **options)
    _say(summary, index_path, form)


def _say(summary: Summary, index_path: str, form: str, dry_run: bool = False) -> None:
    import dataclasses
    import json

    if form == "json":
        click.echo(json.dumps(dataclasses.asdict(summary)))
        return
    for folder, reason in summary.unread:
        click.echo(f"note: {folder} could not be listed: {reason}", err=True)
    if dry_run:
        click.echo(f"{index_path}: would read {many(summary.to_read, 'image')}, remove {summary.removed:,},"
                   f" leave {summary.unchanged:,}; nothing was changed")  # fmt: skip
        return
    changes = {"added": summary.added, "updated": summary.updated, "moved": summary.moved, "removed": summary.removed,
               "unchanged": summary.unchanged, "failed": summary.failed}  # fmt: skip
    told = ", ".join(f"{count:,} {name}" for name, count in changes.items() if count)
    rate = f" ({summary.computed / summary.seconds:,.0f} images/s)" if summary.computed > 20 else ""
    items = many(summary.items, "item")
    click.echo(f"{index_path}: {items}; {told or 'no images'}; {summary.seconds:.1f} s{rate}")
    if summary.failed:
        click.echo(f"note: `simsearch info --failures -i {index_path}` says why images failed", err=True)


@main.command()
@click.argument("name", metavar="PATH|ID|GLOB", nargs=-1, required=True, shell_complete=files)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@index
@version
def remove(name: tuple[str, ...], yes: bool, index_path: str) -> None:
    """Removes items from an index by path, folder, id:N or glob. The image files are never touched."""
    from simsearch import output
    from simsearch.errors import UsageError

    with _engine(index_path, device="cpu") as engine:
        items = engine.find(name)
        if not yes:
            for item, path in zip(items[:20], engine.paths(items[:20]), strict=True):
                click.echo(f"id:{item.id}  {output.printable(path)}")
            if len(items) > 20:
                click.echo(f"and {len(items) - 20:,} more")
            if not sys.stdin.isatty():
                raise UsageError(f"to be removed: {len(items):,}; nothing was", hint="--yes confirms it")
            if not click.confirm(f"Remove {many(len(items), 'item')} from {index_path}?"):
                click.echo("nothing was removed")
                return
        count = engine.remove([item.id for item in items])
        click.echo(f"{index_path}: {many(len(engine), 'item')}; {count:,} removed")


@main.command()
@click.argument("image", nargs=-1, required=True, shell_complete=files)
@click.option("-k", "--top-k", "k", type=click.IntRange(1), default=6, show_default=True, help="Matches a query.")
@click.option("--max-distance", type=click.FloatRange(0), metavar="D", help="Only matches at most this far.")
@click.option("--filter", "filters", multiple=True, metavar="COND",
              help="Only items that meet a condition: label=cat, path~GLOB, year>2000; repeatable.")  # fmt: skip
@click.option("--crop", metavar="X,Y,W,H", help="Search by this part of the query, in pixels.")
@click.option("--plus", multiple=True, metavar="IMAGE[=W]", help="Also be like this picture, W times; repeatable.")
@click.option("--minus", multiple=True, metavar="IMAGE[=W]", help="Be unlike this picture, W times; repeatable.")
@click.option("--exact", is_flag=True, help="Do not search approximately, even if the index could.")
@click.option("--dedup", is_flag=True, help="One match for each group of near-identical ones.")
@click.option("--expand", type=click.IntRange(1), metavar="N",
              help="Search again by the mean of the query and its N first matches.")  # fmt: skip
@click.option("--flip", is_flag=True, help="A mirrored picture counts as the same.")
@click.option("--format", "form", type=click.Choice(["table", "json", "jsonl", "csv", "paths"]), default=None,
              help="How to print matches.  [default: table]")  # fmt: skip
@click.option("-0", "--print0", is_flag=True, help="Print paths, each closed by a NUL.")
@click.option("--relative", is_flag=True, help="Print paths as stored, relative to their source.")
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path), metavar="FILE", help="Write a report in one HTML file."
)
@click.option("--montage", type=click.Path(path_type=Path), metavar="FILE", help="Write a picture: a row a query.")
@click.option("--show", is_flag=True, help="Show the pictures in the terminal.")
@root
@known_model
@device
@index
@version
def query(
    image: tuple[str, ...], k: int, form: str | None, print0: bool, relative: bool, html_file: Path | None,
    montage: Path | None, show: bool, roots: tuple[str, ...], model: str | None, index_path: str, device: str,
    **options: Any,
) -> None:  # fmt: skip
    """Finds the indexed pictures most like each IMAGE: a path, id:N, an http(s) URL, or - for standard input.

    Exits 1 if no match was found.
    """
    from dataclasses import replace

    from simsearch import output, queries
    from simsearch.errors import UsageError

    if print0 and form not in {None, "paths"}:
        raise UsageError(f"--print0 prints paths, not {form}")
    if montage:
        from simsearch.report import montage_format

        montage_format(montage)
    for file in (montage, html_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise UsageError(f"{file} cannot be written: its folder does not exist")
    feedback = [queries.weight(text)[0] for text in (*options["plus"], *options["minus"])]
    if [*image, *feedback].count("-") > 1:
        raise UsageError("standard input can be read only once, but - is given several times")
    pictures = [queries.picture(text) for text in image]
    chosen = queries.options(**options)
    with opened(_engine(index_path, model=model, device=device, roots=roots)) as engine:
        answers = []
        for start in range(0, len(image), 64):
            clock = time.perf_counter()
            found = engine.search_many(pictures[start : start + 64], k, **chosen)
            took = 1000 * (time.perf_counter() - clock) / len(found)
            for name, matches in zip(image[start : start + 64], found, strict=True):
                shown = [replace(match, path=match.relative) for match in matches] if relative else matches
                answers.append(output.Answer(name, engine.meta.model, matches.exact, took, shown))
        text = output.render(answers, "paths" if print0 else form or "table", "\0" if print0 else "\n")
        click.echo(text, nl=False, color=True)  # a path is printed as it is, whatever it holds
        if montage or html_file or show:
            _report(engine, pictures, answers, montage, html_file, show)
    if not any(answer.matches for answer in answers):
        raise click.exceptions.Exit(NO_MATCH)


def _report(
    engine: Engine, pictures: Sequence[Any], answers: Sequence[Answer], montage: Path | None, html_file: Path | None,
    show: bool,
) -> None:  # fmt: skip
    """Shows queries and matches with their images, in files and in the terminal."""
    from simsearch import report

    def tile(match: Match) -> report.Picture:
        image = engine.thumbnail(match.id)
        return report.Picture(image, match.path, match.label, match.id, match.distance, match.similarity)

    rows = [
        report.Row(report.Picture(engine.thumbnail(picture), answer.query), [tile(match) for match in answer.matches])
        for picture, answer in zip(pictures, answers, strict=True)
    ]
    if show:
        cli_search.show(rows)
    if montage:
        report.save_montage(rows, montage)
        click.echo(f"note: wrote {montage}", err=True)
    if html_file:
        facts = {"index": str(engine.path), "model": engine.meta.model, "items": f"{len(engine):,}"}
        report.save_html(rows, html_file, "Most similar pictures", facts)
        click.echo(f"note: wrote {html_file}", err=True)


@main.command()
@click.option("--failures", is_flag=True, help="List the images that could not be indexed, and why.")
@form
@root
@index
@version
def info(failures: bool, form: str, roots: tuple[str, ...], index_path: str) -> None:
    """Says what is in an index."""
    import json

    from simsearch import output

    with _engine(index_path, device="cpu", roots=roots) as engine:
        if failures:
            listed = engine.failures()
            if form == "json":
                click.echo(json.dumps([{"path": path, "reason": reason} for path, reason in listed], indent=1))
            else:
                for path, reason in listed:
                    click.echo(f"{output.printable(path)}: {reason}")
                click.echo(f"{len(listed):,} in all", err=True)
            return
        facts, told = engine.info(), missing(engine)
    if form == "json":
        click.echo(json.dumps(facts, indent=1))
        return
    search = facts["search"]
    lines = [
        ("items", f"{facts['items']:,}"), ("failures", f"{facts['failures']:,}"),
        ("labels", f"{facts['labels']:,}"), ("model", facts["model"]), ("weights", facts["weights_sha256"]),
        ("recipe", f"shorter side {facts['recipe']['resize']}, centre {facts['recipe']['crop']}"),
        ("features", f"{facts['features']}, {facts['dimension']:,} x {facts['storage']}, {facts['metric']},"
                     f" by {facts['engine']}"),
        *(("search", line) for line in _searched(search)), ("size", output.size(facts["bytes"])),
        *(("source", f"{source['kind']} {source['root']} ({source['items']:,})") for source in facts["sources"]),
    ]  # fmt: skip
    if removed := facts["rows"] - facts["items"]:
        lines.append(
            ("removed", f"{many(removed, 'row')} that no item owns; simsearch compact -i {index_path} reclaims them")
        )
    lines += [("push", told)] if told else []
    for line in output.table(lines):
        click.echo(line)


def _searched(search: dict[str, Any]) -> Iterator[str]:
    """How an index is searched, how well, and what to do where that is not well enough."""
    if "low" not in search:
        yield f"{search['kind']}, recall {search['recall']:.3f}"
        return
    bits = f" of {search['parameters']['dimensions']} bits" if search["kind"] == "codes" else ""
    yield (f"{search['kind']}{bits}, recall {search['recall']:.3f} ({search['low']:.3f} to {search['high']:.3f},"
           f" {search['queries']} queries)")  # fmt: skip
    if since := search.get("since"):
        yield (f"recall {since['recall']:.3f} ({since['low']:.3f} to {since['high']:.3f}, {since['queries']} queries)"
               " of items added since")  # fmt: skip
    if search.get("missing"):
        yield f"its files are gone or damaged, so every search is exact; {search['repair']} makes them anew"
    elif "repair" in search:
        yield f"below the {search['target']:g} asked for; {search['repair']} repairs it"


@main.command()
@form
@index
@version
def verify(form: str, index_path: str) -> None:
    """Checks that the files of an index agree, byte for byte; exits 3 if they do not."""
    import dataclasses
    import json

    from simsearch.verify import verify as check

    with _engine(index_path, device="cpu") as engine, progress("verifying") as callback:
        verdict = check(engine.opened_index, callback)
    if form == "json":
        click.echo(json.dumps(dataclasses.asdict(verdict)))
    elif not verdict.problems:
        items, rows = many(verdict.items, "item"), many(verdict.checked, "row")
        click.echo(f"{index_path}: ok, {items}, {rows} of features checked")
    for problem in verdict.problems:
        click.echo(f"error: {problem}", err=True)
    if verdict.problems:
        raise click.exceptions.Exit(DAMAGED)


@main.command()
@click.option("--format", "form", type=click.Choice(["npy", "parquet"]), default="npy", show_default=True,
              help="The file format; parquet needs pip install 'simsearch[parquet]'.")  # fmt: skip
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where to."
)
@root
@index
@version
def export(form: str, folder: Path, roots: tuple[str, ...], index_path: str) -> None:
    """Writes the features and what they belong to.

    npy: features.npy (one float32 row an item) and items.jsonl. parquet: items.parquet, with float16 features.
    """
    from simsearch.export import export_npy, export_parquet

    with opened(_engine(index_path, device="cpu", roots=roots)) as engine, progress("exporting") as callback:
        count = (export_parquet if form == "parquet" else export_npy)(engine.opened_index, folder, callback)
    click.echo(f"{folder}: {many(count, 'item')}")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-n", "--count", type=click.IntRange(1), default=600, show_default=True, help="Pictures.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed draws other pictures.")
@version
def sample(directory: Path, count: int, seed: int) -> None:
    """Draws labelled pictures into DIRECTORY, a folder a kind, for trying things without any data."""
    from simsearch import sample as drawing

    with progress("drawing") as callback:
        written = drawing.write(directory, count, seed, callback)
    click.echo(f"{directory}: {many(written, 'picture')} of {many(min(count, len(drawing.KINDS)), 'kind')}")


for _command in (
    cli_models.train, cli_models.classify, cli_eval.evaluation, cli_models.models,
    cli_search.duplicates, cli_search.merge, cli_search.compact, cli_search.tune, cli_serve.serve, cli_serve.demo,
    cli_serve.completion, cli_cluster.push,
):  # fmt: skip
    main.add_command(_command)


def help_texts() -> dict[str, str]:
    """The `--help` of each command, 100 columns wide, by its name: what the README shows."""
    wide = {"max_content_width": 100, "terminal_width": 100, "help_option_names": ["-h", "--help"]}
    with click.Context(main, info_name="simsearch", **wide) as parent:  # type: ignore[arg-type]
        return dict(_help_of(main, parent, ""))


def _help_of(group: click.Group, parent: click.Context, prefix: str) -> Iterator[tuple[str, str]]:
    for name, command in sorted(group.commands.items()):
        with click.Context(command, info_name=name, parent=parent) as context:
            yield prefix + name, command.get_help(context) + "\n"
            if isinstance(command, click.Group):
                yield from _help_of(command, context, f"{prefix}{name} ")


if __name__ == "__main__":
    main()
