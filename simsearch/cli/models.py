"""The commands about models: `models`, `train` and `classify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simsearch.cli import completion, model_cards
from simsearch.cli.console import INTERRUPTED, echo, note, pluralize
from simsearch.cli.options import (
    crops_option,
    device_option,
    exclude_option,
    format_option,
    model_option,
    output_option,
    version_option,
)
from simsearch.cli.progress import show_progress, training_progress
from simsearch.cli.query_args import ask_each
from simsearch.common.item_ids import ID_PREFIX
from simsearch.common.lazy import LazyModule
from simsearch.common.printable import printable
from simsearch.errors import TrainingInterruptedError, UsageError
from simsearch.models import classify, load, registry
from simsearch.models.precision import ENOUGH

if TYPE_CHECKING:
    from simsearch.models.onnx import int8_calibration, int8_static
    from simsearch.training import job as training_job
    from simsearch.training import publish, run
else:  # they import torch
    training_job = LazyModule("simsearch.training.job")
    publish = LazyModule("simsearch.training.publish")
    run = LazyModule("simsearch.training.run")
    int8_calibration = LazyModule("simsearch.models.onnx.int8_calibration")
    int8_static = LazyModule("simsearch.models.onnx.int8_static")


@click.command("train")
@click.argument("source", nargs=-1, required=True, shell_complete=completion.files)
@output_option("output", "FILE", "Where to write the weights, a .safetensors file.")
@click.option(
    "--model",
    "architecture",
    type=click.Choice(["alexnet", "lenet5", "convnet4"]),
    default=None,
    help="The network.  [default: alexnet, or that of --from]",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Settings to start from. For alexnet: paper, fast, small, adapt; for lenet5: paper, distorted."
    "  [default: paper]",
    shell_complete=completion.presets,
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the preset; repeatable.",
    shell_complete=completion.settings,
)
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="Passes over the images; short for --set epochs=N.")
@click.option(
    "--objective",
    type=click.Choice(["classification", "metric"]),
    help="classification learns the labels; metric also brings features of equal labels closer together."
    "  [default: classification]",
)
@click.option(
    "--val", "validation", multiple=True, metavar="SOURCE", help="Validate on the images of SOURCE; repeatable."
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    metavar="SHARE",
    help="Without --val: share of each class that is held out for validation.",
)
@click.option(
    "--from",
    "start",
    metavar="NAME|FILE",
    help="Start with these weights. If the classes are different, the last layer starts with random weights.",
    shell_complete=completion.models,
)
@click.option(
    "--freeze",
    type=click.Choice(["none", "convolutions", "features"]),
    default="none",
    show_default=True,
    help="With --from: layers that keep their weights.",
)
@click.option(
    "--names",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with names of the classes; each line is label, tab, name.",
)
@exclude_option
@click.option("--resume", is_flag=True, help="Continue an interrupted training exactly where it stopped.")
@click.option("--overwrite", is_flag=True, help="Replace an existing FILE, or an interrupted training of it.")
@device_option
@version_option
def train_command(source: tuple[str, ...], output: Path, names: Path | None, **options: Any) -> None:
    """Trains a network on labelled SOURCEs and writes one .safetensors file.

    A SOURCE is as for `build`. An image has the label that its SOURCE records (in a column, or as a class of
    torchvision/NAME), or else the name of its folder. For fewer than about 10,000 images, start with the shipped
    weights: --from alexnet --freeze convolutions --preset adapt. Beside the weights FILE.safetensors, the training
    writes a log FILE.jsonl and a chart of the errors FILE.png. Until it is done, it also keeps FILE.checkpoint, with
    which --resume continues after Ctrl-C or a crash. Use the weights with `build --model FILE` and `classify -m FILE`.
    Several GPUs: torchrun --nproc-per-node N -m simsearch train ...
    """
    job = training_job.prepare_job(source, output, names=training_job.read_names(names) if names else None, **options)
    if options["preset"] == "adapt" and not job.start:
        note(f"preset adapt is for trained weights, for example --from {registry.DEFAULT}")
    try:
        with training_progress() as (decoding, log, stop_requested):
            outcome = run.fit(job, progress=decoding, log=log, stop=stop_requested)
    except TrainingInterruptedError as error:
        note(f"{error}; {error.shell_hint}")
        raise click.exceptions.Exit(INTERRUPTED) from None
    if outcome.bytes:  # the first of several processes wrote the weights and reports them
        for name, scores in outcome.metrics.items():
            shown = ", ".join(publish.format_metric(*pair) for pair in scores.items())
            held_out = " that were held out" if name == "validation" and not options["validation"] else ""
            echo(f"{name}: {shown}, on {pluralize(outcome.measured[name], 'image')}{held_out}")
        averaged = job.config.average > 0
        kept = "the mean of the weights over the last passes" if averaged else "the weights after the last pass"
        classes, images = pluralize(outcome.classes, "class", "classes"), pluralize(outcome.images, "image")
        echo(f"{outcome.output}: {classes} from {images} in {outcome.seconds:,.0f} s, {outcome.bytes:,} bytes; {kept}")


@click.command("classify")
@click.argument("image", nargs=-1, required=True, shell_complete=completion.files)
@click.option("-k", "--top-k", "k", type=click.IntRange(1), default=5, show_default=True, help="Guesses per image.")
@crops_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "jsonl"]),
    default="text",
    show_default=True,
    help="Output format.",
)
@model_option
@device_option
@version_option
def classify_command(image: tuple[str, ...], k: int, crops: str, form: str, model: str | None, device: str) -> None:
    """Guesses what each IMAGE shows.

    An IMAGE is a path, an http(s) URL, or - for standard input.
    """
    if any(text.startswith(ID_PREFIX) for text in image):
        raise UsageError("id:N names an item of an index; classify needs images")
    chosen = load.load_model(model or registry.DEFAULT, device, images=len(image) * int(crops))
    asked = ask_each(lambda _, pictures: classify.classify(chosen, pictures, k, int(crops)), image)
    if form == "text":
        for number, (name, guesses) in enumerate(zip(asked.names, asked.answers, strict=True)):
            echo(("\n" if number else "") + _guess_bars(name, guesses))
        asked.exit_if_failed()
        return
    answers = [
        {"query": name, "model": chosen.name, "guesses": [{"label": g.label, "probability": g.probability} for g in gs]}
        for name, gs in zip(asked.names, asked.answers, strict=True)
    ]
    if form == "jsonl":
        for answer in answers:
            echo(json.dumps(answer))
    else:
        echo(json.dumps(answers, indent=1))
    asked.exit_if_failed()


def _guess_bars(name: str, guesses: Sequence[classify.Guess], width: int = 30) -> str:
    """Returns an image's guesses as text: each with its label, probability, and a bar of up to `width` characters."""
    longest = max(len(printable(guess.label)) for guess in guesses)
    lines = [printable(name)]
    for guess in guesses:
        eighths = round(guess.probability * width * 8)
        bar = "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
        lines.append(f"  {printable(guess.label).ljust(longest)}  {guess.probability:6.1%}  {bar}".rstrip())
    return "\n".join(lines)


@click.command("models")
@click.option("--verbose", is_flag=True, help="Print each model's card.")
@click.option(
    "--filters",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the first layer's kernels to a .png file.",
)
@click.option(
    "--calibrate",
    multiple=True,
    metavar="SOURCE",
    help="Prepare --model NAME|FILE for int8: measure the ranges of its values on the images of SOURCE; repeatable.",
)
@click.option(
    "-m",
    "--model",
    metavar="NAME|FILE",
    help="Show only this model; with --filters, use it instead of the default.",
    shell_complete=completion.models,
)
@format_option
@version_option
def models_command(
    verbose: bool, filters: Path | None, calibrate: tuple[str, ...], model: str | None, form: str
) -> None:
    """Lists the models that an index can be built with."""
    if calibrate:
        _calibrate(model, calibrate)
    elif filters:
        count = model_cards.draw_filters(model, filters)
        echo(f"{filters}: {count} kernels")
    elif form == "json":
        echo(json.dumps(model_cards.facts(model), indent=1))
    else:
        echo(model_cards.verbose(model) if verbose or model else model_cards.brief())


def _calibrate(model: str | None, sources: Sequence[str]) -> None:
    """Prepares a model for computing in 8-bit integers (int8), and prints how well int8 agrees with float32.

    The ranges of the model's values are measured on images of `sources`. For a .safetensors file, the ranges are
    written into its header. For torchvision's networks and .onnx files, an 8-bit copy of the network is written if
    int8 and float32 agree well enough.
    """
    if model is None:
        raise UsageError("--calibrate needs a model to prepare", hint="-m FILE.safetensors")
    graph = load.is_torchvision(model) or model.endswith(".onnx")
    with show_progress("decoding") as progress:
        if graph:
            found, output = int8_static.calibrate(model, sources, progress)
            default = f"--model {output} uses it"
        else:
            found = int8_calibration.calibrate(model, sources, progress)
            default = "new indexes use int8 on processors with VNNI"
    if found.top6 < ENOUGH:
        default = "too few, so nothing was written" if graph else "float32 stays the default"
    echo(
        f"{model}: on {found.images:,} images int8 shares {found.top6:.1%} of the six nearest with float32,"
        f" median cosine {found.cosine:.5f}; {default}"
    )
