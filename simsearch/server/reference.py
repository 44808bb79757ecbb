"""The API reference at `/docs`: Swagger UI from files on this machine, or a plain page if they are not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse, Response

from simsearch.server import openapi
from simsearch.server import page as server_page
from simsearch.server.middleware import ApiError

FILES = {"swagger-ui-bundle.js": "text/javascript; charset=utf-8", "swagger-ui.css": "text/css; charset=utf-8"}
"""The Swagger UI files that the page loads: a dict from file names to media types."""

_START = """addEventListener("load", () => SwaggerUIBundle({
  url: "openapi.json", dom_id: "#reference", deepLinking: true, validatorUrl: null, syntaxHighlight: false,
}));"""
_PAGE = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>simsearch {openapi.VERSION}: HTTP</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="docs/swagger-ui.css"><style></style>
<p><a href="docs/plain">The same as a plain page</a></p><main id="reference"></main>
<script>{_START}</script>
<script src="docs/swagger-ui-bundle.js"></script></html>"""
# Swagger UI sets styles of single elements; its scripts come from this service only.
_POLICY = server_page.policy(_PAGE).replace("script-src", "script-src 'self'")
_POLICY = ";".join(
    " style-src 'self' 'unsafe-inline'" if part.startswith(" style-src") else part for part in _POLICY.split(";")
)


def docs(document: dict[str, Any]) -> Response:
    """Returns the page of Swagger UI, or the plain page if its files are not installed."""
    if _folder() is None:
        return server_page.docs(document)
    return Response(_PAGE, media_type="text/html; charset=utf-8", headers={"content-security-policy": _POLICY})


def plain(document: dict[str, Any]) -> Response:
    """Returns the OpenAPI document as a page without scripts."""
    return server_page.docs(document, "../openapi.json")


def file(name: str) -> Response:
    """Returns one of the files in `FILES`. Raises ApiError for another name, or if the files are not installed."""
    folder = _folder()
    if folder is None or name not in FILES:
        raise ApiError(404, "not_found", "Not Found")
    return FileResponse(folder / name, media_type=FILES[name], headers={"cache-control": "max-age=3600"})


def _folder() -> Path | None:
    """Returns the folder of Swagger UI's files in the package fastapi-offline; None if they are not installed."""
    found = importlib.util.find_spec("fastapi_offline")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "static"
    return folder if all((folder / name).is_file() for name in FILES) else None
