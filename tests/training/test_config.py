"""Training settings and presets."""

import pytest

from simsearch.errors import UsageError
from simsearch.training.config import PRESETS, TrainConfig, change, settings
from tests.helpers.training import FAST


def test_settings_are_checked():
    assert settings("alexnet", None, []) == TrainConfig()
    assert settings("alexnet", "fast", ["epochs=3", "schedule=plateau"]).epochs == 3
    assert change(TrainConfig(), ["dropout=0"]).dropout == 0.0
    for text, message in (
        ("epoch=3", "no setting is called 'epoch'"),
        ("epochs", "not key=value"),
        ("epochs=0", "epochs is 0"),
        ("epochs=2.5", "not a whole number"),
        ("epochs=many", "not a whole number"),
        ("compile=1", "not true or false"),
        ("schedule=step", "schedule is 'step'"),
        ("dropout=1", "dropout is 1.0"),
        ("learning_rate=0", "learning_rate"),
    ):
        with pytest.raises(UsageError, match=message):
            change(TrainConfig(), [text])
    with pytest.raises(UsageError, match="no preset 'slow'"):
        settings("alexnet", "slow", [])


@pytest.mark.parametrize(
    "text",
    [
        "seed=-1",
        "momentum=-1",
        "momentum=1",
        "weight_decay=-1",
        "smallest_patch=0",
        "label_smoothing=2",
        "temperature=0",
        "keep_hidden=0",
        "warmup=1",
        "clip=-1",
        "gain=-1",
        "average=2",
        "learning_rate=1e400",
        "dropout=NaN",
        "zoom=-2",
    ],
)
def test_senseless_values_are_refused(text):
    with pytest.raises(UsageError, match=text.split("=")[0]):
        change(FAST, [text])


def test_nesterov_needs_momentum():
    with pytest.raises(UsageError, match="nesterov"):
        change(FAST, ["momentum=0"])


def test_the_default_preset_is_the_paper_s():
    paper = PRESETS["alexnet"]["paper"]
    assert (paper.momentum, paper.weight_decay, paper.batch_size, paper.learning_rate) == (0.9, 5e-4, 128, 0.01)
    assert (paper.dropout, paper.colour, paper.image_size, paper.reflections) == (0.5, 0.1, 224, True)
    assert (paper.schedule, paper.reductions, paper.patches, paper.gain) == ("plateau", 3, "fixed", 0.0)
