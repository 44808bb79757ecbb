"""The verbs about models: `train`, `classify`, `eval model` and `models`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from simsearch import __version__
from simsearch.cli.console import INTERRUPTED, many, progress, training

if TYPE_CHECKING:
    from simsearch.evaluate import Guess


def files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Lets the shell complete an argument that may be a file, and may be something else."""
    return [CompletionItem(incomplete, type="file")]


version = click.version_option(__version__, prog_name="simsearch")
device = click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda or cuda:N."
)
form = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print."
)
index = click.option(
    "-i", "--index", "index_path", metavar="PATH", envvar="SIMSEARCH_INDEX", default="indexes/default",
    show_default=True, help="The index; also $SIMSEARCH_INDEX.", shell_complete=files,
)  # fmt: skip
model_option = click.option("-m", "--model", metavar="NAME|FILE", help="Which model.  [default: the default model]")
crops = click.option(
    "--crops", type=click.Choice(["1", "10"]), default="1", show_default=True,
    help="The centre, or the mean over the paper's ten patches.",
)  # fmt: skip


@click.command()
@click.argument("source", nargs=-1, required=True, shell_complete=files)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE",
              help="Where to write the weights, a .safetensors file.")  # fmt: skip
@click.option("--model", "architecture", type=click.Choice(["alexnet", "lenet5", "convnet4"]), default=None,
              help="The network.  [default: alexnet, or that of --from]")  # fmt: skip
@click.option(
    "--preset", metavar="NAME", help="alexnet: paper, fast, small, adapt; lenet5: paper, distorted.  [default: paper]"
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting of the preset; repeatable."
)
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="Passes over the images; short for --set epochs=N.")
@click.option("--objective", type=click.Choice(["classification", "metric"]),
              help="What to learn: labels, or features that are near those of the same label as well."
              "  [default: classification]")  # fmt: skip
@click.option("--val", "validation", multiple=True, metavar="SOURCE", help="Validate on these images; repeatable.")
@click.option("--held-out", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True, metavar="SHARE",
              help="Without --val: hold out this share of each class.")  # fmt: skip
@click.option(
    "--from", "start", metavar="NAME|FILE", help="Begin with these weights; other classes replace the last layer."
)
@click.option("--freeze", type=click.Choice(["none", "convolutions", "features"]), default="none", show_default=True,
              help="With --from: leave these layers as they are.")  # fmt: skip
@click.option(
    "--names", type=click.Path(path_type=Path), metavar="FILE", help="Names of the classes: label, tab, name."
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out matching paths or names; repeatable.")
@click.option("--resume", is_flag=True, help="Continue an interrupted training exactly where it was.")
@click.option("--overwrite", is_flag=True, help="Replace weights, or an interrupted training, of the same name.")
@device
@version
def train(source: tuple[str, ...], output: Path, names: Path | None, **options: Any) -> None:
    """Trains a network on labelled SOURCEs and writes one .safetensors file with all that belongs to it.

    A SOURCE is what `build` takes, labelled by its folders, columns or data set. Beside the weights FILE.safetensors
    are left the log FILE.jsonl and its curve FILE.png, and until the training is done FILE.checkpoint, with which
    --resume continues after Ctrl-C or a crash. Use the weights with `build --model FILE` and `classify -m FILE`.
    Several GPUs: torchrun --nproc-per-node N -m simsearch train ...
    """
    from simsearch import fit, models
    from simsearch.errors import TrainingInterruptedError

    job = fit.prepare(source, output, names=fit.read_names(names) if names else None, **options)
    if options["preset"] == "adapt" and not job.start:
        click.echo(f"note: preset adapt is meant for weights to begin with: --from {models.DEFAULT}, say", err=True)
    try:
        with training() as (decoding, log, stop):
            outcome = fit.fit(job, progress=decoding, log=log, stop=stop)
    except TrainingInterruptedError as error:
        click.echo(f"note: {error}; {error.hint}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    if outcome.bytes:
        for name, scores in outcome.metrics.items():
            click.echo(f"{name}: {', '.join(fit.metric(*pair) for pair in scores.items())}")
        click.echo(f"{outcome.output}: {many(outcome.classes, 'class', 'classes')} from"
                   f" {many(outcome.images, 'image')} in"
                   f" {outcome.seconds:,.0f} s, {outcome.bytes:,} bytes")  # fmt: skip


@click.command()
@click.argument("image", nargs=-1, required=True, shell_complete=files)
@click.option("-k", "--top-k", "k", type=click.IntRange(1), default=5, show_default=True, help="Guesses an image.")
@crops
@click.option("--format", "form", type=click.Choice(["text", "json", "jsonl"]), default="text", show_default=True,
              help="How to print.")  # fmt: skip
@model_option
@device
@version
def classify(image: tuple[str, ...], k: int, crops: str, form: str, model: str | None, device: str) -> None:
    """Says what each IMAGE most probably shows: a path, an http(s) URL, or - for standard input."""
    import json

    from simsearch import evaluate, models
    from simsearch.cli import query_args as queries
    from simsearch.errors import UsageError

    if any(text.startswith("id:") for text in image):
        raise UsageError("id:N names an item of an index; classify takes pictures")
    chosen = models.load(model or models.DEFAULT, device, images=len(image) * int(crops))
    found = evaluate.classify(chosen, [queries.picture(text) for text in image], k, int(crops))
    if form == "text":
        for number, (name, guesses) in enumerate(zip(image, found, strict=True)):
            click.echo(("\n" if number else "") + _bars(name, guesses))
        return
    answers = (
        {"query": name, "model": chosen.name, "guesses": [{"label": g.label, "probability": g.probability} for g in gs]}
        for name, gs in zip(image, found, strict=True)
    )
    if form == "jsonl":
        for answer in answers:
            click.echo(json.dumps(answer))
        return
    click.echo(json.dumps(list(answers), indent=1))


def _bars(name: str, guesses: Sequence[Guess], width: int = 30) -> str:
    from simsearch.output import printable

    longest = max(len(printable(guess.label)) for guess in guesses)
    lines = [printable(name)]
    for guess in guesses:
        eighths = round(guess.probability * width * 8)
        bar = "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
        lines.append(f"  {printable(guess.label).ljust(longest)}  {guess.probability:6.1%}  {bar}".rstrip())
    return "\n".join(lines)


@click.group("eval")
@version
def evaluation() -> None:
    """Measures how good a model, or an index, is."""


def _calibrate(model: str | None, sources: Sequence[str]) -> None:
    """Writes a weights file's ranges and says how well int8 then does."""
    from simsearch import ranges
    from simsearch.errors import UsageError
    from simsearch.models.precision import ENOUGH

    if model is None:
        raise UsageError("--calibrate needs a weights file to write into", hint="-m FILE.safetensors")
    with progress("decoding") as callback:
        found = ranges.calibrate(model, sources, callback)
    verdict = (
        "new indexes take it where the processor has VNNI" if found.top6 >= ENOUGH else "float32 stays the default"
    )
    click.echo(f"{model}: on {found.images:,} images int8 shares {found.top6:.1%} of the six nearest with float32,"
               f" median cosine {found.cosine:.5f}; {verdict}")  # fmt: skip


@evaluation.command("model")
@click.argument("source", nargs=-1, required=True, shell_complete=files)
@crops
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out matching paths or names; repeatable.")
@form
@model_option
@device
@version
def evaluate_model(
    source: tuple[str, ...], crops: str, exclude: tuple[str, ...], form: str, model: str | None, device: str
) -> None:
    """Top-1 and top-5 error of a model's guesses over labelled SOURCEs, with 95 % intervals.

    A SOURCE is what `train` takes. Images of classes that the model does not know are counted and left out.
    """
    import json

    from simsearch import evaluate, models, trainset

    pictures = trainset.labelled(source, exclude)
    chosen = models.load(model or models.DEFAULT, device, images=len(pictures))
    with progress("evaluating") as callback:
        verdict = evaluate.judge(chosen, pictures, int(crops), callback)
    if form == "json":
        click.echo(json.dumps(verdict.to_dict(), indent=1))
        return
    left = f", {verdict.unknown:,} of unknown classes left out" if verdict.unknown else ""
    failed = f", {verdict.failed:,} could not be decoded" if verdict.failed else ""
    click.echo(f"{verdict.model}: {many(verdict.images, 'image')}{left}{failed}; {crops} crop{'s' * (crops != '1')}")
    for name, share in (("top-1 error", verdict.top1_error), ("top-5 error", verdict.top5_error)):
        click.echo(f"{name}  {share.value:6.2%}  ({share.low:.2%} to {share.high:.2%})")


@click.command()
@click.option("--verbose", is_flag=True, help="Print each model's card.")
@click.option("--filters", type=click.Path(path_type=Path), metavar="FILE",
              help="Draw the first layer's kernels into a .png file.")  # fmt: skip
@click.option("--calibrate", multiple=True, metavar="SOURCE",
              help="Ready --model FILE for int8: measure its ranges on training images; repeatable.")  # fmt: skip
@click.option("-m", "--model", metavar="NAME|FILE", help="Only this model; for --filters, instead of the default.")
@form
@version
def models(verbose: bool, filters: Path | None, calibrate: tuple[str, ...], model: str | None, form: str) -> None:
    """Lists the models that an index can be built with."""
    import json

    from simsearch.cli import model_cards as cards

    if calibrate:
        _calibrate(model, calibrate)
        return
    if filters:
        count = cards.draw_filters(model, filters)
        click.echo(f"{filters}: {count} kernels")
        return
    if form == "json":
        click.echo(json.dumps(cards.facts(model), indent=1))
        return
    click.echo(cards.verbose(model) if verbose or model else cards.brief())
