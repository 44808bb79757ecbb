"""A process that was forked after a search answers like its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import simsearch
from tests.helpers.filler import Filler
from tests.helpers.sources import png, write_zip

FORK = """
    import os, sys, threading
    import numpy as np

    def in_child(ask):
        expected = ask()
        child = os.fork()
        if not child:
            threading.Timer(60, lambda: os._exit(2)).start()
            os._exit(0 if ask() == ask() == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert ask() == expected

    import simsearch
"""


def run(code: str, *arguments: object) -> None:
    text = textwrap.dedent(FORK) + textwrap.dedent(code)
    command = [sys.executable, "-W", "ignore", "-c", text, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_child_searches(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", 64)
    filler.add(np.random.default_rng(0).normal(1, 1, (5000, 64)))
    filler.engine.close()
    code = """
        from simsearch.engine import Engine
        from tests.helpers.filler import Wide

        engine = Engine(sys.argv[1], model=Wide(64))
        queries = np.random.default_rng(1).normal(1, 1, (40, 64)).astype(np.float32)

        def ask():
            one = [(m.id, m.label) for m in engine.search_by_vector(queries[0], 5)]
            many = [[m.id for m in found] for found in engine.search_by_vectors(queries, 5)]
            with Engine(sys.argv[1], model=Wide(64)) as other:
                filtered = [m.id for m in other.search_by_vector(queries[1], 9, where={"label": "one"})]
            return one, many, filtered

        in_child(ask)
    """
    run(code, filler.path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_child_computes_and_reads(tmp_path: Path, tiny_weights: Path) -> None:
    """ONNX sessions and open archives are made again in a child."""
    place = write_zip(tmp_path / "x.zip", *(f"{number}.png" for number in range(12)))
    simsearch.build(place, tmp_path / "index", str(tiny_weights)).close()
    (tmp_path / "new.png").write_bytes(png(99))
    code = """
        engine = simsearch.open(sys.argv[1], device="cpu")

        def ask():
            near = [(m.id, round(m.distance, 6)) for m in engine.search(sys.argv[2], 5)]
            return near, [engine.read(number) for number in range(1, 13)]

        in_child(ask)
    """
    run(code, tmp_path / "index", tmp_path / "new.png")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_waits_for_reading_threads(tmp_path: Path) -> None:
    """Locks of SQLite that a thread holds at the time of a fork would stay locked in the child."""
    filler = Filler(tmp_path / "index", 8)
    filler.add(np.random.default_rng(0).normal(1, 1, (50, 8)))
    filler.engine.close()
    code = """
        import time
        from simsearch.common import fork
        from simsearch.engine import Engine
        from tests.helpers.filler import Wide

        engine = Engine(sys.argv[1], model=Wide(8))

        def ask():
            return [m.id for m in engine.search_by_vector(np.ones(8), 5)]

        def read(seconds):
            with engine.reading():
                inside.set()
                time.sleep(seconds)
                ended.append(time.monotonic())

        def waited(seconds):
            inside.clear()
            thread = threading.Thread(target=read, args=(seconds,))
            thread.start()
            inside.wait()
            begun = time.monotonic()
            in_child(ask)
            over = time.monotonic() - begun
            thread.join()
            return over

        inside, ended = threading.Event(), []
        assert waited(0.3) >= 0.29
        fork.PATIENCE = 0.1
        assert waited(3) < 2.9  # but not for ever
        with engine.reading():  # nor for itself
            fork.PATIENCE = 60
            in_child(lambda: 1)
        stop = threading.Event()

        def search():
            while not stop.is_set():
                ask()

        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            in_child(ask)
        stop.set()
    """
    run(code, filler.path)
