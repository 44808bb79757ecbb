"""The verbs `serve`, `demo` and `completion`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simsearch.cli.console import opened, progress
from simsearch.cli.models import device, files, version

if TYPE_CHECKING:
    from simsearch.engine import Engine

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")


@click.command()
@click.option("-i", "--index", "index", multiple=True, metavar="[NAME=]PATH", shell_complete=files,
              default=lambda: (os.environ.get("SIMSEARCH_INDEX") or "indexes/default",),
              help="An index; repeatable, the first is the default; also $SIMSEARCH_INDEX.  [default: indexes/default]",
              )  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--api-key", metavar="KEY|@FILE", envvar="SIMSEARCH_API_KEY",
              help="Ask for this key; @FILE: a line each. $SIMSEARCH_API_KEY keeps it out of `ps`.")  # fmt: skip
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without a key.")
@click.option("--writable", is_flag=True, help="Allow adding and removing items.")
@click.option("--allow-urls", is_flag=True, help="Allow searching by http(s) URL; public addresses only.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Other sites whose pages may call; repeatable.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Answer to this Host header as well; repeatable.")
@click.option("--max-body", type=click.IntRange(1), default=32, show_default=True, metavar="MIB", help="Largest body.")
@click.option("--max-pixels", type=click.IntRange(1), default=64, show_default=True, metavar="MP",
              help="Largest image, in millions of pixels.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, metavar="N",
              help="Searches answered at once.")  # fmt: skip
@click.option("--in-flight", type=click.IntRange(1), default=128, show_default=True, metavar="N",
              help="Searches taken in at once; beyond, status 429.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, metavar="S",
              help="Seconds for an answer.")  # fmt: skip
@click.option("--relative", is_flag=True, help="Answer paths as stored, relative to their source.")
@device
@version
def serve(
    index: tuple[str, ...], host: str, port: int, api_key: str | None, insecure: bool, allow_host: tuple[str, ...],
    max_body: int, max_pixels: int, device: str, **options: Any,
) -> None:  # fmt: skip
    """Serves indexes over HTTP, with a web page at /. Listens on this machine only, unless told otherwise."""
    from simsearch import api
    from simsearch.addresses import is_address, parse
    from simsearch.errors import UsageError
    from simsearch.server import create_app
    from simsearch.serving import run

    keys = _keys(api_key)
    local = host in LOOPBACK
    if not local and not keys and not insecure:
        raise UsageError(f"to listen on {host} without a key would open the index to others",
                         hint="set $SIMSEARCH_API_KEY, or give --insecure")  # fmt: skip
    hosts = (*LOOPBACK, *(name.lower() for name in allow_host)) if local and not keys else None
    engines: dict[str, Engine] = {}
    for given in index:
        name, separator, path = given.partition("=")
        if not separator or "/" in name:
            path = given
            name = parse(given).collection if is_address(given) else Path(given).name or "default"
        if is_address(path) and options["writable"]:
            raise UsageError(f"{path} is not changed in place", hint="leave out --writable")
        if name in engines:
            raise UsageError(f"two indexes are called {name!r}", hint="-i NAME=PATH names them")
        engines[name] = opened(api.open(path, device=device))
    app = create_app(engines, api_keys=keys, hosts=hosts, max_body=max_body << 20, max_pixels=max_pixels * 1_000_000,
                     **options)  # fmt: skip
    run(app, host, port, say=lambda url: click.echo(f"note: serving {', '.join(engines)} at {url}", err=True))


def _keys(given: str | None) -> tuple[str, ...]:
    """The keys in an option or in the file that it names."""
    from simsearch.errors import UsageError

    if given is None:
        return ()
    if not given.startswith("@"):
        return (given,)
    try:
        lines = Path(os.path.expanduser(given[1:])).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the file of API keys {given[1:]} cannot be read: {error}") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UsageError(f"the file of API keys {given[1:]} is empty")
    return keys


@click.command()
@click.option("-n", "--count", type=click.IntRange(1), default=300, show_default=True, help="Pictures.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@version
def demo(count: int, port: int) -> None:
    """Shows the web page without any data: draws pictures, indexes and serves them, and leaves nothing behind."""
    import tempfile

    from simsearch import api, sample, sync
    from simsearch.server import create_app
    from simsearch.serving import run

    with tempfile.TemporaryDirectory(prefix="simsearch-demo-") as folder:
        with progress("drawing") as callback:
            sample.write(Path(folder) / "drawn", count, progress=callback)
        with progress("indexing") as callback:
            options = sync.Options(progress=callback)
            engine, _ = api.build_with_summary([f"{folder}/drawn"], f"{folder}/index", None, device="cpu",
                                               options=options)  # fmt: skip
        with engine:
            app = create_app({"drawn": engine}, hosts=LOOPBACK, relative=True)
            run(app, "127.0.0.1", port, say=lambda url: click.echo(f"note: open {url} in a browser", err=True))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@version
def completion(shell: str) -> None:
    """Prints a script that completes commands and options: eval "$(simsearch completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, "simsearch", "_SIMSEARCH_COMPLETE").source())
