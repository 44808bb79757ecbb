"""Memory budgets and the cores a process may use."""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path

import pytest

from simsearch.common import machine
from simsearch.common.machine import MemoryBudget, cgroup_cpu_quota

# -- the machine


def test_budget_holds_and_oversized_goes_alone() -> None:
    budget, held, most = MemoryBudget(100), [0], [0]
    lock = threading.Lock()

    def use(size: int) -> None:
        for _ in range(20):
            with budget.hold(size):
                with lock:
                    held[0] += size
                    most[0] = max(most[0], held[0])
                    assert size <= 100 or held[0] == size
                time.sleep(0.0005)
                with lock:
                    held[0] -= size

    threads = [threading.Thread(target=use, args=(size,)) for size in (10, 40, 60, 35, 250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert held == [0]
    assert most[0] == 250


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        ({"a/cpu.max": "150000 100000\n"}, "0::/a\n", 1.5),
        ({"a/cpu.max": "max 100000\n", "cpu.max": "400000 100000\n"}, "0::/a/b\n", 4.0),
        ({"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5),
        (
            {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"},
            "4:memory:/a\n3:cpu,cpuacct:/a\n",
            3,
        ),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/a\n", float("inf")),
        ({}, "0::/\n", float("inf")),
        ({}, None, float("inf")),
    ],
)
def test_quotas_of_control_groups(files: dict[str, str], groups: str | None, expected: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    assert cgroup_cpu_quota(tmp_path / "groups", tmp_path / "fs") == expected
    assert 1 <= machine.available_cores() <= 1024


def test_openmp_sleeps_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for before, after in (("", "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": before} if before else {})
        machine.let_openmp_sleep()
        assert os.environ["OMP_WAIT_POLICY"] == after


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd14", 1024)])
def test_own_memory_without_proc_is_in_bytes(monkeypatch, platform, unit):
    monkeypatch.setattr(Path, "read_text", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    monkeypatch.setattr("sys.platform", platform)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 0 <= machine.own_memory() // unit - most < 1 << 20
