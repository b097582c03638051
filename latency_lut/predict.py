"""What a network takes by a latency table, block by block, without running it.

python -m latency_lut predict --lut fbgemm.json --arch frostnet_small_1_0 --input-size 224
"""

from collections.abc import Sequence
from dataclasses import dataclass

import frostnet
from latency_lut.identity import parts
from latency_lut.table import LatencyTable, Prediction
from nas import UserError, cost
from nas.cli import guard, option, parse


@dataclass(frozen=True)
class PredictConfig:
    """One call of the command line."""

    arch: str = option(help="network: a file, a run, or a published name")
    lut: str = option(help="latency table; it may be another machine's")
    input_size: int | None = option(None, "pixels (default: the network's own)")
    num_classes: int | None = option(None, "classes (default: the network's own)")


@guard
def command(words: Sequence[str]) -> Prediction:
    """Print the calibrated latency of every part of a network."""
    config = parse(PredictConfig, words[1:], "python -m latency_lut predict", __doc__.splitlines()[0])
    table, arch = LatencyTable.load(config.lut), frostnet.find(config.arch)
    arch = arch.for_input(config.input_size) if config.input_size is not None else arch
    arch = arch.with_classes(config.num_classes) if config.num_classes is not None else arch
    prediction = table.predict(arch)
    try:
        table.check(batch=table.meta["batch"])
    except UserError as error:
        print(f"note: this is not the machine of the table: {str(error).split(';')[0]}")
    macs = {row.name: row.macs for row in cost(arch).rows}
    print(f"{arch.name}: {arch.input_size} px, {arch.head.num_classes} classes, {table.meta['engine']}, batch {table.meta['batch']}")
    for name, key in parts(arch).items():
        ms = prediction.rows[name]
        print(f"{name:<10} {key:<46} {macs[name] / 1e6:9.2f} M {ms:9.4f} ms {ms / prediction.latency_ms:6.1%}")
    print(f"{'total':<57} {sum(macs.values()) / 1e6:9.2f} M {prediction.latency_ms:9.4f} ms")
    return prediction
