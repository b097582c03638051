"""Measure what every block of a search space takes as INT8 on this CPU, and how well their sums predict networks.

    python -m latency_lut --engine fbgemm --output fbgemm.json
    python -m latency_lut --engine fbgemm --output fbgemm.json --input-size 96      # adds a size to the same file
    python -m latency_lut validate --lut fbgemm.json                                # predictions against fresh networks
    python -m latency_lut show --lut fbgemm.json --picture fbgemm.png
    python -m latency_lut predict --lut fbgemm.json --arch frostnet_small_1_0       # block by block
    python -m latency_lut merge --lut a.json b.json --output c.json                 # of the same machine
    python -m latency_lut diff --lut laptop.json server.json                        # of unlike machines
    python -m latency_lut bench --arch frostnet_small_1_0 mobilenet_v2              # times whole networks; see bench
    --help

The first may also be written `python -m latency_lut build ..`. Each command has --help; docs/new_cpu.md is a guide.

Stop it at any time: the same command goes on where it was.
"""

import importlib
import sys
from collections.abc import Sequence

from latency_lut.commands import COMMANDS


def main(argv: Sequence[str] | None = None):
    """Run the command that the first word names, else `build`; returns what its `command` returns."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words and words[0] in COMMANDS else "build"
    # imported when it is needed: the zoo and pandas take seconds
    return importlib.import_module(f"latency_lut.commands.{name}").command(words)


def cli() -> None:
    """The console script: what `main` returns is no exit code."""
    main()


if __name__ == "__main__":
    main()
