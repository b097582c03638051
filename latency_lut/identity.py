"""What a measurement speaks for, the names of a network's parts, and the command that measures what is missing."""

import importlib.metadata
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

import quant
from latency_lut import machine
from nas import Architecture, signature

IDENTITY = ("engine", "threads", "cpu", "flags", "torch", "runtime", "weight_qmax", "batch", "memory_format")
# the entry of a call that computes nothing: what each part pays when it is timed alone, and a network once
CALL = "call"


def identity(engine: str, threads: int, batch: int = 1) -> dict:
    """What a measurement on this machine speaks for, by IDENTITY's names;

    "runtime" is the library whose kernels run, with its version.
    """
    return {
        "engine": engine,
        "threads": threads,
        "cpu": machine.cpu_model(),
        "flags": list(machine.cpu_flags()),
        "torch": torch.__version__,
        "runtime": _runtime(engine),
        "weight_qmax": quant.weight_qmax(engine),
        "batch": batch,
        "memory_format": "channels_last",
    }


def _runtime(engine: str) -> str:
    runtime = quant.ENGINES[engine].runtime
    if runtime == "torch":  # its own version string names the build, too
        return f"torch {torch.__version__}"
    try:
        return f"{runtime} {importlib.metadata.version(runtime)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{runtime}, not installed"


def revision() -> str:
    """The program's git commit; "unknown" where it is no checkout."""
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def parts(arch: Architecture) -> dict[str, str]:
    """Signature of each part of a network: "stem", "blocks.0", .., "head"."""
    *sizes, head_size = arch.sizes()
    blocks = {f"blocks.{i}": signature(spec, size) for i, (spec, size) in enumerate(zip(arch.blocks, sizes))}
    return {"stem": signature(arch.stem, arch.input_size), **blocks, "head": signature(arch.head, head_size)}


def command(
    meta: Mapping,
    path: str | Path,
    space: str = "frostnet",
    width: float = 1.0,
    input_size: Iterable[int] | None = None,
    num_classes: Iterable[int] | None = None,
) -> str:
    """The command line that measures (what is missing of) a space into a table, at these input sizes and with these
    class counts.
    """
    words = ["python", "-m", "latency_lut", "--engine", meta["engine"], "--output", str(path)]
    optional = (
        ("--threads", meta["threads"], 1),
        ("--batch", meta.get("batch", 1), 1),
        ("--space", space, "frostnet"),
        ("--width", f"{width:g}", "1"),
    )
    for flag, value, default in optional:
        words += [flag, str(value)] if value != default else []
    for flag, values in (("--input-size", input_size), ("--num-classes", num_classes)):
        words += [flag, *map(str, values)] if values is not None else []
    return shlex.join(words)
