"""The CPUs that a process may use, by affinity and by cgroups of either version."""

import os

import pytest

from common import processes


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that writes /proc/self/cgroup and files of /sys/fs/cgroup, on a machine of 8 CPUs."""
    monkeypatch.setattr(processes, "CGROUPS", tmp_path / "sys")
    monkeypatch.setattr(processes, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    def write(membership: str, **files: str) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "sys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def v1(quota, period=100000, folder="cpu"):
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    "text, count",
    [("200000 100000\n", 2), ("max 100000\n", 8), ("350000 100000\n", 3), ("50000 100000\n", 1), ("", 8), ("1 0", 8)],
)
def test_cgroup_v2(machine, text, count):
    machine("0::/box\n", **{"box/cpu.max": text})
    assert processes.cpu_count() == count


def test_the_lowest_quota_of_all_parents_holds(machine):
    machine("0::/a/b\n", **{"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "600000 100000"})
    assert processes.cpu_count() == 3


def test_a_path_that_this_container_does_not_show(machine):
    """Inside a container the membership may name a path of the host; the quota lies at the mount point."""
    machine("0::/docker/0123\n", **{"cpu.max": "200000 100000"})
    assert processes.cpu_count() == 2


@pytest.mark.parametrize("quota, count", [(200000, 2), (-1, 8), (2_000_000, 8)])
def test_cgroup_v1(machine, quota, count):
    machine("4:memory:/x\n2:cpu,cpuacct:/\n0::/\n", **v1(quota, folder="cpu,cpuacct"))
    assert processes.cpu_count() == count


def test_cgroup_v2_beside_v1(machine):
    machine("1:cpu:/\n0::/box\n", **v1(-1), **{"unified/box/cpu.max": "400000 100000"})
    assert processes.cpu_count() == 4


def test_no_cgroups_leave_the_affinity(machine):
    assert processes.cpu_count() == 8
