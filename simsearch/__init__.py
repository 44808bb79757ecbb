"""Image-similarity search: nearest neighbours in the features of AlexNet's last hidden layer.

    import simsearch

    engine = simsearch.build("photos/", index="indexes/photos")
    for match in engine.search("cat.jpg", k=6):
        print(match.path, match.distance)

Importing this package is fast: each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from simsearch.installation import __version__

_HOME = {
    "Engine": "simsearch.engine",
    "Match": "simsearch.search.results",
    "Summary": "simsearch.indexing.options",
    "build": "simsearch.api",
    "create_app": "simsearch.server.app",
    "errors": "simsearch.errors",
    "open": "simsearch.api",
}

__all__ = ["Engine", "Match", "Summary", "__version__", "build", "create_app", "errors", "open"]

if TYPE_CHECKING:
    from simsearch import errors
    from simsearch.api import build, open
    from simsearch.engine import Engine
    from simsearch.indexing.options import Summary
    from simsearch.search.results import Match
    from simsearch.server.app import create_app


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    value = module if name == "errors" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
