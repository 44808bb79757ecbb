"""The service on a real socket of this machine: in this process, where a test watches it, or in one of its own."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time

from simsearch.server.run import server_for


@contextlib.contextmanager
def serving(app):
    """Serves an app in a thread; the port."""
    server = server_for(app)
    vars(server)["capture_signals"] = contextlib.nullcontext  # only the main thread may
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            end = time.monotonic() + 20
            while not server.started and time.monotonic() < end:
                time.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


@contextlib.contextmanager
def process(*arguments, verb="serve", env=None):
    """Runs `simsearch serve`; the process, its URL, and a list that its log grows into."""
    command = [sys.executable, "-m", "simsearch", verb, "--port", "0", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as server:
        assert server.stderr is not None
        first = server.stderr.readline()
        while re.match(r"(drawing|indexing):|note: (?!.*http)", first):
            first = server.stderr.readline()
        found = re.search(r"http://\S+", first)
        log = [first]
        reader = threading.Thread(target=log.extend, args=(server.stderr,))
        reader.start()
        try:
            if found is None:
                server.wait(60)
            yield server, found[0] if found else None, log
        finally:
            server.kill()
            server.wait(30)
            reader.join(30)


def raw(port, data, more=False):
    """Sends bytes to the service; returns the status, the error's code (or None) and the headers of its answer.

    more: True for the bytes after that too, until it closes the connection or falls silent.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return answer(connection, more)


def answer(connection, more=False):
    """Reads one answer; see `raw`."""
    with contextlib.suppress(ConnectionResetError), connection.makefile("rb") as stream:
        words = stream.readline().split()
        if not words:
            return (0, None, {}, b"") if more else (0, None, {})
        headers = {}
        while line := stream.readline().strip().decode("latin-1"):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers["content-length"])) if "content-length" in headers else stream.read()
        word = None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            word = json.loads(body)["error"]["code"]
        if not more:
            return int(words[1]), word, headers
        rest = b""
        connection.settimeout(1.5)
        with contextlib.suppress(TimeoutError):
            while chunk := stream.read1(1 << 16):
                rest += chunk
        return int(words[1]), word, headers, rest
    return (0, None, {}, b"") if more else (0, None, {})
