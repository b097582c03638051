"""Compare two latency tables, of this or of other machines: speed, ranking, and the parts that differ most.

python -m latency_lut diff --lut laptop.json server.json
"""

import math
from dataclasses import dataclass

import numpy as np

from common.checks import check_fields
from common.cli import option
from common.errors import UserError
from latency_lut.fitting import spearman
from latency_lut.machine import FINGERPRINT, shown
from latency_lut.sections import CALL
from latency_lut.table import LatencyTable

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class DiffConfig:
    """One call of the command line."""

    lut: tuple[str, ...] = option(help="two latency tables")
    top: int = option(8, "parts to list at each end")

    def __post_init__(self):
        if len(self.lut) != 2:
            raise UserError(f"lut: {len(self.lut)} tables, must be two")
        check_fields(self, {"top": (0, math.inf)})


@dataclass(frozen=True)
class Difference:
    """`ratios`: milliseconds of the second table by those of the first, by part, ascending."""

    ratios: dict[str, float]
    only_first: int
    only_second: int
    spearman: float

    def quantile(self, share: float) -> float:
        return float(np.quantile(list(self.ratios.values()), share))


def command(config: DiffConfig) -> Difference:
    """Print how two tables differ."""
    first, second = (LatencyTable.load(path) for path in config.lut)
    difference = diff(first, second)
    print(text(first, second, difference, config.top))
    return difference


def diff(first: LatencyTable, second: LatencyTable) -> Difference:
    """Raises UserError where the tables have no part in common."""
    keys = first.entries.keys() & second.entries.keys() - {CALL}
    if not keys:
        raise UserError(
            f"lut: {first.path} and {second.path} have no part in common; measure the same space, width and size for "
            "both"
        )
    ratios = {key: second.entries[key].ms / first.entries[key].ms for key in keys}
    ranks = spearman([first.entries[key].ms for key in sorted(keys)], [second.entries[key].ms for key in sorted(keys)])
    return Difference(
        dict(sorted(ratios.items(), key=lambda item: item[1])),
        len(first.entries.keys() - keys - {CALL}),
        len(second.entries.keys() - keys - {CALL}),
        ranks,
    )


def text(first: LatencyTable, second: LatencyTable, difference: Difference, top: int) -> str:
    lines = [f"A: {first.path}\nB: {second.path}"]
    lines += [
        f"{field}: {shown(first.meta[field])} / {shown(second.meta[field])}"
        for field in FINGERPRINT
        if first.meta[field] != second.meta[field]
    ]
    lines.append(
        f"{len(difference.ratios)} parts in both; {difference.only_first} only in A, {difference.only_second} only in B"
    )
    lines.append(
        "B takes, as a multiple of A: " + ", ".join(f"{q:.0%} {difference.quantile(q):.3f}" for q in QUANTILES)
    )
    lines.append(f"Spearman over the parts: {difference.spearman:.3f}")
    rows = list(difference.ratios.items())
    if top:
        lines += ["B's best parts, against A:", *_rows(rows[:top], first, second)]
        lines += ["B's worst parts, against A:", *_rows(rows[: -top - 1 : -1], first, second)]
    return "\n".join(lines)


def _rows(rows: list[tuple[str, float]], first: LatencyTable, second: LatencyTable) -> list[str]:
    return [
        f"  {ratio:6.3f}  {key:<44} {first.entries[key].ms:9.4f} {second.entries[key].ms:9.4f} ms"
        for key, ratio in rows
    ]
