"""Fixtures of the search tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from simsearch import api
from simsearch.engine import Engine
from tests.helpers.models import Colours

# -- queries by pictures


@pytest.fixture
def engine(photos: Path, tmp_path: Path, colours: Colours) -> Engine:
    """The pictures, and of some the mirror image and a copy that differs by a hair."""
    for path in sorted(photos.rglob("[01].png")):
        with Image.open(path) as image:
            ImageOps.mirror(image).save(path.with_name(f"mirror-{path.name}"))
            other = image.copy()
        other.putpixel((0, 0), (0, 0, 0))
        other.save(path.with_name(f"near-{path.name}"))
        shutil.copy(path, path.with_name(f"same-{path.name}"))
    return api.build(photos, tmp_path / "index", colours)
