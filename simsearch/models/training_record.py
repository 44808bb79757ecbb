"""The pictures that a model was trained on, and those that were held out, as short digests in its weights file."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LENGTH = 6
"""Bytes of a digest, the beginning of the SHA-256 of a file: eight characters in the header."""

MOST = 65_536
"""Pictures that are recorded at most; of larger sets nothing is, to keep the header short."""


def digest_of(data: bytes) -> bytes:
    """Returns the digest of a picture's file."""
    return hashlib.sha256(data).digest()[:LENGTH]


@dataclass(frozen=True)
class TrainingRecord:
    """Digests of the pictures that a model was trained on, and of others that were held out to measure it on."""

    trained_on: frozenset[bytes] = frozenset()
    held_out: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.trained_on or self.held_out)

    @classmethod
    def of(cls, trained_on: Iterable[bytes], held_out: Iterable[bytes], before: TrainingRecord) -> TrainingRecord:
        """Makes the record of a training; an empty one if there are more than MOST pictures.

        before: of the weights that the training started from, whose pictures count as trained on.
        """
        seen = frozenset(trained_on) | before.trained_on
        others = frozenset(held_out) - seen
        return cls(seen, others) if len(seen) + len(others) <= MOST else cls()

    def to_dict(self) -> dict[str, str]:
        """Returns the entry of a weights header."""
        parts = {"trained_on": self.trained_on, "held_out": self.held_out}
        return {name: base64.b64encode(b"".join(sorted(part))).decode() for name, part in parts.items()}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> TrainingRecord:
        """Reads the entry of a weights header. Raises TypeError for one that cannot be read."""
        return cls(_digests(entry.get("trained_on", "")), _digests(entry.get("held_out", "")))


def _digests(text: Any) -> frozenset[bytes]:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TypeError(f"digests of pictures: {error}") from error
    return frozenset(data[start : start + LENGTH] for start in range(0, len(data), LENGTH))
