"""float16 is decoded exactly."""

from __future__ import annotations

import numpy as np
import pytest

from simsearch.common.float16 import to_float32

EVERY = np.arange(65536, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize(
    "values",
    [EVERY, EVERY[:0x7C00], EVERY[np.isfinite(EVERY)], EVERY[:0], EVERY[:99].reshape(11, 9)[:, ::2]],
    ids=["every", "positive", "finite", "none", "strided"],
)
def test_every_half_is_decoded_exactly(values: np.ndarray) -> None:
    found = to_float32(values)
    np.testing.assert_array_equal(found, values.astype(np.float32))
    assert found.dtype == np.float32 and (np.signbit(found) == np.signbit(values)).all()
    found[:] = 0  # a copy, also of what is float32 already
    assert to_float32(found) is not found
