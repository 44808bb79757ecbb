"""The settings of the HTTP service: limits, keys and permissions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from simsearch.common import suggestions
from simsearch.errors import UsageError

DEFAULT_MEMORY = 640 << 20
"""The least memory for all requests together, in bytes, if the setting `memory` is 0."""

DECODING, BODIES = 6, 2
"""Shares of the memory for decoding and for bodies, in tenths."""

OTHER_NAMES = {"allow_host": "hosts", "key": "api_keys"}
"""Names that callers may try because of options of `simsearch serve`, and the fields of `Settings` that they mean."""

_WHOLE = ("max_body", "max_pixels", "memory", "max_k", "in_flight", "batch_size")
_NUMBERS = (*_WHOLE, "timeout", "body_timeout", "head_timeout")


class AppOptions(TypedDict, total=False):
    """The options of `create_app`; see `Settings`."""

    api_keys: str | Sequence[str]
    hosts: str | Sequence[str] | None
    cors: str | Sequence[str]
    writable: bool
    allow_cleanup: bool
    move_to: str | None
    journals: str | None
    allow_urls: bool
    max_body: int
    max_pixels: int
    memory: int
    max_k: int
    in_flight: int
    batch_size: int
    timeout: float
    body_timeout: float
    head_timeout: float
    relative: bool


@dataclass(frozen=True)
class Settings:
    """The options of `create_app`. By default, clients need no key and cannot change anything.

    api_keys: the keys that give access to /v1 and /metrics; if there are none, no key is needed.
    hosts: the names that are accepted in the Host header; None for any name. A service on loopback without keys should
    set this, to prevent DNS rebinding.
    cors: origins of other sites whose pages may call the service.
    writable: allow POST and DELETE of items, and marking groups as not duplicates.
    allow_cleanup: allow moving duplicates away and restoring them; needs `writable`.
    move_to: the folder that duplicates are moved to; None for the desktop's trash.
    journals: the folder for the journals of clean-ups; None for the folder INDEX.journals beside each index.
    allow_urls: allow searches by URL.
    max_body: the largest body in bytes. max_pixels: the most pixels of an image. max_k: the most matches.
    memory: bytes for all requests together, in addition to the memory of the idle process; requests that need more get
    status 413 or 429. Six tenths are for decoding, two tenths for bodies, the rest for answers. 0 means 640 MiB or 20
    times `max_body`, whichever is larger; the part for bodies then holds at least four of the largest bodies.
    in_flight: the most searches accepted at once; others get status 429.
    batch_size: the most searches computed at once.
    timeout: seconds for an answer. body_timeout: seconds for a body to arrive. head_timeout: seconds for a request's
    head to arrive, used only by `simsearch serve` (other servers have their own limits).
    relative: return paths relative to their source, as the index stores them, instead of absolute paths.
    Raises UsageError for a value that cannot be used.
    """

    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    cors: tuple[str, ...] = ()
    writable: bool = False
    allow_cleanup: bool = False
    move_to: str | None = None
    journals: str | None = None
    allow_urls: bool = False
    max_body: int = 32 << 20
    max_pixels: int = 64_000_000
    memory: int = 0
    max_k: int = 1000
    in_flight: int = 128
    batch_size: int = 32
    timeout: float = 30.0
    body_timeout: float = 20.0
    head_timeout: float = 10.0
    relative: bool = False

    def __post_init__(self) -> None:
        for name in ("api_keys", "hosts", "cors"):
            value: Any = getattr(self, name)
            texts = (value,) if isinstance(value, str) else value
            if texts is None and name == "hosts":
                continue
            if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
                raise UsageError(f"{name} is {value!r}, not a list of texts")
            object.__setattr__(self, name, tuple(texts))
        for name in ("writable", "allow_cleanup", "allow_urls", "relative"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}, not True or False")
        for name in _NUMBERS:
            if not isinstance(getattr(self, name), int if name in _WHOLE else int | float):
                raise UsageError(f"{name} is {getattr(self, name)!r}, not a {'whole ' * (name in _WHOLE)}number")
        if self.memory == 0:
            object.__setattr__(self, "memory", max(DEFAULT_MEMORY, 4 * self.max_body * 10 // BODIES))
        self._check_cleanup()
        if any(not key.strip() for key in self.api_keys):
            raise UsageError("an API key is empty")
        for name in _NUMBERS:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be positive")
        if self.bodies < self.max_body:
            need = self.max_body * 10 // BODIES
            raise UsageError(f"memory is {self.memory:,} bytes, but a body of {self.max_body:,} bytes needs {need:,}")

    def _check_cleanup(self) -> None:
        if self.allow_cleanup and not self.writable:
            raise UsageError("allow_cleanup needs writable", hint="set writable as well: a clean-up changes the index")
        for name in ("move_to", "journals"):
            value: Any = getattr(self, name)
            if value is None:
                continue
            if not self.allow_cleanup:
                raise UsageError(f"{name} has no effect without allow_cleanup", hint="set allow_cleanup as well")
            if not isinstance(value, str | os.PathLike) or not os.fspath(value):
                raise UsageError(f"{name} is {value!r}, which names no folder")
            object.__setattr__(self, name, os.path.abspath(os.path.expanduser(value)))

    @property
    def cleanup(self) -> Literal["move", "trash"] | None:
        """What clean-ups do with duplicates; None if clean-ups are not allowed."""
        if not self.allow_cleanup:
            return None
        return "trash" if self.move_to is None else "move"

    @classmethod
    def from_keywords(cls, given: Mapping[str, Any]) -> Settings:
        """Makes settings from keyword arguments. Raises UsageError for an unknown name or an invalid value."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(names)):
            meant = OTHER_NAMES.get(unknown[0])
            hint = f"did you mean {meant}?" if meant else suggestions.hint(unknown[0], names)
            raise UsageError(f"create_app has no option {unknown[0]!r}", hint=hint)
        return cls(**given)

    @property
    def decoding(self) -> int:
        """The part of `memory` for decoding images, in bytes."""
        return self.memory * DECODING // 10

    @property
    def bodies(self) -> int:
        """The part of `memory` for request bodies, fetched images, and unpacked files being sent, in bytes."""
        return self.memory * BODIES // 10
