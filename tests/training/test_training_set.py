"""Reading the training set within its memory."""

import errno
import os
import tracemalloc

import numpy as np

from simsearch.training.augment import ColourStats
from tests.helpers.runs import QUICK, refused, simsearch_


def test_colour_statistics_cover_all_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (600, 96, 96, 3), dtype=np.uint8)
    pixels[..., 1] //= 2
    tracemalloc.start()
    found = ColourStats.of(pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * pixels.nbytes
    every = pixels.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found.mean, every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.deviation, every.std(0), rtol=1e-6)
    axes = found.axes.double().numpy()
    np.testing.assert_allclose(axes @ axes.T, np.cov(every.T), rtol=1e-4, atol=1e-2)


def test_decoding_claims_its_space_at_once(pics, tmp_path, monkeypatch):
    """Or a full disk would kill the process in the middle, by a signal that says nothing."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    done = simsearch_("train", pics, "-o", tmp_path / "w.safetensors", *QUICK)
    refused(done, "pixels.npy: No space left on device")
