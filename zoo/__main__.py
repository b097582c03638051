"""python -m zoo graph: where quantizers go in a network, as a table and as pictures. python -m zoo list: the
networks. python -m zoo released: which network a checkpoint by FrostNet's authors holds.
"""

import argparse
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import frostnet
import quant
import zoo
from common.cli import guard
from common.errors import UserError
from common.files import write_bytes, write_json
from nas.cost import table as cost_table
from quant.attach.graph_pass import trace
from quant.attach.settings import load_settings
from zoo import detectors, generators, segmenters
from zoo.drawing import as_dot, as_json, graph_figure
from zoo.generators import discriminators
from zoo.released import load_released

COLUMNS = ("node", "op", "weight", "gradient", "reads", "makes", "reason")
LAYERS = ("conv", "linear", "deconv")
CLASSES, SIZE, PICTURE_SIZE = 1000, 224, 256  # defaults: classes; pixels, and those of a generator


@guard(errors=(quant.QuantError,))
def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if args.command == "list":
        print(_names())
    elif args.command == "released":
        print(cost_table(load_released(args.file).arch))
    else:
        _check(args)
        _fill_in(args)
        _graph(args)


def _names() -> str:
    """All networks, those of classification a line each."""
    usual, *others = generators.NORMS
    norms = f"each with {usual} norm, also with :{' and :'.join(others)}"
    return "\n".join(
        (
            *zoo.NAMES,
            *frostnet.PUBLISHED,
            f"detectors: {', '.join(detectors.NAMES)}",
            f"segmenters: {', '.join(segmenters.NAMES)}",
            f"generators: {', '.join(generators.NAMES)}; {norms}",
            f"discriminators: {', '.join(discriminators.NAMES)}; {norms}",
        )
    )


def _graph(args: argparse.Namespace) -> None:
    """Decide, print, and where a file is asked for attach and write it."""
    config = load_settings(args.settings) if args.settings else quant.QuantConfig()
    model = _network(args.model, args.classes, args.input_size).eval()
    images = torch.zeros(1, 3, args.input_size, args.input_size)
    rows = quant.plan(model, images, config)
    print(table(rows))
    print(counts(rows))
    if args.dry_run and not args.picture:
        return
    graph = quant.attach(model, images, config)
    if args.picture:
        _save(graph_figure(trace(model), graph, _title(args, config), args.start, args.nodes), args.picture)
    if args.dot:
        write_bytes(args.dot, as_dot(graph).encode())
    if args.json:
        about = {
            "model": args.model,
            "input_size": args.input_size,
            "classes": args.classes,
            "settings": asdict(config),
        }
        write_json(args.json, about | {"rows": [asdict(row) for row in rows]} | as_json(graph))


def _network(name: str, classes: int | None, input_size: int) -> nn.Module:
    if generators.knows(name):
        return generators.build(name)
    if detectors.knows(name):
        return detectors.build(name, classes, input_size)
    return segmenters.build(name, classes) if segmenters.knows(name) else zoo.build(name, classes, input_size)


def table(rows: Sequence[quant.PlanRow]) -> str:
    """One line a node, in columns; a dot where there is nothing."""
    cells = [COLUMNS, *((r.name, r.op, r.weight, r.gradient, r.reads, r.output, r.reason) for r in rows)]
    cells = [[cell or "." for cell in line[:-1]] + [line[-1]] for line in cells]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[-1]]).rstrip() for line in cells
    )


def counts(rows: Sequence[quant.PlanRow]) -> str:
    """How many quantizers of each sort, and how many of those on activations serve several layers."""
    weights = sum(bool(row.weight) for row in rows)
    activations = len({name for row in rows for name in row.makes.split(", ") if name})
    readers = Counter(name for row in rows if row.op in LAYERS for name in row.reads.split(", ") if name)
    shared = sum(number > 1 for number in readers.values())
    return (
        f"{weights} weight quantizers, {activations} activation quantizers, {shared} of them shared by several layers"
    )


def _title(args: argparse.Namespace, config: quant.QuantConfig) -> str:
    where = "everywhere" if config.op_types is None else "into " + ", ".join(config.op_types)
    return f"{args.model}, {args.input_size} px: weights {config.weight}, activations {config.activation} {where}"


def _save(figure: Figure, path: str) -> None:
    """Write a figure as PNG with a palette, a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    write_bytes(path, small.getvalue())


def _check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that contradict each other."""
    if args.dry_run and (args.dot or args.json):
        raise UserError(
            "--dry-run: nothing is attached, so there is no graph to write; leave out --dot and --json, or --dry-run"
        )
    if not args.picture and (args.start or args.nodes):
        raise UserError("--from, --nodes: they choose the part to picture; add --picture FILE.png")
    if args.picture and not args.picture.endswith(".png"):
        raise UserError(f"--picture: {args.picture!r}, must end in .png")


def _fill_in(args: argparse.Namespace) -> None:
    """Defaults, which depend on the network.

    Raises UserError for a generator that is given classes, or a size that it cannot take.
    """
    generator = generators.knows(args.model)
    if generator and args.classes is not None:
        raise UserError(
            f"--classes: {args.classes}, but {args.model} makes pictures and knows no classes; leave it out"
        )
    args.input_size = args.input_size or (PICTURE_SIZE if generator else SIZE)
    args.classes = args.classes or (None if generator else CLASSES)
    if generator:
        generators.check_size(args.model, args.input_size)


def _whole(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100_000:
        raise ValueError(text)
    return value


_whole.__name__ = "whole number"  # argparse names it in its error message


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m zoo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names that --model takes, beside files and runs")
    released = commands.add_parser("released", help="show rows and cost of the network in a checkpoint by its authors")
    released.add_argument("file", metavar="FILE")
    graph = commands.add_parser(
        "graph", help="attach quantizers by settings: a table of every node, pictures, DOT and JSON"
    )
    graph.add_argument("--model", required=True, help="a name from the list (no discriminator), an arch.json, or a run")
    graph.add_argument("--settings", help="JSON with the fields of quant.QuantConfig (default: int8 everywhere)")
    graph.add_argument("--input-size", type=_whole, help=f"pixels (default: {SIZE}, generators: {PICTURE_SIZE})")
    graph.add_argument("--classes", type=_whole, help=f"(default: {CLASSES}; generators have none)")
    graph.add_argument("--dry-run", action="store_true", help="decide and show, write no graph")
    graph.add_argument("--picture", metavar="PNG", help="draw the network before and after, side by side")
    graph.add_argument("--from", dest="start", metavar="NODE", help="picture from this node on (a name in the table)")
    graph.add_argument("--nodes", type=_whole, metavar="N", help="picture so many nodes of the float network only")
    graph.add_argument("--dot", metavar="FILE", help="write the attached graph in Graphviz's language")
    graph.add_argument("--json", metavar="FILE", help="write the attached graph and the table as JSON")
    return parser


if __name__ == "__main__":
    main()
