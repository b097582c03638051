"""Latency tables: what every block of a search space takes as INT8 on this CPU; sums over blocks predict networks.
Without a command, the flags are those of `build`, such as --engine fbgemm --output fbgemm.json (`build --help`).

    python -m latency_lut --engine fbgemm --output fbgemm.json
    python -m latency_lut --engine fbgemm --output fbgemm.json --input-size 96      # adds a size to the same file
    python -m latency_lut validate --lut fbgemm.json                                # predictions against fresh networks
    python -m latency_lut show --lut fbgemm.json --picture fbgemm.png
    python -m latency_lut predict --lut fbgemm.json --arch frostnet_small_1_0       # block by block
    python -m latency_lut merge --lut a.json b.json --output c.json                 # of the same machine
    python -m latency_lut diff --lut laptop.json server.json                        # of unlike machines
    python -m latency_lut bench --arch frostnet_small_1_0 mobilenet_v2              # times whole networks

Each command has --help; docs/new_cpu.md is a guide. Stop a command at any time: the same command goes on where it was.
"""

import sys
from collections.abc import Sequence
from typing import Any

import quant
from common.cli import guard, run_command
from latency_lut.commands import COMMANDS, RESTARTS

PROGRAM = "python -m latency_lut"


def main(argv: Sequence[str] | None = None) -> Any:
    """Run a command, `build` if the first argument is a flag; returns what the command returns."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "build")
    if "--restart" in words:
        _start_over(words)
    return _run([word for word in words if word != "--restart"])  # so that resuming does not start over again


@guard(errors=(quant.QuantError,))
def _start_over(words: Sequence[str]) -> None:
    run_command(COMMANDS | RESTARTS, words, PROGRAM, __doc__)  # the others refuse the flag


@guard(errors=(quant.QuantError,))
def _run(words: Sequence[str]) -> Any:
    return run_command(COMMANDS, words, PROGRAM, __doc__)


def cli() -> None:
    """The console script: what `main` returns is no exit code."""
    main()


if __name__ == "__main__":
    main()
