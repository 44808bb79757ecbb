"""The commands `serve`, `demo` and `completion`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from simsearch import api
from simsearch.cli import completion, following
from simsearch.cli.console import echo_data, note, warn_if_incomplete
from simsearch.cli.options import Command, default_index, device_option, version_option
from simsearch.cli.progress import show_progress
from simsearch.common.lazy import LazyModule
from simsearch.common.machine import let_openmp_sleep
from simsearch.common.milvus_address import is_address, parse_address
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.images.samples import generate
from simsearch.images.sources.remote import permission
from simsearch.indexing import options

if TYPE_CHECKING:
    from simsearch.server import app as server_app
    from simsearch.server import run
else:  # they need the extra [serve]; `serve --help` and `completion` do not
    server_app = LazyModule("simsearch.server.app")
    run = LazyModule("simsearch.server.run")

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")

port_option = click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 for a free one.",
)


def _limit(name: str, default: int, unit: str, text: str) -> Callable[[Command], Command]:
    """Returns a decorator that adds an option for a whole number of at least 1.

    unit: the placeholder for the number in the help, such as MIB. text: the help of the option.
    """
    return click.option(name, type=click.IntRange(1), default=default, show_default=True, metavar=unit, help=text)


@click.command("serve")
@click.option(
    "-i",
    "--index",
    "index",
    multiple=True,
    metavar="[NAME=]PATH",
    shell_complete=completion.files,
    default=lambda: (default_index(),),
    help="Index to serve; repeatable. The first answers requests that name no index.  [default: as for `query`]",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; 0.0.0.0 lets other machines in, and needs --api-key or --insecure.",
)
@port_option
@click.option(
    "--api-key",
    metavar="KEY|@FILE",
    envvar="SIMSEARCH_API_KEY",
    help="Require this key, or one of the keys in FILE, one per line. Set $SIMSEARCH_API_KEY instead to hide the"
    " key from `ps`.",
)
@click.option("--insecure", is_flag=True, help="Allow other machines without a key.")
@click.option("--writable", is_flag=True, help="Allow adding and removing items.")
@click.option(
    "--allow-cleanup",
    is_flag=True,
    help="With --writable, allow moving duplicates into the trash or to the folder of --move-to, and undoing"
    " these moves.",
)
@click.option("--move-to", metavar="DIR", help="With --allow-cleanup, the folder that duplicates are moved to.")
@click.option(
    "--journals",
    metavar="DIR",
    help="With --allow-cleanup, the folder of the journals for `restore`.  [default: INDEX.journals]",
)
@click.option(
    "--remote",
    is_flag=True,
    help="Permit reading all remote sources of the indexes. Without this option, only those are read that you have"
    " given to a command as a SOURCE on this machine.",
)
@click.option("--watch", is_flag=True, help="While serving, watch the indexes' sources and index all changes.")
@click.option("--allow-urls", is_flag=True, help="Allow searches by http(s) URL; public addresses only.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Site whose pages may call the service; repeatable.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Also accept this Host header; repeatable.")
@_limit("--max-body", 32, "MIB", "Largest request body in MiB.")
@_limit("--max-pixels", 64, "MP", "Largest image in millions of pixels.")
@click.option(
    "--memory",
    type=click.IntRange(1),
    metavar="MIB",
    help="Memory limit of the whole process in MiB; requests that need more get status 413 or 429."
    "  [default: no limit for the models, and 640 for all requests together]",
)
@_limit("--batch-size", 32, "N", "Searches per batch.")
@_limit("--in-flight", 128, "N", "Searches accepted at once; others get status 429.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds that an answer may take.",
)
@click.option("--relative", is_flag=True, help="Return paths as stored, relative to their source.")
@device_option
@version_option
def serve_command(
    index: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    insecure: bool,
    allow_host: tuple[str, ...],
    max_body: int,
    max_pixels: int,
    memory: int | None,
    remote: bool,
    watch: bool,
    device: str,
    **options: Any,
) -> None:
    """Serves indexes over HTTP, with a web page at /. By default it listens on this machine only."""
    let_openmp_sleep()
    create_app = server_app.create_app  # a missing extra is reported before an index is opened
    keys = _read_keys(api_key)
    local = host in LOOPBACK
    if not local and not keys and not insecure:
        message = f"listening on {host} without a key would give others access to the index"
        raise UsageError(message, hint="set $SIMSEARCH_API_KEY, or use --insecure")
    hosts = (*LOOPBACK, *(name.lower() for name in allow_host)) if local and not keys else None
    if options["allow_cleanup"] and not options["writable"]:
        raise UsageError("--allow-cleanup needs --writable, because a clean-up changes the index")
    if given := next((name for name in ("move_to", "journals") if options[name] is not None), None):
        _check_folder_option(given, options[given], options["allow_cleanup"])
    if remote:
        permission.grant_all()
    engines = _open_indexes(index, device, options["writable"])
    if memory is not None:
        options["memory"] = run.memory_for_requests(engines.values(), memory << 20, options["batch_size"])
    app = create_app(
        engines, api_keys=keys, hosts=hosts, max_body=max_body << 20, max_pixels=max_pixels * 1_000_000, **options
    )
    with following.following(engines) if watch else contextlib.nullcontext():
        run.run(app, host, port, say=lambda url: note(f"serving {', '.join(engines)} at {url}"))


def _check_folder_option(name: str, folder: str, allowed: bool) -> None:
    option = "--" + name.replace("_", "-")
    if not allowed:
        raise UsageError(f"{option} needs --allow-cleanup")
    if not folder:
        raise UsageError(f"{option} '' names no folder")


def _open_indexes(arguments: tuple[str, ...], device: str, writable: bool) -> dict[str, Engine]:
    """Opens the indexes given by `-i [NAME=]PATH`; returns a dict from names to indexes. Raises UsageError.

    Without NAME, an index has the name of its folder, or of its Milvus collection.
    """
    engines: dict[str, Engine] = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator or "/" in name:
            path = argument
            name = parse_address(path).collection if is_address(path) else Path(path).name or "default"
        if is_address(path) and writable:
            raise UsageError(f"{path} is a Milvus collection, which cannot be changed", hint="leave out --writable")
        if name in engines:
            raise UsageError(f"two indexes are called {name!r}", hint="give them different names: -i NAME=PATH")
        engines[name] = warn_if_incomplete(api.open(path, device=device))
    return engines


def _read_keys(option: str | None) -> tuple[str, ...]:
    """Returns the key given by `--api-key KEY`, or all keys in the file of `--api-key @FILE`. Raises UsageError."""
    if option is None:
        return ()
    if not option.startswith("@"):
        return (option,)
    path = option[1:]
    try:
        lines = Path(os.path.expanduser(path)).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the file of API keys {path} cannot be read: {error}") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UsageError(f"the file of API keys {path} is empty")
    return keys


@click.command("demo")
@click.option("-n", "--count", type=click.IntRange(1), default=300, show_default=True, help="Number of pictures.")
@port_option
@version_option
def demo_command(count: int, port: int) -> None:
    """Shows the web page with generated sample pictures, which are deleted at the end."""
    let_openmp_sleep()
    create_app = server_app.create_app  # a missing extra is reported before anything is drawn
    with tempfile.TemporaryDirectory(prefix="simsearch-demo-") as folder:
        with show_progress("drawing") as progress:
            generate.generate(Path(folder) / "drawn", count, progress=progress)
        with show_progress("indexing") as progress:
            engine, _ = api.build_with_summary(
                [f"{folder}/drawn"],
                f"{folder}/index",
                None,
                device="cpu",
                options=options.BuildOptions(progress=progress),
            )
        with engine:
            app = create_app({"drawn": engine}, hosts=LOOPBACK, relative=True)
            run.run(app, "127.0.0.1", port, say=lambda url: note(f"open {url} in a browser"))


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@version_option
def completion_command(shell: str) -> None:
    """Prints a shell script for completion: eval "$(simsearch completion bash)"."""
    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise UsageError(f"click has no completion for {shell}")
    root = click.get_current_context().find_root().command
    echo_data(completion_class(root, {}, "simsearch", "_SIMSEARCH_COMPLETE").source())
