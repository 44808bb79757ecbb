"""The web page at `/` and the plain reference of the API; their content-security policies allow only their own code."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

from fastapi.responses import Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from simsearch.reports.page_templates import TEMPLATES
from simsearch.search.options import OPTIONS
from simsearch.search.results import WORDS
from simsearch.server import openapi


def page() -> Response:
    """Returns the web page."""
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
    return Response(_PAGE, media_type="text/html; charset=utf-8", headers=headers)


def docs(document: dict[str, Any], link: str = "openapi.json") -> Response:
    """Returns the OpenAPI document as a page without scripts. link: the address of the document as JSON."""
    parts = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            codes = ", ".join(operation.get("responses", {}))
            shown = html.escape(json.dumps(operation.get("requestBody", {}).get("content", {}), indent=1))
            body = f"<details><summary>Body</summary><pre>{shown}</pre></details>" if "requestBody" in operation else ""
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{html.escape(operation.get('summary', ''))}. Answers {codes}.</p>{body}"
            )
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        shown = html.escape(json.dumps(schema, indent=1))
        parts.append(f"<h2>{html.escape(name)}</h2><details><summary>Schema</summary><pre>{shown}</pre></details>")
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>simsearch: HTTP</title>'
        f"<style>{_DOCS_STYLE}</style><main><h1>simsearch {openapi.VERSION}</h1>"
        f'<p>{html.escape(openapi.ABOUT)} <a href="{link}">openapi.json</a></p>{"".join(parts)}</main></html>'
    )
    return Response(text, media_type="text/html; charset=utf-8", headers={"content-security-policy": policy(text)})


def policy(page: str) -> str:
    """Returns the content-security policy for the HTML of a page.

    The policy allows the page's own script and style, by their hashes, and images and requests to the same site.
    """

    def digest(tag: str) -> str:
        inner = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return "'sha256-" + base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; img-src 'self' blob: data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def render() -> str:
    """Returns the HTML of the web page: its parts joined into one text, with checkboxes for some search options."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates" / "page", TEMPLATES]),  # the map's parts
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html").render(options=OPTIONS, words=WORDS)


_DOCS_STYLE = """:root { color-scheme: light dark; } body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem;
 margin: 2rem auto; padding: 0 1rem; } h2 { font-size: 1.05rem; margin-top: 1.75rem; } pre { overflow: auto; }"""
_PAGE = render()
_POLICY = policy(_PAGE)
