"""The header of .safetensors files, compared with the safetensors library."""

from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from simsearch.errors import WeightsError
from simsearch.models.safetensors_header import locate_tensors, pack_header, read_header


def test_tensors_are_where_the_header_says(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors: dict[str, Any] = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.uint8)}
    safetensors.numpy.save_file(tensors, path, {"note": "é"})
    located, data = locate_tensors(path), path.read_bytes()
    assert set(located) == set(tensors)
    for name, array in tensors.items():
        shape, first, size = located[name]
        assert shape == array.shape
        assert data[first : first + size] == array.tobytes()


def test_packed_header_is_the_one_read(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path, {"note": "é"})
    header = read_header(path)
    assert path.read_bytes()[: header.start] == pack_header(header.text)
    assert header.values()["__metadata__"] == {"note": "é"}


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 8, b"\x01" + bytes(7)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(WeightsError, match=r"is not a \.safetensors file"):
        read_header(tmp_path / "x")


def test_header_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(pack_header("[1, 2]"))
    with pytest.raises(ValueError, match="not a JSON object"):
        read_header(tmp_path / "x").values()
