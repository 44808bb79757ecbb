"""How a training goes: every number in one frozen object, and named sets of them for each network.

Krizhevsky et al. 2012, sections 4 and 5; LeCun et al. 1998, section III.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from simsearch.errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    """One training. The defaults are AlexNet's, as the paper trains it."""

    image_size: int = 224
    epochs: int = 90  # "roughly 90 cycles" (section 5)
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"  # plateau: divided by 10 when validation stalls
    patience: int = 5  # epochs without a better validation error that count as stalling
    reductions: int = 3  # "reduced three times prior to termination"
    warmup: float = 0.0  # share of the steps in which the rate rises from nothing; for the cosine
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    clip: float = 0.0  # longest gradient; 0: any
    dropout: float = 0.5
    gain: float = 0.0  # 0: first weights as the network's paper says; else deviation gain / sqrt(fan in)
    average: float = 0.0  # share of the last epochs over which the weights are averaged (Izmailov et al. 2018)
    # pictures
    patches: Literal["fixed", "scaled"] = "fixed"  # fixed: as large as the input; scaled: of any area and 3:4 to 4:3
    smallest_patch: float = 0.3  # least share of the image's area in a scaled patch
    reflections: bool = True
    colour: float = 0.1  # deviation along the principal components of the pixels' colours (section 4.1)
    shift: float = 0.0  # planar distortions: largest shift, as a share of the side,
    rotation: float = 0.0  # largest turn in degrees,
    shear: float = 0.0  # largest shear,
    zoom: float = 0.0  # and largest change of scale and of either axis, as a share
    # speed
    precision: Literal["float32", "auto"] = "float32"  # auto: bfloat16 where it is fast, TF32 for the rest
    compile: bool = False  # torch.compile
    # features
    objective: Literal["classification", "metric"] = "classification"  # metric: near those of the label as well
    metric_weight: float = 1.0  # beside label_weight
    teacher_weight: float = 0.0  # 0: labels alone
    label_weight: float = 1.0
    temperature: float = 0.1  # of the two similarity matrices
    norm_weight: float = 0.0  # of the relative variance of the features' lengths
    # compression
    keep_convolution: float = 1.0  # share of the weights kept in the convolutions after the first,
    keep_hidden: float = 1.0  # in the hidden linear layers,
    keep_classifier: float = 1.0  # and in the last one
    prune_from: float = 0.0  # shares of the steps between which pruning sets in
    prune_until: float = 0.5
    share_from: float = 1.0  # share of the steps after which the weights kept are shared; 1: never
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not kind:
                raise UsageError(f"{field.name} is {value!r}, which is not {_KINDS[kind]}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} is {getattr(self, name)!r}", hint=f"one of {', '.join(choices)}")
        for name in ("image_size", "epochs", "batch_size", "patience", "reductions"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", hint="1 or more")
        for said, within, names in _WITHIN:
            for name in names:
                if not (within(getattr(self, name)) and math.isfinite(getattr(self, name))):
                    raise UsageError(f"{name} is {getattr(self, name)}", hint=said)
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov needs momentum", hint="nesterov=false")


_WITHIN: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("more than 0", lambda x: x > 0, ("learning_rate", "temperature")),
    (
        "0 or more",
        lambda x: x >= 0,
        (
            "weight_decay",
            "clip",
            "gain",
            "colour",
            "shift",
            "rotation",
            "shear",
            "zoom",
            "metric_weight",
            "teacher_weight",
            "label_weight",
            "norm_weight",
        ),
    ),
    ("0 or more and less than 1", lambda x: 0 <= x < 1, ("momentum", "dropout", "warmup")),
    ("0 to 1", lambda x: 0 <= x <= 1, ("label_smoothing", "average", "prune_from", "prune_until", "share_from")),
    (
        "more than 0, at most 1",
        lambda x: 0 < x <= 1,
        ("smallest_patch", "keep_convolution", "keep_hidden", "keep_classifier"),
    ),
    ("0 to 999,999,999", lambda x: 0 <= x < 10**9, ("seed",)),
)
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("plateau", "cosine", "constant"),
    "patches": ("fixed", "scaled"),
    "precision": ("float32", "auto"),
    "objective": ("classification", "metric"),
}

_PAPER = TrainConfig()
_FAST = replace(
    _PAPER,
    epochs=30,
    learning_rate=0.02,
    schedule="cosine",
    warmup=0.08,
    nesterov=True,
    label_smoothing=0.1,
    clip=5.0,
    dropout=0.25,
    gain=2**0.5,
    patches="scaled",
    precision="auto",
    compile=True,
)
_LENET = replace(
    _PAPER,
    image_size=32,
    epochs=20,
    batch_size=32,
    learning_rate=0.001,
    schedule="cosine",
    weight_decay=0.01,
    dropout=0.0,
    reflections=False,
    colour=0.0,
)
_CONVNET = replace(
    _PAPER,
    image_size=32,
    epochs=60,
    schedule="constant",
    gain=1.0,
    weight_decay=0.0,
    dropout=0.0,
    reflections=False,
    colour=0.0,
)

PRESETS: dict[str, dict[str, TrainConfig]] = {
    "alexnet": {
        "paper": _PAPER,
        "fast": _FAST,
        "small": replace(_FAST, image_size=112, epochs=12),
        "adapt": replace(_FAST, epochs=15, batch_size=32, gain=0.0, compile=False),
    },
    "lenet5": {
        "paper": _LENET,
        "distorted": replace(
            _LENET,
            epochs=40,
            batch_size=128,
            learning_rate=0.005,
            weight_decay=0.0,
            shift=0.07,
            rotation=10.0,
            shear=0.15,
            zoom=0.12,
        ),
    },
    "convnet4": {"paper": _CONVNET},
}
"""By architecture, then by name; the first is the default."""


def settings(architecture: str, preset: str | None, changes: list[str]) -> TrainConfig:
    """A preset with `key=value` changes, values in JSON or as plain words. Raises UsageError."""
    known = PRESETS[architecture]
    name = preset or next(iter(known))
    if name not in known:
        raise UsageError(f"{architecture} has no preset {name!r}", hint=f"one of {', '.join(known)}")
    return change(known[name], changes)


def change(config: TrainConfig, changes: list[str]) -> TrainConfig:
    """A configuration with `key=value` changes. Raises UsageError for an unknown key or an unfit value."""
    names = [field.name for field in fields(TrainConfig)]
    values: dict[str, Any] = {}
    for text in changes:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not key=value")
        if key not in names:
            raise UsageError(f"no setting is called {key!r}", hint=f"one of {', '.join(names)}")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return replace(config, **values)
