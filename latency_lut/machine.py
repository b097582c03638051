"""What a measurement is valid for: CPU, engine and versions; and what else ran on the machine meanwhile."""

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import torch

import quant

# of a latency table: where one of these differs, its milliseconds do not apply
FINGERPRINT = ("engine", "threads", "cpu", "flags", "torch", "runtime", "weight_qmax", "batch", "memory_format")
RUNTIMES = tuple(dict.fromkeys(engine.runtime for engine in quant.ENGINES.values()))
# Instruction sets that integer and float kernels choose their code by.
FLAGS = re.compile(r"(avx\w*|amx\w*|fma|f16c|sse4_\d|ssse3|neon|asimd\w*|sve\w*|i8mm|bf16)$")


def fingerprint(engine: str, threads: int, batch: int = 1) -> dict:
    """What a measurement on this machine is valid for, by the names in FINGERPRINT.

    "runtime" is the library whose kernels run, with its version.
    """
    return {
        "engine": engine,
        "threads": threads,
        "cpu": cpu_model(),
        "flags": list(cpu_flags()),
        "torch": torch.__version__,
        "runtime": _runtime(engine),
        "weight_qmax": quant.weight_qmax(engine),
        "batch": batch,
        "memory_format": "channels_last",
    }


def shown(value: object) -> str:
    """A value of a fingerprint as messages print it."""
    return " ".join(value) or "none" if isinstance(value, list) else str(value)


def describe() -> dict:
    """This machine as benchmarks of all engines record it, with the versions of RUNTIMES (None: not installed)."""
    versions = {runtime: _version(runtime) for runtime in RUNTIMES}
    return {"cpu": cpu_model(), "flags": list(cpu_flags()), "cores": os.cpu_count(), **versions}


def revision() -> str:
    """The program's git commit; "unknown" outside a checkout."""
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _runtime(engine: str) -> str:
    runtime = quant.ENGINES[engine].runtime
    if runtime == "torch":  # its own version string names the build, too
        return f"torch {torch.__version__}"
    return f"{runtime} {version}" if (version := _version(runtime)) else f"{runtime}, not installed"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
