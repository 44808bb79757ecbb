#!/usr/bin/env python3
"""Do features that were fine-tuned on some of a user's pictures find the others better?

    scripts/reproduce/adapt.py DATA [--set clothing|cifar] [--seeds N] [--only NAME ...] [--set-key KEY=VALUE ...]

Half of the pictures of each kind, drawn by seed, fine-tune the default weights; the other half is searched, each
picture once, itself left out. `clothing` (300 photographs of 10 kinds) is the result. Settings were chosen on
`cifar`, 300 training images of CIFAR-10 to learn from and 600 others to search, under the same protocol. Prints the
mean over the queries of all seeds with its 95 % interval, and that of the difference from the first row.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np

from simsearch.common import intervals
from simsearch.evaluation import metrics
from simsearch.images import decode
from simsearch.images.sources import labelled
from simsearch.indexing.learn_components import whitened
from simsearch.models import base, load, registry
from simsearch.models.descriptors import Descriptor, describe, unit
from simsearch.training import job as training_job
from simsearch.training import run

SHOWN = ("P@1", "P@6", "AP")
ROWS: dict[str, list[str] | None] = {
    "as shipped": None,
    "as shipped, 64 components learned at build": None,
    "fine-tuned on labels": ["objective=classification"],
    "fine-tuned, metric objective": ["objective=metric"],
}


def halves(data: Path, name: str, seed: int) -> tuple[list[labelled.LabelledImage], list[labelled.LabelledImage]]:
    """Pictures to learn from and pictures to search, drawn kind by kind."""
    found = labelled.list_labelled([data / "clothing" if name == "clothing" else data / "cifar10/train.zip"])
    labels = np.unique([picture.label for picture in found], return_inverse=True)[1]
    learn, search = [], []
    for label in range(labels.max() + 1):
        rows = np.random.default_rng((2012, seed, label)).permutation(np.flatnonzero(labels == label))
        middle, end = (len(rows) // 2, len(rows)) if name == "clothing" else (30, 90)
        learn += [found[row] for row in rows[:middle]]
        search += [found[row] for row in rows[middle:end]]
    return learn, search


def copied(pictures: list[labelled.LabelledImage], folder: Path) -> Path:
    """The pictures in a folder a kind, as a user would have them."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, picture in enumerate(pictures):
        place = folder / picture.label / f"{number}{Path(picture.path).suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture.source.read(picture.path))
    return folder


def features(model: base.Model, pictures: list[labelled.LabelledImage]) -> np.ndarray:
    """(N, 4096) float32."""
    recipe = model.recipe
    pixels = [recipe.pixels(decode.decode_image(p.source.read(p.path), recipe.resize).image) for p in pictures]
    return np.concatenate([model.features(np.stack(pixels[n : n + 64])) for n in range(0, len(pixels), 64)])


def tuned(learn: list[labelled.LabelledImage], work: Path, changes: list[str], freeze: str, preset: str) -> base.Model:
    """The default weights after fine-tuning."""
    job = training_job.prepare_job(
        [str(copied(learn, work / "learn"))],
        work / "w.safetensors",
        start=registry.DEFAULT,
        preset=preset,
        changes=changes,
        freeze=freeze,
        held_out=0.0,
        device="cpu",
        overwrite=True,
    )
    run.fit(job)
    return load.load_model(str(job.output), "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--set", choices=["clothing", "cifar"], default="clothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(ROWS), help="this row, beside the first; repeatable")
    parser.add_argument("--preset", default="adapt")
    parser.add_argument("--freeze", choices=training_job.FREEZE, default="convolutions")
    parser.add_argument("--change", action="append", default=[], metavar="KEY=VALUE", help="of the training's settings")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    work = Path("indexes/adapt") / options.set
    work.mkdir(parents=True, exist_ok=True)
    rows = [name for name in ROWS if not options.only or name in options.only or name == next(iter(ROWS))]
    values: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    shipped = load.load_model(registry.DEFAULT, "cpu")
    for seed in range(options.seeds):
        learn, search = halves(options.data, options.set, seed)
        labels = np.unique([picture.label for picture in search], return_inverse=True)[1]
        plain = features(shipped, search)
        for name in rows:
            changes = ROWS[name]
            x = plain
            if changes is not None:
                model = tuned(learn, work, [*changes, f"seed={seed}", *options.change], options.freeze, options.preset)
                x = features(model, search)
            elif name != "as shipped":
                x = describe(Descriptor(), {"features": plain})
                x = unit(whitened(x, 64, 0.25)(x))
            found = metrics.retrieval(metrics.LabelledFeatures(x.astype(np.float16), labels))
            values[name].append(np.stack([found[measure] for measure in SHOWN]))
            print(f"seed {seed}, {name}: P@6 {found['P@6'].mean():.3f}", flush=True)
    reference = np.concatenate(values[rows[0]], 1)
    print(f"{options.set}, {len(learn)} pictures learned from, {len(search)} searched, {options.seeds} seeds")
    for name in rows:
        all_ = np.concatenate(values[name], 1)
        for kind, x in (("", all_), (" minus the first row's", all_ - reference)):
            if kind and name == rows[0]:
                continue
            scores = intervals.with_intervals(dict(zip(SHOWN, x, strict=True)))
            shown = (f"{m.replace('AP', 'mAP')} {e.value:.3f} ({e.low:.3f} to {e.high:.3f})" for m, e in scores.items())
            print(f"{(kind or name):44} {'  '.join(shown)}")


if __name__ == "__main__":
    main()
