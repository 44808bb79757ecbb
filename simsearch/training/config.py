"""The configuration of a training: a frozen dataclass, and presets for each network.

Krizhevsky et al. 2012, sections 4 and 5; LeCun et al. 1998, section III.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from simsearch.common import suggestions
from simsearch.errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training.

    The defaults are those of Krizhevsky et al. for AlexNet. Raises UsageError for invalid values.
    """

    image_size: int = 224
    epochs: int = 90  # "roughly 90 cycles" (section 5)
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"  # plateau: divided by 10 when validation stalls
    patience: int = 5  # epochs without a better validation error that count as stalling
    reductions: int = 3  # of the rate, before training ends: "reduced three times prior to termination"
    warmup: float = 0.0  # fraction of the steps in which the rate rises from 0; not used by plateau
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    clip: float = 0.0  # largest norm of the gradient; 0: no limit
    dropout: float = 0.5
    gain: float = 0.0  # 0: initial weights as in the network's paper; otherwise std is gain / sqrt(fan in)
    average: float = 0.0  # fraction of the epochs, at the end, over which weights are averaged (Izmailov et al. 2018)
    # augmentation
    patches: Literal["fixed", "scaled"] = "fixed"  # scaled: of random area, aspect ratio 3:4 to 4:3
    smallest_patch: float = 0.3  # smallest area of a scaled patch, as a fraction of the image
    reflections: bool = True
    colour: float = 0.1  # std of the change along the principal components of colour (section 4.1)
    shift: float = 0.0  # largest shift, as a fraction of the side
    rotation: float = 0.0  # largest rotation, degrees
    shear: float = 0.0  # largest shear
    zoom: float = 0.0  # largest change of scale, and of the aspect ratio, as a fraction
    # speed
    precision: Literal["float32", "auto"] = "float32"  # auto: bfloat16 if it is fast, TF32 for the rest
    compile: bool = False  # torch.compile
    # features
    objective: Literal["classification", "metric"] = "classification"  # metric: also moves images of a label together
    metric_weight: float = 1.0  # weight of the metric loss
    teacher_weight: float = 0.0  # weight of the loss that imitates a teacher's features
    label_weight: float = 1.0  # weight of the loss on labels
    temperature: float = 0.1  # divides the similarities in the metric loss and the teacher loss
    norm_weight: float = 0.0  # weight of the loss that makes the lengths of the features equal
    # compression
    keep_convolution: float = 1.0  # fraction of the weights kept in the convolutions after the first
    keep_hidden: float = 1.0  # fraction of the weights kept in the hidden linear layers
    keep_classifier: float = 1.0  # fraction of the weights kept in the last layer
    prune_from: float = 0.0  # fraction of the steps at which pruning begins
    prune_until: float = 0.5  # fraction of the steps at which pruning is complete
    share_from: float = 1.0  # fraction of the steps after which the remaining weights are shared; 1: never
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
                raise UsageError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(choices)}")
        for name in ("image_size", "epochs", "batch_size", "patience", "reductions"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1")
        for allowed, is_allowed, names in _RANGES:
            for name in names:
                if not (is_allowed(getattr(self, name)) and math.isfinite(getattr(self, name))):
                    raise UsageError(f"{name} is {getattr(self, name)}, but must be {allowed}")
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov needs a momentum above 0", hint="nesterov=false turns it off")


_RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
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
"""For each architecture, a dict from names of presets to their settings; the first preset is the default."""


def settings(architecture: str, preset: str | None, changes: list[str]) -> TrainConfig:
    """Returns the settings of a preset, some of them changed.

    preset: its name; None for the architecture's default. changes: `key=value`, the value in JSON or as a plain word.
    Raises UsageError for an unknown preset or key, and for an invalid value.
    """
    known = PRESETS[architecture]
    name = preset or next(iter(known))
    if name not in known:
        raise UsageError(f"{architecture} has no preset {name!r}", hint=suggestions.hint(name, list(known)))
    return change(known[name], changes)


def change(config: TrainConfig, changes: list[str]) -> TrainConfig:
    """Returns a configuration with some settings changed.

    changes: `key=value`, the value in JSON or as a plain word. Raises UsageError for an unknown key or an invalid
    value.
    """
    names = [field.name for field in fields(TrainConfig)]
    values: dict[str, Any] = {}
    for text in changes:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not key=value")
        if key not in names:
            raise UsageError(f"no setting is called {key!r}", hint=suggestions.hint(key, names))
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return replace(config, **values)


def setting_hint(name: str, value: object) -> dict[str, str]:
    """Returns an error's hints, for Python and for the command line, that advise setting `name` to `value`."""
    return {"hint": f"{name}={value}", "shell_hint": f"--set {name}={value}"}
