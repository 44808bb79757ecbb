"""Fixtures of the service tests: an engine on the photos and a client of its service."""

import pytest

import simsearch
from tests.helpers.client import Client


@pytest.fixture
def engine(tmp_path, photos, colours):
    with simsearch.build(photos, tmp_path / "index", model=colours) as engine:
        yield engine


@pytest.fixture
def client(engine):
    return Client(simsearch.create_app(engine))
