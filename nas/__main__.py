"""Show an architecture, or write the report of a run.

python -m nas show ARCH      # its rows and cost, drawn
python -m nas report RUN     # writes report.html into the run's folder
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from common.cli import guard, option, run_command
from common.errors import UserError
from nas.arch import Architecture, find_file
from nas.cost import table
from nas.report.architecture import architecture_figure, text_drawing
from nas.report.page import write_report
from nas.report.style import save


@dataclass(frozen=True)
class ShowConfig:
    """The arguments of `show`."""

    arch: str = option(help="an arch.json, a run's folder or name, or a shipped name", positional=True)
    input_size: int | None = option(None, "pixels, if another size than the file's is meant")
    picture: str | None = option(None, "also draw it into this PNG or SVG file")


@dataclass(frozen=True)
class ReportConfig:
    """The arguments of `report`."""

    run: str = option(help="the run's folder", positional=True)


def show(config: ShowConfig) -> None:
    file = find_file(config.arch)
    if file is None:
        raise UserError(
            f"arch: {config.arch!r} is no file and no run; for a published network: python frostnet.py {config.arch}"
        )
    arch = Architecture.load(file)
    arch = arch.for_input(config.input_size) if config.input_size else arch
    if config.picture:
        save(architecture_figure(arch), config.picture)
    print(table(arch))
    print(f"\n{text_drawing(arch, unicode=_prints_unicode())}")


def report(config: ReportConfig) -> None:
    print(write_report(config.run))


COMMANDS = {
    "show": ("rows and cost of an architecture, drawn by multiply-accumulates", show),
    "report": ("write report.html of a run", report),
}


@guard
def main(argv: Sequence[str] | None = None) -> None:
    run_command(COMMANDS, argv, "python -m nas", __doc__)


def _prints_unicode() -> bool:
    try:
        "█×→".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    main()
