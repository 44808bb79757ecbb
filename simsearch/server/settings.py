"""How the HTTP service behaves: limits, keys, and what is allowed at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simsearch.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """The options of `create_app`; the defaults allow nothing that could surprise.

    api_keys: any of them opens /v1 and /metrics; none means that no key is asked for. hosts: the names in the Host
    header that are answered, None for any (against DNS rebinding, where the service listens on loopback without a key).
    cors: origins of other sites whose pages may call. writable: POST and DELETE of items. allow_urls: searching by URL.
    max_body, max_pixels: of one request. in_flight: requests for a search taken in at once; beyond, 429.
    batch_size: images computed at once, 1 for one by one. timeout: seconds for an answer. body_timeout: for a body.
    head_timeout: for a request's head, where `simsearch serve` listens; another server has limits of its own.
    relative: answer paths as stored, relative to their source.
    """

    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    cors: tuple[str, ...] = ()
    writable: bool = False
    allow_urls: bool = False
    max_body: int = 32 << 20
    max_pixels: int = 64_000_000
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
            if isinstance(value, str):
                object.__setattr__(self, name, (value,))
            elif value is not None:
                object.__setattr__(self, name, tuple(value))
        if any(not key.strip() for key in self.api_keys):
            raise UsageError("an API key is empty")
        for name in (
            "max_body",
            "max_pixels",
            "max_k",
            "in_flight",
            "batch_size",
            "timeout",
            "body_timeout",
            "head_timeout",
        ):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be positive")
