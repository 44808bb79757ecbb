"""An index for tests of evaluation."""

import pytest

import simsearch


@pytest.fixture
def index(photos, tmp_path, colours):
    simsearch.build(photos, tmp_path / "index", colours).close()
    return tmp_path / "index"
