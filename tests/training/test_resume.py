"""Interrupted trainings resume exactly."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from simsearch.cli.progress import training_progress
from simsearch.errors import TrainingInterruptedError, UsageError
from simsearch.models import weights
from simsearch.training import run
from tests.helpers.runs import draw, job, rows, simsearch_


def interrupt(pics, out, at=7, **rest):
    steps = iter(range(1, 1000))
    with pytest.raises(TrainingInterruptedError):
        run.fit(job(pics, out, **rest), stop=lambda: next(steps) == at)


def test_an_interrupted_training_resumes_exactly(pics, tmp_path):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    run.fit(job(pics, whole))
    interrupt(pics, cut)
    assert not cut.exists()
    assert cut.with_suffix(".checkpoint").exists()
    with pytest.raises(UsageError, match="an interrupted training left") as error:
        run.fit(job(pics, cut))
    assert error.value.hint == "resume=True continues, overwrite=True starts over"
    assert error.value.shell_hint == "--resume continues, --overwrite starts over"
    run.fit(job(pics, cut, resume=True))

    def told(path, event, keys):
        return [[row[key] for key in keys] for row in rows(path.with_suffix(".jsonl"), event)]

    for event, keys in (("step", ("step", "loss", "top1", "learning_rate")), ("epoch", ("epoch", "top1"))):
        assert told(cut, event, keys) == told(whole, event, keys)
    one, other = weights.read_tensors(whole), weights.read_tensors(cut)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert not cut.with_suffix(".checkpoint").exists()


def test_overwrite_starts_over(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    interrupt(pics, out)
    run.fit(job(pics, out, overwrite=True))
    assert [row["epoch"] for row in rows(out.with_suffix(".jsonl"), "epoch")] == [1, 2, 3, 4]
    run.fit(job(pics, out, overwrite=True))


def test_resuming_with_other_input_is_refused(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    interrupt(pics, out)
    with pytest.raises(UsageError, match=r"learning_rate 0\.01, not 0\.5"):
        run.fit(job(pics, out, "learning_rate=0.5", resume=True))
    draw(pics, "red", 8, seed=5)
    with pytest.raises(UsageError, match="images 33, not 40"):
        run.fit(job(pics, out, resume=True))


def test_resuming_with_swapped_labels_is_refused(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    interrupt(pics, out)
    first, second = sorted(path for path in pics.iterdir() if path.is_dir())[:2]
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    with pytest.raises(UsageError, match=r"is from a training with other (pictures|labels)"):
        run.fit(job(pics, out, resume=True))


def test_ctrl_c_leaves_resumable_checkpoint(pics, tmp_path):
    out = tmp_path / "w.safetensors"
    command = [sys.executable, "-m", "simsearch", "train", str(pics), "-o", str(out), "--model", "convnet4"]
    command += ["--set", "batch_size=4", "--epochs", "60"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as run:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (
            out.with_suffix(".jsonl").exists() and len(out.with_suffix(".jsonl").read_text()) > 200
        ):
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=120)
    assert run.returncode == 130, said
    assert "--resume continues" in said
    assert not out.exists()
    done = simsearch_(*command[3:], "--resume")
    assert done.exit_code == 0, done.output
    assert "continuing after step" in done.output
    assert rows(out.with_suffix(".jsonl"))[-1]["step"] == 60 * 8


def test_signals_before_first_step_interrupt():
    with pytest.raises(KeyboardInterrupt), training_progress():
        signal.raise_signal(signal.SIGINT)


def test_signal_twice_at_once_is_one(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with training_progress() as (_, _, stop):
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # torchrun passes on what the terminal has sent already
        assert stop()
        now += 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
