"""The CPUs that this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_count() -> int:
    """How many CPUs this process may use, at least 1: by its affinity and by the quotas of its cgroups (v1 and v2)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(_quotas(CGROUPS, MEMBERSHIP), default=math.inf)
    return max(1, math.floor(min(affinity, quota)))


def _quotas(root: Path, membership: Path) -> Iterator[float]:
    """CPUs that each cgroup of this process, and each parent of these, grants; nothing for one without a quota."""
    for line in (_read(membership) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # v2; beside v1 it is mounted in "unified"
            mounts, quota_of = (root, root / "unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, quota_of = dict.fromkeys((root / "cpu", root / controllers)), _quota_v1
        else:
            continue
        for mount in mounts:
            folder = mount / path.lstrip("/")
            granted = map(quota_of, (folder, *(p for p in folder.parents if p.is_relative_to(mount))))
            yield from (cpus for cpus in granted if cpus is not None)


def _quota_v2(folder: Path) -> float | None:
    """From cpu.max: "200000 100000" is 2 CPUs, "max 100000" is no limit."""
    quota, period = ((_read(folder / "cpu.max") or "").split() + ["", ""])[:2]
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _quota_v1(folder: Path) -> float | None:
    """From cpu.cfs_quota_us, where -1 is no limit, and cpu.cfs_period_us."""
    quota, period = ((_read(folder / name) or "").strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None  # no Linux, no such controller, or a path outside this container
