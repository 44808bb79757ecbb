"""Augmented views of training images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from simsearch.training import augment
from simsearch.training.augment import ColourStats
from simsearch.training.config import TrainConfig
from tests.helpers.training import FAST


def views(config, seed, batch=32):
    return augment.sample_augmentation(batch, 72, 63, config, torch.Generator().manual_seed(seed))


def test_scaled_patches_are_seeded_normalised(data):
    colour = ColourStats.of(data.pixels)
    pixels = torch.from_numpy(data.pixels[:32])

    def augmented(seed):
        return augment.apply_augmentation(views(FAST, seed), pixels, 63, colour)

    assert augmented(1).shape == (32, 3, 63, 63)
    assert torch.equal(augmented(1), augmented(1))
    assert not torch.equal(augmented(1), augmented(2))
    centred = augment.centre(torch.from_numpy(data.pixels), 63, colour)
    assert centred.mean().abs() < 0.05
    assert centred.std().item() == pytest.approx(1, abs=0.05)


def test_paper_patches_are_pieces_of_picture():
    plain = replace(TrainConfig(), image_size=63, colour=0.0)
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (64, 72, 72, 3), dtype=np.uint8))
    seen = augment.apply_augmentation(views(plain, 0, 64), pixels, 63, ColourStats.fixed(0.0, 1.0)).permute(0, 2, 3, 1)
    corners, flips = set(), set()
    for picture, patch in zip(pixels.float(), seen, strict=True):
        places = [
            (y, x, flip)
            for y in range(10)
            for x in range(10)
            for flip in (False, True)
            if torch.equal(picture[y : y + 63, x : x + 63], patch.flip(1) if flip else patch)
        ]
        assert len(places) == 1
        corners.add(places[0][:2])
        flips.add(places[0][2])
    assert flips == {False, True}
    assert len(corners) > 30
    assert {0, 9} <= {y for y, _ in corners}


def test_exact_patches_agree_with_interpolated():
    plain = replace(TrainConfig(), image_size=63, colour=0.0)
    pixels = torch.randint(0, 256, (16, 72, 72, 3), dtype=torch.uint8)
    drawn = views(plain, 3, 16)
    exact = augment.apply_augmentation(drawn, pixels, 63, ColourStats.fixed(0.0, 1.0))
    resampled = augment.apply_augmentation(replace(drawn, exact=False), pixels, 63, ColourStats.fixed(0.0, 1.0))
    torch.testing.assert_close(exact, resampled, rtol=0, atol=0.05)


def test_patch_coordinates_use_no_matrix_product(data):
    """A GPU would compute them in TF32, with errors of a tenth of a pixel."""
    drawn = views(replace(FAST, rotation=20.0, shear=0.2, colour=0.0), 0)
    theta = drawn.theta
    expected = torch.nn.functional.affine_grid(theta, [len(theta), 3, 63, 63], align_corners=False)
    with torch.profiler.profile(acc_events=True) as profile:
        augment.apply_augmentation(drawn, torch.from_numpy(data.pixels[: len(theta)]), 63, ColourStats.fixed(0.0, 1.0))
    assert not [event.key for event in profile.key_averages() if "mm" in event.key]
    torch.testing.assert_close(augment._grid(theta, 63), expected, rtol=0, atol=1e-5)


def test_colour_jitter_follows_components():
    """Section 4.1: [p1, p2, p3] [a1 l1, ...] with a of standard deviation 0.1 is added to every pixel of an image."""
    jitter = replace(TrainConfig(), image_size=63, reflections=False)
    pixels = torch.full((4000, 72, 72, 3), 100, dtype=torch.uint8)[:, :63, :63]
    axes = torch.tensor([[3.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 50.0]])
    colour = ColourStats(torch.zeros(3), torch.ones(3), axes)
    drawn = augment.sample_augmentation(4000, 63, 63, jitter, torch.Generator().manual_seed(0))
    added = augment.apply_augmentation(drawn, pixels, 63, colour) - 100
    assert added.std((2, 3)).max() < 1e-4
    np.testing.assert_allclose(added[:, :, 0, 0].std(0), [0.3, 2.0, 5.0], rtol=0.1)


def test_centre_of_pictures_smaller_than_the_patch():
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = torch.from_numpy(np.broadcast_to(ramp[None, None, :, None], (1, 64, 64, 3)).copy())
    same = augment.centre_pixels(pixels, 56)
    larger = augment.centre_pixels(pixels, 112)
    assert torch.equal(same, pixels[:, 4:60, 4:60])
    assert larger.shape == (1, 112, 112, 3) and larger.dtype == torch.uint8
    halves = larger.float().view(1, 56, 2, 56, 2, 3).mean((2, 4))  # the same part of the picture, twice as large
    assert (halves - same.float()).abs().max() < 1.5
