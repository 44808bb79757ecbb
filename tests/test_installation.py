"""The line that installs an extra, and the kinds that errors are."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest

from simsearch import errors
from simsearch.installation import install_line


class Installed:
    """Stands in for a distribution's metadata."""

    def __init__(self, origin: object, installer: str = "pip") -> None:
        self.files = {"direct_url.json": None if origin is None else json.dumps(origin), "INSTALLER": installer}

    def read_text(self, name: str) -> str | None:
        return self.files[name]


def installed(patch: pytest.MonkeyPatch, origin: object, installer: str = "pip") -> None:
    patch.setattr(importlib.metadata, "distribution", lambda name: Installed(origin, installer))
    patch.setattr(shutil, "which", lambda name: str(Path(sys.prefix) / "bin" / name))


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, "pip install 'simsearch[heif]'"),
        ({"url": "file:///srv/my%20code", "dir_info": {}}, "pip install '/srv/my code[heif]'"),
        ({"url": "file:///srv/code", "dir_info": {"editable": True}}, "pip install -e '/srv/code[heif]'"),
        (
            {"url": "https://host/a.git", "vcs_info": {"vcs": "git", "commit_id": "c0"}},
            "pip install 'simsearch[heif] @ git+https://host/a.git'",
        ),
        ({"url": "https://host/a.whl", "archive_info": {}}, "pip install 'simsearch[heif] @ https://host/a.whl'"),
        (["odd"], "pip install 'simsearch[heif]'"),
    ],
)
def test_line_of_an_installation(origin: object, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, origin)
    assert install_line("heif") == line


def test_line_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.chdir(tmp_path)
    assert install_line("serve") == "pip install -e '.[serve]'"


def test_line_of_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"url": "file:///srv/code", "dir_info": {}}, "uv")
    assert install_line("serve") == "uv pip install '/srv/code[serve]'"


def test_line_with_another_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert install_line("serve") == f"{sys.executable} -m pip install 'simsearch[serve]'"


def test_line_without_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert install_line("serve").endswith("pip install '.[serve]'")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.UsageError, ValueError),
        (errors.ImageTooLargeError, ValueError),
        (errors.ModelMismatchError, ValueError),
        (errors.IndexNotFoundError, FileNotFoundError),
        (errors.ItemNotFoundError, LookupError),
        (errors.UnavailableError, ConnectionError),
    ],
)
def test_errors_are_pythons_kinds(error: type[errors.SimsearchError], kind: type[Exception]) -> None:
    raised = error("no index at x", hint="make one")
    assert isinstance(raised, kind) and isinstance(raised, errors.SimsearchError)
    copy = pickle.loads(pickle.dumps(raised))
    assert (type(copy), str(copy), copy.hint) == (error, "no index at x", "make one")


def test_missing_extra_is_an_import_error() -> None:
    assert isinstance(errors.MissingExtraError("HEIC", "heif"), ImportError)
