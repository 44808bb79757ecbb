"""The benchmarks of scripts/bench run, small."""

import re
import subprocess
import sys

import pytest

import simsearch
from simsearch.images.samples import generate
from tests.helpers.scripts import SCRIPTS


def test_bench_cold(tmp_path):
    index, folder = tmp_path / "index", tmp_path / "pictures"
    generate.generate(folder, count=4)
    simsearch.build(folder, index).close()
    picture = str(next(folder.rglob("*.*")))
    script = SCRIPTS / "bench" / "cold.py"
    command = [sys.executable, str(script), picture, "-i", str(index), "--times", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "load alexnet (onnx" in done.stdout
    assert "session made" in done.stdout
    assert "median of the ratios" in done.stdout
    assert "[imports: none]" in done.stdout


def bench(name, *arguments):
    command = [sys.executable, str(SCRIPTS / "bench" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_bench_ingest(tmp_path, tiny_weights):
    """Twelve different JPEGs of four drawings; one tutorial's loop is enough."""
    generate.generate(tmp_path / "pictures", count=4)
    out = bench(
        "ingest",
        tmp_path / "pictures",
        "--count",
        12,
        "--enlarge",
        0.5,
        "--times",
        1,
        "--model",
        tiny_weights,
        "--skip",
        "tutorial",
    )
    assert "12 JPEGs" in out
    assert "63 pixels; 1 rounds" in out
    assert "simsearch against tutorial, batches: " in out
    assert "of that" in out
    rates = re.search(r"tutorial, batches ([\d,.]+), decoding ([\d,.]+), inference ([\d,.]+), simsearch ([\d,.]+)", out)
    assert rates
    assert all(float(rate.replace(",", "")) > 0 for rate in rates.groups())


def test_bench_decoding(tmp_path, tiny_weights):
    generate.generate(tmp_path / "pictures", count=8)
    out = bench("decoding", tmp_path / "pictures", "--model", tiny_weights, "--megapixels", 0, 1)
    assert "8 of 8 images" in out
    assert re.search(r"as it is +0\.99|as it is +1\.0", out)
    assert re.search(r"1 MP +0\.9", out)


@pytest.mark.skipif(not (SCRIPTS.parent / ".git").exists(), reason="not a checkout of git")
def test_bench_versions(tiny_weights):
    """HEAD beside the working tree; the script ends with 1 if an index of HEAD is answered differently."""
    small = ["--count", 8, "--rounds", 1, "--weights", tiny_weights]
    out = bench("versions", "HEAD", "--only", "help", "build", "old", *small)
    assert re.search(r"^--help .* new / old \d", out, re.M)
    assert re.search(r"^build of 8 photographs .* new / old \d", out, re.M)
    assert "50 of 50 queries have the same 10 items in the same order" in out


def test_fuzz_of_pictures():
    out = bench("fuzz", "pictures", "--count", 120)
    assert re.search(r"120 pictures of 3\d formats, seed 0: ", out), out
    assert " 0 stops, 0 crashes, 0 above the estimated memory" in out


@pytest.mark.parametrize(("mode", "count"), [("index", 60), ("weights", 30), ("tables", 60), ("archives", 60)])
def test_fuzz_files(mode, count):
    out = bench("fuzz", mode, "--count", count, "--seed", 3)
    assert f"{mode}: {count} damaged, seed 3" in out
    assert "faults: 0 crash, 0 stall, 0 raw, 0 wrong" in out


@pytest.mark.parametrize("shim", [True, False], ids=["all libraries", "Python only"])
def test_kill_storm(monkeypatch, shim):
    """In short: every kind of work is killed once or more, and nothing is lost."""
    if not shim:
        monkeypatch.setenv("SIMSEARCH_KILL_SHIM", "")  # as without a compiler
    out = bench("kill", "--kills", 20, "--world", 50, "--seed", 1)
    assert re.search(r"\n20 kills in \d+ works, \d+ ended with an error message; \d+ s; 0 not as claimed", out), out
