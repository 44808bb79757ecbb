"""The state of a training: network, optimizer and progress; it is saved in checkpoints and restored from them.

Source: Krizhevsky et al. 2012, section 5 (SGD with momentum, division by 10 when validation stalls).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from simsearch.common.atomic_files import delete_abandoned, replacing
from simsearch.errors import SimsearchError, UsageError
from simsearch.training.compression import Compressor
from simsearch.training.config import setting_hint

if TYPE_CHECKING:
    from torch import Tensor

    from simsearch.models.networks.base import Network
    from simsearch.training.config import TrainConfig


@dataclass
class StepState:
    """The numbers that change during a training.

    step: number of finished steps. best: the lowest validation error so far.
    stalled: number of epochs in a row without a new lowest error; 0 again when the learning rate has been reduced.
    reductions: how often the learning rate was reduced because validation stalled.
    window: the values of `TrainingState.window`, for a checkpoint.
    averaged: number of epochs in the average of weights. seconds: of training, in all runs together.
    """

    step: int = 0
    best: float = math.inf
    stalled: int = 0
    reductions: int = 0
    window: list[float] = field(default_factory=lambda: [0.0] * 4)
    averaged: int = 0
    seconds: float = 0.0


CONTENTS = "pictures", "labels"
"""Names of the facts that are checksums of the training data; see `TrainingState.save`."""


class TrainingState:
    """A network in training, with its optimizer, its progress and the pruning of its weights, all on `device`.

    window: (4,) float64, sums of loss, top-1 hits, top-5 hits and images since the last row of the log.
    average: for the name of each tensor of weights, its mean over the last epochs. The dict is empty before these
    epochs, and always empty if the configuration asks for no average.
    """

    def __init__(self, network: Network, config: TrainConfig, steps_per_epoch: int, device: torch.device) -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config, self.steps_per_epoch, self.device = config, steps_per_epoch, device
        self.steps = config.epochs * steps_per_epoch
        self.state = StepState()
        self.window = torch.zeros(4, dtype=torch.float64, device=device)
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = config.dropout
        self.optimizer = make_optimizer(network, config)
        self.compressor = Compressor(network, config)
        self.average: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return self.state.step // self.steps_per_epoch

    @property
    def done(self) -> bool:
        """True after the last step, or when validation stalls after the last permitted cut of the learning rate."""
        return self.state.step >= self.steps or self.state.reductions > self.config.reductions

    def learning_rate(self) -> float:
        """Returns the learning rate of the next step."""
        config, progress = self.config, self.state.step / self.steps
        if config.schedule == "plateau":
            return config.learning_rate * 0.1**self.state.reductions
        if progress < config.warmup:
            return config.learning_rate * progress / config.warmup
        if config.schedule == "constant":
            return config.learning_rate
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - config.warmup) / (1 - config.warmup)))

    def slower_hint(self) -> dict[str, str]:
        """Returns the hints for a training that has diverged: to repeat it with a third of the learning rate."""
        return setting_hint("learning_rate", f"{self.config.learning_rate / 3:.2g}")

    def update_schedule(self, error: float) -> None:
        """Records an epoch's validation error; the schedule "plateau" lowers the learning rate if the error stalls."""
        state = self.state
        if error < state.best:
            state.best, state.stalled = error, 0
            return
        state.stalled += 1
        if self.config.schedule == "plateau" and state.stalled >= self.config.patience:
            state.stalled, state.reductions = 0, state.reductions + 1

    def update_average(self) -> None:
        """Adds the current weights to the average at the end of an epoch; does nothing before the epochs to average.

        The epochs to average are the last ones of the training, the fraction `config.average` of all epochs.
        """
        if self.epoch <= self.config.epochs * (1 - self.config.average):
            return
        self.state.averaged += 1
        for name, value in self.network.state_dict().items():
            mean = self.average.setdefault(name, torch.zeros_like(value, dtype=torch.float32))
            mean += (value.float() - mean) / self.state.averaged

    def apply_average(self) -> None:
        """Replaces the network's weights by their average, if there is one."""
        if self.average:
            self.network.load_state_dict(self.average)

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Writes a checkpoint atomically. facts: JSON values that must be the same in a run that resumes from it.

        Raises SimsearchError if a weight is NaN or infinite, or if the file cannot be written.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.network.parameters()):
            raise SimsearchError(f"a weight is NaN or infinite at step {self.state.step}", **self.slower_hint())
        self.state.window = self.window.tolist()
        plain = {"config": asdict(self.config), "state": asdict(self.state), "facts": facts}
        content = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "compressor": self.compressor.state(),
            "average": self.average,
            "plain": json.dumps(plain),
        }
        try:
            delete_abandoned(path.parent)
            with replacing(path) as file:
                torch.save(content, Path(file.name))
        except (RuntimeError, OSError) as error:  # the message from torch gives no reason
            raise SimsearchError(f"{path} cannot be written; is the disk full?") from error

    def restore(self, path: Path, facts: dict[str, Any]) -> None:
        """Continues from a checkpoint. Raises UsageError if it was written with a different configuration or facts."""
        content, plain = read_checkpoint(path)
        for name, value in {**asdict(self.config), **facts}.items():
            was = {**plain["config"], **plain["facts"]}.get(name)
            if name in CONTENTS:
                if was not in (None, value):  # None: an older version wrote the checkpoint
                    raise UsageError(
                        f"{path} is from a training with other {name}", hint="remove the checkpoint to start over"
                    )
            elif was != json.loads(json.dumps(value)):
                shown = f"{name} {was!r}, not {value!r}" if len(repr((was, value))) < 200 else f"another {name}"
                raise UsageError(f"{path} is from a training with {shown}", hint="remove the checkpoint to start over")
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.compressor.restore(content["compressor"])
        self.average = {name: value.to(self.device) for name, value in content["average"].items()}
        self.state = StepState(**plain["state"])
        self.window += torch.tensor(self.state.window, dtype=torch.float64, device=self.device)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the tensors of a checkpoint, and its JSON values (config, state, facts). No pickled code is executed.

    Raises UsageError if the file is not a checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content, json.loads(content["plain"])
    except Exception as error:  # torch raises many types for files of another format
        raise UsageError(
            f"{path} is not a checkpoint: {type(error).__name__}", hint="remove the checkpoint to start over"
        ) from error


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns the configured optimizer for all parameters that are not frozen; biases have no weight decay."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name.endswith("weight")], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trained if not name.endswith("weight")], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
