"""Fixtures of the service tests: an engine on the photos and a client of its service."""

import shutil

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


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium; the tests of the page are skipped without it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()
