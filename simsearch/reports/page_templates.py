"""The Jinja2 environment for HTML pages. It escapes all values and makes unprintable characters visible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simsearch.common.printable import printable

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def page_environment(folder: str = "") -> Environment:
    """Returns an environment that looks for templates in the subfolder `folder` of `templates`, then in `templates`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return Environment(
        loader=FileSystemLoader([TEMPLATES / folder, TEMPLATES] if folder else TEMPLATES),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
