"""What a latency depends on besides the network: the CPU, and what else ran on it meanwhile."""

import os
import platform
import re
import time
from pathlib import Path

# Instruction sets that integer and float kernels choose their code by.
FLAGS = re.compile(r"(avx\w*|amx\w*|fma|f16c|sse4_\d|ssse3|neon|asimd\w*|sve\w*|i8mm|bf16)$")


def cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> tuple[str, ...]:
    """The CPU's instruction sets that matter to kernels, sorted; empty where the system does not tell."""
    words = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return tuple(sorted(filter(FLAGS.match, words)))


class Watch:
    """Load and steal between its making and `seen()`.

    Steal is the share of CPU time that the hypervisor gave to others. None where the system does not tell.
    """

    def __init__(self):
        self.started, self.ticks = time.monotonic(), _ticks()

    def seen(self) -> dict:
        """{"seconds", "load" (runnable processes, the last minute's mean), "steal" (0 to 1)}."""
        steal, ticks = None, _ticks()
        if self.ticks and ticks:
            spent = [after - before for before, after in zip(self.ticks, ticks)]
            steal = round(spent[7] / sum(spent), 4) if sum(spent) > 0 else 0.0
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        return {"seconds": round(time.monotonic() - self.started, 1), "load": load, "steal": steal}


def _cpuinfo(field: str) -> str | None:
    """The first value of a field of /proc/cpuinfo."""
    found = re.search(rf"^{re.escape(field)}\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found.group(1).strip() if found else None


def _ticks() -> list[int] | None:
    """Time of all CPUs since boot: user, nice, system, idle, iowait, irq, softirq, steal."""
    found = re.match(r"cpu +((?:\d+ ?){8,})", _read("/proc/stat"))
    return [int(word) for word in found.group(1).split()[:8]] if found else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""  # no Linux
