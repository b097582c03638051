"""Show where quantizers go in a network, and what networks there are.

python -m zoo list                              # all names
python -m zoo graph --model resnet18            # a table of every node, images, DOT and JSON
python -m zoo released FILE                     # the network in a checkpoint by FrostNet's authors
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import frostnet
import quant
import zoo
from common.checks import check_int
from common.cli import guard, option, run_command
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
CLASSES, SIZE, GENERATOR_SIZE = 1000, 224, 256  # defaults: classes; pixels, and those of a generator


@dataclass(frozen=True)
class GraphConfig:
    """The arguments of `graph`."""

    model: str = option(help="a name from the list (no discriminator), an arch.json, or a run")
    settings: str | None = option(None, "JSON with the fields of quant.QuantConfig (default: int8 everywhere)")
    input_size: int | None = option(None, f"pixels (default: {SIZE}, generators: {GENERATOR_SIZE})")
    classes: int | None = option(None, f"(default: {CLASSES}; generators have none)")
    dry_run: bool = option(False, "decide and show, write no graph")
    picture: str | None = option(None, "PNG file: draw the network before and after, side by side")
    start: str | None = option(None, "draw from this node on (a name in the table)", flag="--from")
    nodes: int | None = option(None, "draw so many nodes of the float network only")
    dot: str | None = option(None, "file: write the attached graph in Graphviz's language")
    json: str | None = option(None, "file: write the attached graph and the table as JSON")

    def __post_init__(self):
        for field in ("input_size", "classes", "nodes"):
            if getattr(self, field) is not None:
                check_int(field, getattr(self, field), 1, 100_000)
        if self.dry_run and (self.dot or self.json):
            raise UserError(
                "--dry-run: nothing is attached, so there is no graph "
                "to write; leave out --dot and --json, or --dry-run"
            )
        if not self.picture and (self.start or self.nodes):
            raise UserError("--from, --nodes: they choose what to draw; add --picture FILE.png")
        if self.picture and not self.picture.endswith(".png"):
            raise UserError(f"--picture: {self.picture!r}, must end in .png")

    def with_defaults(self) -> "GraphConfig":
        """The same with the size and the number of classes that are usual for the network.

        Raises:
            UserError: For a generator that is given classes, or a size that it cannot take.
        """
        if not generators.knows(self.model):
            return replace(self, input_size=self.input_size or SIZE, classes=self.classes or CLASSES)
        if self.classes is not None:
            raise UserError(
                f"--classes: {self.classes}, but {self.model} makes images and has no classes; leave it out"
            )
        size = self.input_size or GENERATOR_SIZE
        generators.check_size(self.model, size)
        return replace(self, input_size=size)


@dataclass(frozen=True)
class ReleasedConfig:
    """The arguments of `released`."""

    file: str = option(help="a checkpoint by FrostNet's authors", positional=True)


def print_names() -> None:
    """All networks, those of classification a line each."""
    usual, *others = generators.NORMS
    norms = f"each with {usual} norm, also with :{' and :'.join(others)}"
    print(*zoo.NAMES, *frostnet.PUBLISHED, sep="\n")
    print(f"detectors: {', '.join(detectors.NAMES)}")
    print(f"segmenters: {', '.join(segmenters.NAMES)}")
    print(f"generators: {', '.join(generators.NAMES)}; {norms}")
    print(f"discriminators: {', '.join(discriminators.NAMES)}; {norms}")


def print_released(config: ReleasedConfig) -> None:
    print(cost_table(load_released(config.file).arch))


def graph(args: GraphConfig) -> None:
    """Decide and print where quantizers go; if a file is asked for, attach them and write it."""
    args = args.with_defaults()
    config = load_settings(args.settings) if args.settings else quant.QuantConfig()
    model = _network(args.model, args.classes, args.input_size).eval()
    images = torch.zeros(1, 3, args.input_size, args.input_size)
    rows = quant.plan(model, images, config)
    print(table(rows))
    print(counts(rows))
    if args.dry_run and not args.picture:
        return
    attached = quant.attach(model, images, config)
    if args.picture:
        _save(graph_figure(trace(model), attached, _title(args, config), args.start, args.nodes), args.picture)
    if args.dot:
        write_bytes(args.dot, as_dot(attached).encode())
    if args.json:
        about = {
            "model": args.model,
            "input_size": args.input_size,
            "classes": args.classes,
            "settings": asdict(config),
        }
        write_json(args.json, about | {"rows": [asdict(row) for row in rows]} | as_json(attached))


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


def _title(args: GraphConfig, config: quant.QuantConfig) -> str:
    where = "everywhere" if config.op_types is None else "into " + ", ".join(config.op_types)
    return f"{args.model}, {args.input_size} px: weights {config.weight}, activations {config.activation} {where}"


def _save(figure: Figure, path: str) -> None:
    """Write a figure as PNG with a palette, a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    write_bytes(path, small.getvalue())


COMMANDS = {
    "list": ("names that --model takes, beside files and runs", print_names),
    "released": ("rows and cost of the network in a checkpoint by FrostNet's authors", print_released),
    "graph": ("attach quantizers by settings: a table of every node, images, DOT and JSON", graph),
}


@guard(errors=(quant.QuantError,))
def main(argv: Sequence[str] | None = None) -> None:
    run_command(COMMANDS, argv, "python -m zoo", __doc__)


if __name__ == "__main__":
    main()
