"""What a network takes by a latency table, block by block, without running it.

python -m latency_lut predict --lut fbgemm.json --arch frostnet_small_1_0 --input-size 32
"""

from dataclasses import dataclass

import frostnet
from common.cli import option
from common.errors import UserError
from latency_lut.sections import Section, parts
from latency_lut.table import LatencyTable, Prediction
from nas import Architecture, cost


@dataclass(frozen=True)
class PredictConfig:
    """One call of the command line."""

    arch: str = option(help="network: a file, a run, or a published name")
    lut: str = option(help="latency table; it may be another machine's")
    input_size: int | None = option(None, "pixels (default: the network's own)")
    num_classes: int | None = option(
        None, "classes (default: the network's own; of a published name those of the table's section)"
    )
    space: str | None = option(
        None, "take the ratio of the section of this space (default: the first that holds the network)"
    )
    width: float | None = option(None, "take the ratio of the section of this width")


def command(config: PredictConfig) -> Prediction:
    """Print the calibrated latency of every part of a network."""
    table, arch = LatencyTable.load(config.lut), frostnet.find(config.arch)
    arch = arch.for_input(config.input_size) if config.input_size is not None else arch
    arch = arch.with_classes(config.num_classes) if config.num_classes is not None else arch
    section, *others = _sections(table, arch, config)
    if config.num_classes is None and frostnet.find_file(config.arch) is None:
        arch = arch.with_classes(section.num_classes)  # a published name says nothing about classes
    prediction = table.predict_by(section, arch)
    try:
        table.check(batch=table.meta["batch"])
    except UserError as error:
        print(f"note: this is not the machine of the table: {str(error).split(';')[0]}")
    macs = {row.name: row.macs for row in cost(arch).rows}
    made = f"{table.meta['engine']}, batch {table.meta['batch']}, section {section.key}"
    print(f"{arch.name}: {arch.input_size} px, {arch.head.num_classes} classes, {made}")
    if others:
        ratios = ", ".join(f"{s.key} {s.ratio:.3f}" for s in (section, *others))
        print(f"note: several sections hold its blocks, each with its ratio ({ratios}); --space and --width choose one")
    for name, key in parts(arch).items():
        ms = prediction.rows[name]
        print(f"{name:<10} {key:<46} {macs[name] / 1e6:9.2f} M {ms:9.4f} ms {ms / prediction.latency_ms:6.1%}")
    print(f"{'total':<57} {sum(macs.values()) / 1e6:9.2f} M {prediction.latency_ms:9.4f} ms")
    return prediction


def _sections(table: LatencyTable, arch: Architecture, config: PredictConfig) -> list[Section]:
    """The sections that hold a network, of the space and width that were asked for."""
    holding = table.holding(arch)
    found = [s for s in holding if config.space in (None, s.space) and config.width in (None, s.width)]
    if not found:
        asked = ", ".join(
            f"{name} {value}" for name, value in (("space", config.space), ("width", config.width)) if value is not None
        )
        raise UserError(
            f"{asked}: {arch.name} is in none of it in {table.path}; its blocks are in "
            f"{', '.join(s.key for s in holding)}"
        )
    return found
