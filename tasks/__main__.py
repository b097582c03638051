"""Write what a finished run of retrain.py trained as a file to ship.

python -m tasks export --run runs/mine_int8 --format onnx
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import quant
from common.cli import guard, option, run_command
from common.errors import UserError
from common.files import read_json
from tasks import parts
from tasks.kinds import KINDS, Choices, Request
from tasks.ship import (
    Checked,
    check_writable,
    compare,
    doubts,
    onnx_words,
    parity_words,
    part_path,
    save_frozen,
    save_onnx,
)
from tasks.trained import Trained, load

PICTURES = 256  # on which the network is checked


@dataclass(frozen=True)
class ExportConfig:
    """The arguments of `export`."""

    run: str = option(help="the run's folder")
    format: Literal[tuple(quant.FORMATS)] = option(help="onnx, or an engine: for torch's own a frozen module")
    output: str | None = option(None, "the file (default: in the run's folder)")
    data_root: str | None = option(
        None, "folder of the images to check it on (default: the one that the run was trained on)"
    )


def export_run(config: ExportConfig) -> None:
    """Load a finished run and export its network."""
    trained, output = load(config.run), Path(config.output or default_output(config.run, config.format))
    check_writable(output)  # before the minutes that decoding and converting may take
    export(trained, config.format, output, find_pictures(config.run, trained, config.data_root))


def default_output(run: str, format: str) -> Path:
    return Path(run) / quant.FORMATS[format].file_name


def find_pictures(run: str, trained: Trained, data_root: str | None) -> Checked:
    """Pictures of the training data to check the network on, or noise where they are not to be had; says which."""
    config, kind = read_json(Path(run) / "config.json"), KINDS[trained.task]
    root = data_root or config.get("data_root")
    try:
        bad = "skip" if config.get("bad_data") == "skip" else "refuse"
        wanted = Request(
            config.get("data"),
            root if isinstance(root, str) else None,
            trained.input_size,
            0,
            PICTURES,
            bad_data=bad,
            direction=config.get("direction", "a_to_b"),
        )
        pictures = kind.training(wanted)
        print(f"checked on {len(pictures)} pictures of {config['data']}")
    except UserError as error:
        pictures = kind.noise(trained.input_size, PICTURES)
        print(f"checked on {PICTURES} random pictures, because: {error}")
    pictures = replace(pictures, mean=torch.tensor(trained.mean), std=torch.tensor(trained.std))
    return Checked(kind, kind.task(trained.name, trained.input_size, trained.classes, None, Choices()), pictures)


def export(trained: Trained, format: str, output: Path, checked: Checked) -> None:
    """Convert, check, write and say what came out.

    Raises UserError where the integer network does not compute what was trained.
    """
    engine = quant.FORMATS[format].engine
    if quant.weight_qmax(engine) < trained.weight_qmax:
        raise UserError(
            f"format: {engine} takes weights up to {quant.weight_qmax(engine)} on this CPU, {trained.name} was trained "
            f"for {trained.config.engine} with weights up to {trained.weight_qmax}; retrain with --engine {engine}"
        )
    converted = parts.convert(trained.graph, engine)
    found = compare(trained.graph, converted, checked)
    if found["refused"]:
        raise UserError(f"{found['refused']}; {output} is not written")
    print(f"parity on {engine}: {parity_words(found, parts.float_ops(converted), checked.kind.likeness)}")
    file = {}
    if quant.ENGINES[engine].session:
        file = save_onnx(trained, output, checked)
        print(onnx_words(file, checked.kind.likeness))
    else:
        frozen = parts.freeze(converted, torch.zeros(1, 3, trained.input_size, trained.input_size))
        for name, part in frozen.parts.items():
            save_frozen(part, part_path(output, name))
    for words in doubts({"parity": found, "onnx": file}, likeness=checked.kind.likeness):
        print(f"warning: {words}")
    for name in parts.parts_of(trained.graph):
        path = part_path(output, name)
        print(f"{path}: {path.stat().st_size:,} bytes")


COMMANDS = {"export": ("the INT8 network of a finished run as a file to ship", export_run)}


@guard(errors=(quant.QuantError,))
def main(argv: Sequence[str] | None = None) -> None:
    run_command(COMMANDS, argv, "python -m tasks", __doc__)


if __name__ == "__main__":
    main()
