"""python -m nas show ARCH: rows and cost of an architecture, drawn. python -m nas report RUN: write the run's page
anew.
"""

import argparse
import sys
from collections.abc import Sequence

from common.cli import guard
from common.errors import UserError
from nas.arch import Architecture, find_file
from nas.cost import table
from nas.report.architecture import architecture_figure, text_drawing
from nas.report.page import write_report
from nas.report.style import save


@guard
def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if args.command == "report":
        print(write_report(args.run))
        return
    file = find_file(args.arch)
    if file is None:
        raise UserError(
            f"arch: {args.arch!r} is no file and no run; for a published network: python frostnet.py {args.arch}"
        )
    arch = Architecture.load(file)
    arch = arch.for_input(args.input_size) if args.input_size else arch
    if args.picture:
        save(architecture_figure(arch), args.picture)
    print(table(arch))
    print(f"\n{text_drawing(arch, unicode=_prints_unicode())}")


def _prints_unicode() -> bool:
    try:
        "█×→".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m nas", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="rows and cost of an architecture, drawn by multiply-accumulates")
    show.add_argument("arch", help="an arch.json, a run's folder or name, or a shipped name")
    show.add_argument("--input-size", type=int, help="pixels, where another size than the file's is meant")
    show.add_argument("--picture", help="also draw it into this PNG or SVG file")
    report = commands.add_parser("report", help="write report.html of a run")
    report.add_argument("run", help="the run's folder")
    return parser


if __name__ == "__main__":
    main()
