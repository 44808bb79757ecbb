"""Fixtures of the service tests: an engine on the photos and a client of its service."""

import gc
import shutil
from collections.abc import Iterator

import pytest

import simsearch
from tests.helpers.client import Client


@pytest.fixture(scope="module", autouse=True)
def _services_end() -> Iterator[None]:
    """Lets the services of a module go: FastAPI remembers thousands of their functions, each service has open files."""
    yield
    from fastapi.dependencies import models

    for function in vars(models).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    gc.collect()


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
