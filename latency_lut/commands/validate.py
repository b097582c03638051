"""How well does a table predict networks that it has not seen? Times fresh random ones on this CPU and compares.

    python -m latency_lut validate --lut fbgemm.json
    python -m latency_lut validate --lut fbgemm.json --networks 48 --fail-if "mape>4,spearman<0.97,within_10<95"

The result is kept in the table. The same command goes on where it was stopped.
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from common.checks import check_fields
from common.cli import option
from common.errors import UserError
from latency_lut.build import measure, sample_networks
from latency_lut.fitting import validated
from latency_lut.report import figures_text
from latency_lut.sections import Network, Section, Validated, parts
from latency_lut.table import LatencyTable
from nas import Architecture, SearchSpace, find_space

NETWORKS = 32
_BOUNDS = {"networks": (8, 1000), "seed": (0, 2**63 - 1)}
PERCENT = ("bias", "mape", "within_5", "within_10")  # figures that a gate states in percent; bias by its size
GATED = (*PERCENT, "rmse_ms", "spearman", "kendall")


@dataclass(frozen=True)
class ValidateConfig:
    """One call of the command line."""

    lut: str = option(help="latency table to validate")
    input_size: tuple[int, ...] | None = option(None, "pixels (default: every section of the table)")
    networks: int = option(NETWORKS, "fresh random networks to time, for each section")
    seed: int | None = option(None, "seed of these networks, another one than the table's own (default: that plus one)")
    fail_if: str = option(
        "",
        "exit with 1 where one of these holds, such as mape>4,spearman<0.97,within_10<95 (errors, shares: percent)",
    )
    restart: bool = option(False, "time again what was validated before")

    def __post_init__(self):
        check_fields(self, _BOUNDS)
        gates(self.fail_if)


class Gate(NamedTuple):
    """`figure` above (">") or below ("<") `bound` is a failure."""

    figure: str
    sign: str
    bound: float

    def fails(self, figures: dict) -> bool:
        value = self.value(figures)
        return value > self.bound if self.sign == ">" else value < self.bound

    def value(self, figures: dict) -> float:
        value = abs(figures["bias"]) if self.figure == "bias" else figures[self.figure]
        return 100 * value if self.figure in PERCENT else value

    def __str__(self) -> str:
        return f"{self.figure}{self.sign}{self.bound:g}"


def gates(text: str) -> list[Gate]:
    """The gates in a text like "mape>4,spearman<0.97". Raises UserError."""
    return [_gate(part) for part in re.split(r"[,\s]+", text.strip()) if part]


def _gate(text: str) -> Gate:
    found = re.fullmatch(r"(\w+)([<>])(-?\d+(?:\.\d+)?)", text)
    if not found or found[1] not in GATED:
        raise UserError(
            f"fail_if: {text!r}, must be FIGURE>NUMBER or FIGURE<NUMBER, with a figure of {', '.join(GATED)}"
        )
    return Gate(found[1], found[2], float(found[3]))


def _opened(config: ValidateConfig) -> tuple[LatencyTable, list[str]]:
    """The table, and the names of the sections to validate."""
    table = LatencyTable.load(config.lut)
    table.check(batch=table.meta["batch"])
    return table, _sections(table, config.input_size)


def start_over(config: ValidateConfig) -> None:
    """Drop what was validated before."""
    table, keys = _opened(config)
    for key in keys:
        table = table.with_section(replace(table.sections[key], validated=None))
    table.save()


def command(config: ValidateConfig) -> LatencyTable:
    """Validate the sections of a table; exits with 1 where a gate fails."""
    table, keys = _opened(config)
    failed = []
    for key in keys:
        table = validate(table, key, config.networks, config.seed)
        figures = table.sections[key].validated.figures
        print(figures_text(key, table.sections[key].validated))
        failed += [
            f"{key}: {gate}, it is {gate.value(figures):.4g}" for gate in gates(config.fail_if) if gate.fails(figures)
        ]
    if failed:
        print("failed: " + "; ".join(failed))
        raise SystemExit(1)
    return table


def validate(
    table: LatencyTable, key: str, networks: int = NETWORKS, seed: int | None = None, rounds: int | None = None
) -> LatencyTable:
    """`table`, saved, with the errors of its predictions for fresh networks in sections[key].validated.

    seed: of these networks (default: the section's plus one). Raises UserError where the section is not complete, or
    its space has changed.
    """
    section = table.sections[key]
    space = find_space(section.space)(section.width, section.input_size, section.num_classes)
    section = table.section(space)
    seed = section.seed + 1 if seed is None else seed
    if seed == section.seed:
        raise UserError(f"seed: {seed} is the table's own: its networks calibrated the predictions; give another")
    archs = fresh_networks(space, section, networks, seed)
    table = table.with_section(replace(section, validated=_begun(section, archs, seed)))
    if table.sections[key].validated.figures is None:
        table = measure(table, table.sections[key], {}, archs, rounds)
        table = table.with_section(validated(table, table.sections[key]))
        table.save()
    return table


def fresh_networks(space: SearchSpace, section: Section, count: int, seed: int) -> dict[str, Architecture]:
    """`count` random networks, none of which is among those of the section."""
    known = {network.parts for network in section.networks.values()}
    drawn = sample_networks(space, count + len(known), seed).values()
    archs = [arch for arch in drawn if tuple(parts(arch).values()) not in known]
    kept = [archs[round(i * (len(archs) - 1) / (count - 1))] for i in range(count)] if len(archs) >= count else []
    if not kept:
        raise UserError(
            f"networks: {count}, but the space {space.name!r} has only {len(archs)} that the table has not seen; ask "
            "for fewer"
        )
    return {f"fresh_{i:02}": arch.with_name(f"fresh_{i:02}") for i, arch in enumerate(kept)}


def _begun(section: Section, archs: dict[str, Architecture], seed: int) -> Validated:
    """What was validated or begun before with the same networks, else a new beginning."""
    networks = {name: Network(tuple(parts(arch).values()), None) for name, arch in archs.items()}
    old = section.validated
    same = old and {n: x.parts for n, x in old.networks.items()} == {n: x.parts for n, x in networks.items()}
    return old if same else Validated(seed, networks)


def _sections(table: LatencyTable, sizes: tuple[int, ...] | None) -> list[str]:
    """Names of the sections of the input sizes asked for."""
    found = [key for key, section in table.sections.items() if sizes is None or section.input_size in sizes]
    if not found or (sizes and {table.sections[key].input_size for key in found} != set(sizes)):
        fix = table.advice.again() if sizes is None else table.advice.add_sizes(sizes)
        held = ", ".join(table.sections) or "nothing"
        raise UserError(f"input_size: {table.path} holds {held}; measure what is missing first: {fix}")
    return found
