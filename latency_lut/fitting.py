"""Ratios and figures of a table's sections from its measurements; anew wherever a measurement that they rest on has
changed.
"""

from dataclasses import replace

from common.errors import UserError
from latency_lut.calibration import calibrate, judge
from latency_lut.identity import CALL
from latency_lut.sections import HIGHEST_RATIO, LOWEST_RATIO, Section
from latency_lut.table import LatencyTable


def calibrated(table: LatencyTable, section: Section) -> Section:
    """The section with ratio and errors from its networks."""
    networks = {name: (network.parts, network.timing.ms) for name, network in section.networks.items()}
    entries = {key: timing.ms for key, timing in table.entries.items()}
    ratio, fitted_on, validation = calibrate(entries, networks, entries[CALL])
    if not LOWEST_RATIO <= ratio <= HIGHEST_RATIO:
        raise UserError(
            f"{section.key}: whole networks take {ratio:.2f} times the sum of their blocks, which cannot be true; "
            "measure again with --restart while the machine is less busy"
        )
    return replace(section, ratio=ratio, fitted_on=tuple(fitted_on), validation=validation)


def judged(table: LatencyTable, section: Section) -> Section:
    """The section with the figures of its fresh networks."""
    networks = section.validated.networks.values()
    named = [dict(zip(map(str, range(len(n.parts))), n.parts)) for n in networks]
    predicted = [table.sum_up(section, names, "measure the table again").latency_ms for names in named]
    figures = judge(predicted, [network.timing.ms for network in networks])
    return replace(section, validated=replace(section.validated, figures=figures))


def refitted(table: LatencyTable, section: Section) -> Section:
    """A complete section with all that is computed from measurements computed anew."""
    section = calibrated(table, section)
    return judged(table, section) if section.validated and section.validated.figures else section


def refitted_since(table: LatencyTable, before: LatencyTable) -> LatencyTable:
    """`table` with every complete section refitted of which a part takes another time than `before`: spaces share
    parts.
    """
    changed = {
        key for key, timing in before.entries.items() if key in table.entries and table.entries[key].ms != timing.ms
    }
    for section in table.sections.values():
        if section.complete and changed & {CALL, *section.needed()}:
            table = table.with_section(refitted(table, section))
    return table
