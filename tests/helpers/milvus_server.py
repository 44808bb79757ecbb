"""A Milvus server of this machine for the tests: started in a folder, killed, started again where it was.

It comes from the PyPI package `milvus` in an environment of its own, whose interpreter $SIMSEARCH_TEST_MILVUS names;
`scripts/test-cluster` makes it. Milvus listens on all addresses: that script keeps it in a network of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from simsearch.cluster.milvus.client import MilvusClient
from simsearch.common.milvus_address import parse_address
from simsearch.errors import SimsearchError

PYTHON = os.environ.get("SIMSEARCH_TEST_MILVUS")

_START = """
import os, socket, sys
from milvus import MilvusServer, MilvusServerConfig, _initialize_data_files
folder, port = sys.argv[1:]
def bind(self, port):  # as the package does it, but after a kill as well, when the system still holds the port
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError:
        return None
    return found
MilvusServerConfig.try_bind_port = bind
config = MilvusServerConfig()
config.set("proxy.timeTickInterval", "20")  # milliseconds that a search of strong consistency waits for; 200 by default
config.update(data_dir=folder, proxy_port=port)
server = MilvusServer(config)
config.resolve()
_initialize_data_files(config.base_data_dir)
program = server.get_milvus_executable_path()
os.chdir(config.base_data_dir)
here = {"DEPLOY_MODE": "STANDALONE", "METRICS_PORT": str(int(port) + 1), "MILVUS_RUN_DIR": folder + "/run",
        "LD_LIBRARY_PATH": os.path.dirname(program)}
os.execve(program, [program, "run", "standalone"], {**os.environ, **here})  # so that its process is the one started
"""


class Server:
    """A server whose data lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def address(self, collection: str) -> str:
        return f"milvus://127.0.0.1:{self.port}/{collection}"

    def start(self) -> float:
        """Starts it, waits until it answers, and returns the seconds that took."""
        assert PYTHON is not None
        clock = time.monotonic()
        with (self.folder / "server.log").open("ab") as log:
            command = ["nice", "-n", "5", PYTHON, "-c", _START, str(self.folder / "data"), str(self.port)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while time.monotonic() - clock < 180:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            try:
                rows = MilvusClient(parse_address(self.address("any")))
                rows.exists()
                rows.close()
                return time.monotonic() - clock
            except SimsearchError:
                time.sleep(0.5)
        raise AssertionError("Milvus does not answer")

    def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
