"""Records the pictures that a model was trained on and the pictures held out, as digests in its weights file."""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LENGTH = 6
"""Number of bytes of a digest, which is the beginning of the SHA-256 of a picture's file."""

KEPT = 5
"""Number of bytes of a digest that are stored.

With a million stored digests, one in a million other pictures is mistaken for a recorded one.
"""

MOST = 1 << 20
"""Largest number of pictures in a record; if there are more, the record stays empty, to keep the file small."""


def digest_of(data: bytes) -> bytes:
    """Returns the digest of a picture. data: the content of its file."""
    return hashlib.sha256(data).digest()[:LENGTH]


class Digests:
    """A set of digests, kept as a sorted array.

    In a file, the set is compressed (see `packed`). For example, a set of 200,000 digests takes about 600 kB there.
    """

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        numbers = np.fromiter((int.from_bytes(digest[:KEPT], "big") for digest in digests), np.uint64)
        self._numbers: NDArray[np.uint64] = np.unique(numbers)  # ascending

    @classmethod
    def _of(cls, numbers: NDArray[np.uint64]) -> Digests:
        made = cls()
        made._numbers = numbers
        return made

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, digest: bytes) -> bool:
        number = np.uint64(int.from_bytes(digest[:KEPT], "big"))
        place = int(np.searchsorted(self._numbers, number))
        return bool(digest) and place < len(self._numbers) and bool(self._numbers[place] == number)

    def __or__(self, other: Digests) -> Digests:
        return self._of(np.union1d(self._numbers, other._numbers))

    def __sub__(self, other: Digests) -> Digests:
        return self._of(np.setdiff1d(self._numbers, other._numbers, assume_unique=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digests) and np.array_equal(self._numbers, other._numbers)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Digests: {len(self):,}>"

    def packed(self) -> NDArray[np.uint8]:
        """Returns the set in compressed form, (n,) uint8.

        zlib compresses the differences between the sorted digests: first the lowest byte of every difference, then the
        second byte of every difference, and so on.
        """
        steps = np.diff(self._numbers, prepend=np.uint64(0)).astype("<u8").view(np.uint8).reshape(-1, 8)
        return np.frombuffer(zlib.compress(np.ascontiguousarray(steps.T[:KEPT]).tobytes(), 9), np.uint8)

    @classmethod
    def unpacked(cls, data: bytes) -> Digests:
        """Returns the set that `packed` compressed to `data`. Raises ValueError for any other data."""
        inflater = zlib.decompressobj()
        try:
            planes = inflater.decompress(data, KEPT * MOST + 1)
        except zlib.error as error:
            raise ValueError(f"the digests of pictures cannot be decompressed: {error}") from error
        if not inflater.eof or len(planes) % KEPT or len(planes) > KEPT * MOST:
            raise ValueError("there are too many digests of pictures, or they are cut off")
        steps = np.zeros((len(planes) // KEPT, 8), np.uint8)
        steps[:, :KEPT] = np.frombuffer(planes, np.uint8).reshape(KEPT, -1).T
        numbers = np.cumsum(steps.view("<u8").ravel(), dtype=np.uint64)
        if (numbers[1:] <= numbers[:-1]).any():
            raise ValueError("the digests of pictures contain the same digest twice")
        return cls._of(numbers)


@dataclass(frozen=True)
class TrainingRecord:
    """Digests of the pictures that a model was trained on, and of the pictures held out for evaluation."""

    trained_on: Digests = field(default_factory=Digests)
    held_out: Digests = field(default_factory=Digests)

    def __bool__(self) -> bool:
        return bool(self.trained_on or self.held_out)

    @classmethod
    def of(cls, trained_on: Iterable[bytes], held_out: Iterable[bytes], before: TrainingRecord) -> TrainingRecord:
        """Returns the record of a training.

        If the record would have more than MOST pictures, returns an empty record, to keep the weights file small.

        trained_on, held_out: digests of the pictures of this training.
        before: the record of the weights from which the training started. The pictures in its `trained_on` count as
        trained on, even if they are in `held_out` now. Its own `held_out` is ignored.
        """
        seen = Digests(trained_on) | before.trained_on
        others = Digests(held_out) - seen
        return cls(seen, others) if len(seen) + len(others) <= MOST else cls()

    @classmethod
    def from_former(cls, entry: Mapping[str, Any]) -> TrainingRecord:
        """Returns the record that a former version of simsearch wrote into a file's header, as base64.

        Raises TypeError or ValueError if the entry is invalid.
        """
        return cls(*(_former_digests(entry.get(name, "")) for name in ("trained_on", "held_out")))


def _former_digests(text: Any) -> Digests:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the digests of pictures are not valid base64: {error}") from error
    return Digests(data[start : start + LENGTH] for start in range(0, len(data), LENGTH))
