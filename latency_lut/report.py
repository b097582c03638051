"""A latency table in words: what was measured, how well it predicts networks, what looks odd."""

import itertools
from dataclasses import replace

from latency_lut.sections import Section, Validated
from latency_lut.table import LatencyTable
from nas import SearchSpace, signature

ODD = 0.97  # a heavier block that takes less than this share of a lighter one's time is worth a remark

_COLUMNS = "{:<18} {:>5} {:>8} {:>8} {:>6} {:>7} {:>6} {:>9} {:>6} {:>6} {:>8} {:>8} {:>6} {:>6}"
_HEADINGS = (
    "section",
    "parts",
    "unstable",
    "networks",
    "ratio",
    "bias",
    "MAPE",
    "RMSE ms",
    "<=5%",
    "<=10%",
    "Spearman",
    "Kendall",
    "load",
    "steal",
)


def table_text(table: LatencyTable) -> str:
    """One line a section; errors are those of the networks that the ratio was not fitted on."""
    meta = table.meta
    threads = f"{meta['threads']} thread" + "s" * (meta["threads"] > 1)
    lines = [
        f"{table.path}: {meta['engine']}, {threads}, batch {meta['batch']}, {meta['cpu']}, {meta['runtime']}",
        _COLUMNS.format(*_HEADINGS),
    ]
    return "\n".join([*lines, *(_COLUMNS.format(*_row(table, s)) for s in table.sections.values())])


def figures_text(key: str, validated: Validated) -> str:
    """How well fresh networks were predicted, in one line."""
    v, seen = validated.figures, [c for c in validated.conditions if c["load"] is not None]
    if v is None:
        return f"{key}: its validation was interrupted"
    load = f", load {max(c['load'] for c in seen):.1f}" if seen else ""
    unstable = sum(not network.timing.stable for network in validated.networks.values())
    return (
        f"{key}: {v['networks']} fresh networks (seed {validated.seed}): bias {v['bias']:+.1%}, MAPE {v['mape']:.1%}, "
        f"RMSE {v['rmse_ms']:.3f} ms, within 5 % {v['within_5']:.0%}, within 10 % {v['within_10']:.0%}, "
        f"Spearman {v['spearman']:.3f}, Kendall {v['kendall']:.3f}; {unstable} of them unstable{load}"
    )


def _row(table: LatencyTable, section: Section) -> list[str]:
    timings = [table.entries[key] for key in section.needed() if key in table.entries]
    row = [section.key, str(len(timings)), str(sum(not t.stable for t in timings)), str(len(section.networks))]
    if not section.complete:
        return [*row, *["-"] * (len(_HEADINGS) - len(row))]
    v = section.validation
    row += [f"{section.ratio:.3f}", f"{v['bias']:+.1%}", f"{v['mape']:.1%}", f"{v['rmse_ms']:.3f}"]
    row += [f"{v['within_5']:.0%}", f"{v['within_10']:.0%}", f"{v['spearman']:.3f}", f"{v['kendall']:.3f}"]
    return [*row, _worst(section, "load", "{:.1f}"), _worst(section, "steal", "{:.1%}")]


def _worst(section: Section, field: str, form: str) -> str:
    """The highest load or steal seen while the section was measured."""
    seen = [c[field] for c in section.conditions if c[field] is not None]
    return form.format(max(seen)) if seen else "-"


def odd_pairs(table: LatencyTable, space: SearchSpace) -> list[str]:
    """Blocks that were measured faster than a sibling with less of one thing (kernel, expansion) and all else equal.

    Not an error, kernels have their favourite shapes; but on a busy machine it may be noise.
    """
    remarks = {}
    for stage, sizes in zip(space.stages, space.sizes):
        for slot, size in zip(stage.slots, sizes):
            for light, heavy in itertools.permutations(slot.candidates, 2):
                keys = [signature(spec, size) for spec in (light, heavy)]
                if _heavier(light, heavy) and all(key in table.entries for key in keys):
                    ms = [table.entries[key].ms for key in keys]
                    if ms[1] < ODD * ms[0]:
                        remarks[keys[1]] = f"{keys[1]} takes {ms[1]:.4f} ms, less than {keys[0]} with {ms[0]:.4f} ms"
    return list(remarks.values())


def _heavier(light, heavy) -> bool:
    """Whether two blocks differ in kernel size or expansion alone, the second having more of it."""
    if replace(light, kernel_size=heavy.kernel_size, expand_ratio=heavy.expand_ratio) != heavy:
        return False
    more = (heavy.kernel_size - light.kernel_size, heavy.expand_ratio - light.expand_ratio)
    return min(more) == 0 < max(more)
