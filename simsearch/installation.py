"""The version of simsearch, and the commands that install its extras (groups of optional packages)."""

from __future__ import annotations

import os
import sys
from typing import Any

__version__ = "0.1.0"


def install_line(extra: str) -> str:
    """Returns the command that installs an extra into this environment.

    The command names the place from which simsearch was installed. For a checkout, this is its folder, for example
    `pip install '.[serve]'` in the checkout itself. For an archive or a repository, it is the address. For a package
    index, the name simsearch is enough.
    """
    import importlib.metadata  # here and below: at the top, these imports would slow down every start
    import json

    try:
        found = importlib.metadata.distribution("simsearch")
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        installer = (found.read_text("INSTALLER") or "").strip()
    except (importlib.metadata.PackageNotFoundError, ValueError):  # run from a checkout without being installed
        return f"{_installer('')} '.[{extra}]'"
    return f"{_installer(installer)} {_requirement(extra, origin)}"


def install_packages_line(packages: str) -> str:
    """Returns the command that installs packages into this environment. packages: the arguments of `pip install`."""
    return f"{_installer('')} {packages}"


def _installer(installer: str) -> str:
    """Returns the start of an install command for the running Python: `uv pip install` or `pip install`.

    If no `pip` of this Python is on the PATH, the result is `PYTHON -m pip install`, with the path of this Python.
    installer: "uv" if uv installed simsearch; any other text means pip.
    """
    import shlex
    import shutil

    if installer == "uv":
        return "uv pip install"
    found = shutil.which("pip")
    own = found is not None and os.path.dirname(os.path.realpath(os.path.dirname(found))) == os.path.realpath(
        sys.prefix
    )
    return "pip install" if own else f"{shlex.quote(sys.executable)} -m pip install"


def _requirement(extra: str, origin: Any) -> str:
    import shlex
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    url = origin.get("url") if isinstance(origin, dict) else None
    if not isinstance(url, str):
        return f"'simsearch[{extra}]'"
    if "vcs_info" in origin:
        return shlex.quote(f"simsearch[{extra}] @ {origin['vcs_info'].get('vcs', 'git')}+{url}")
    if not url.startswith("file:"):
        return shlex.quote(f"simsearch[{extra}] @ {url}")
    folder = url2pathname(urlsplit(url).path)
    shown = "." if os.path.realpath(folder) == os.path.realpath(os.curdir) else folder
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"{editable}'{shown}[{extra}]'" if "'" not in shown else f"{editable}{shlex.quote(f'{shown}[{extra}]')}"
