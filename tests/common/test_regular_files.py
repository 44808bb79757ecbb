"""Files that a user or an index names are never waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simsearch.common.regular_files import open_regular
from simsearch.curation.cleanup import journal
from simsearch.errors import SimsearchError
from simsearch.models.onnx import onnx_file
from simsearch.training.job import read_names

READERS: list[Callable[[Path], Any]] = [
    lambda path: onnx_file.find_onnx(str(path)),
    onnx_file.read_settings,
    journal.read_head,
    journal.read_journal,
    read_names,
]


@pytest.mark.parametrize("reader", READERS)
def test_pipes_and_devices_are_one_error(reader: Callable[[Path], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "link.onnx").symlink_to(tmp_path / "pipe.onnx")
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.onnx"))
        for name in ("pipe", "folder", "link", "zero", "socket", "gone"):
            with pytest.raises(SimsearchError, match=f"{name}|zero|pipe"):  # links are resolved
                reader(tmp_path / f"{name}.onnx")


def test_descriptors_are_closed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(tmp_path / "pipe")
    assert len(os.listdir("/dev/fd")) == before
