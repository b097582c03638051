"""From sums of parts to networks: one ratio per section, fitted on a third of its networks, and how well it predicts
the others; computed anew wherever a measurement under it has changed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from common.errors import UserError
from latency_lut.sections import CALL, HIGHEST_RATIO, LOWEST_RATIO, Section
from latency_lut.table import LatencyTable

FIT_EVERY = 3  # one network of three fits the ratio, the other two show its errors


def split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names to fit on, names held out): every third one, from the second on, so that both span the same range."""
    fit = list(names[1::FIT_EVERY])
    return fit, [name for name in names if name not in fit]


def fit_ratio(sums: Sequence[float], measured: Sequence[float]) -> float:
    """The ratio r that minimises sum_i |log(r sums_i / measured_i)|: the median of measured / sums, between two in the
    geometric middle.

    A median, since a network that never met a quiet moment is too slow by any amount.

    >>> round(fit_ratio([1.0, 2.0, 1.0], [2.0, 4.0, 9.0]), 9)
    2.0
    """
    return math.exp(float(np.median(np.log(measured) - np.log(sums))))


def prediction_errors(predicted: Sequence[float], measured: Sequence[float]) -> dict:
    """How well predictions agree with measurements, as fractions (0.05 is 5 %) and milliseconds.

    `bias` and `mape` are the mean and the mean absolute relative error, `rmse_ms` the root mean square error,
    `within_5` and `within_10` the share of networks predicted to 5 and 10 %; `spearman` and `kendall` compare ranks.
    """
    p, m = np.asarray(predicted, float), np.asarray(measured, float)
    error = p / m - 1
    return {
        "networks": len(m),
        "bias": float(error.mean()),
        "mape": float(abs(error).mean()),
        "rmse_ms": float(np.sqrt(((p - m) ** 2).mean())),
        "within_5": float((abs(error) <= 0.05).mean()),
        "within_10": float((abs(error) <= 0.10).mean()),
        "spearman": spearman(p, m),
        "kendall": kendall(p, m),
    }


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, ties sharing their mean rank. 0 where one side is constant.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    a, b = ranks(x) - ranks(x).mean(), ranks(y) - ranks(y).mean()
    norm = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's tau-b: agreeing minus disagreeing pairs, by pairs that are no ties. 0 where one side is constant.

    >>> kendall([1, 2, 3], [1, 3, 2])  # two pairs agree, one does not
    0.3333333333333333
    """
    a, b = (np.sign(np.subtract.outer(np.asarray(v), np.asarray(v))) for v in (x, y))
    norm = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def ranks(x: Sequence[float]) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean rank.

    >>> ranks([5, 7, 5]).tolist()
    [0.5, 2.0, 0.5]
    """
    x = np.asarray(x)
    return (x[:, None] > x[None]).sum(1) + ((x[:, None] == x[None]).sum(1) - 1) / 2


def calibrate(
    entries: Mapping[str, float], networks: Mapping[str, tuple[Sequence[str], float]], call: float = 0.0
) -> tuple[float, list[str], dict]:
    """(ratio, names it was fitted on, `prediction_errors` of the others) from networks' (parts, measured milliseconds).

    entries: milliseconds by part, each with a `call` of which a network pays one. Networks are taken in the order
    given.
    """
    sums = {
        name: sum(entries[part] for part in parts) - (len(parts) - 1) * call for name, (parts, _) in networks.items()
    }
    fit, held_out = split(list(networks))
    ratio = fit_ratio([sums[n] for n in fit], [networks[n][1] for n in fit])
    return ratio, fit, prediction_errors([ratio * sums[n] for n in held_out], [networks[n][1] for n in held_out])


# ---- of a table -------------------------------------------------------------------------------------------


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


def validated(table: LatencyTable, section: Section) -> Section:
    """The section with the prediction errors of its fresh networks."""
    networks = section.validated.networks.values()
    named = [dict(zip(map(str, range(len(n.parts))), n.parts)) for n in networks]
    predicted = [table.sum_up(section, names, "measure the table again").latency_ms for names in named]
    figures = prediction_errors(predicted, [network.timing.ms for network in networks])
    return replace(section, validated=replace(section.validated, figures=figures))


def refitted(table: LatencyTable, section: Section) -> Section:
    """A complete section with all that is computed from measurements computed anew."""
    section = calibrated(table, section)
    return validated(table, section) if section.validated and section.validated.figures else section


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
