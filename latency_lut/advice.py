"""The commands that measure what a table holds once more, or further sizes of its spaces: what refusals advise."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from latency_lut.identity import command
from latency_lut.sections import Section


def heads(section: Section, keys: Iterable[str]) -> dict[str, int]:
    """Class counts of those of `keys` that are heads of a section's space, by key."""
    own = next((network.parts[-1] for network in section.networks.values()), "")
    before, after = own.rpartition("-")[0] + "-", "@" + own.rpartition("@")[2]
    alike = {
        key: key.removeprefix(before).removesuffix(after)
        for key in keys
        if key.startswith(before) and key.endswith(after)
    }
    return {key: int(count) for key, count in alike.items() if count.isdecimal()}


def to_measure(meta: Mapping, path: Path, sections: Iterable[Section], keys: Iterable[str]) -> list[str]:
    """Commands that measure the same sections into the table at `path`: one for each space, width and choice of class
    counts.

    keys: of the entries, which tell the class counts of further heads.
    """
    groups: dict[tuple, list[int]] = {}
    for section in sections:
        counts = dict.fromkeys((section.num_classes, *sorted(heads(section, keys).values())))
        groups.setdefault((section.space, section.width, tuple(counts)), []).append(section.input_size)
    return [command(meta, path, space, width, sizes, counts) for (space, width, counts), sizes in groups.items()] or [
        command(meta, path)
    ]


def to_add(meta: Mapping, path: Path, sections: Iterable[Section], sizes: Iterable[int]) -> list[str]:
    """Commands that add input sizes to every space and width of the sections, with their class count where they share
    one.
    """
    groups: dict[tuple, list[Section]] = {}
    for section in sections:
        groups.setdefault((section.space, section.width), []).append(section)
    if not groups:
        return [command(meta, path, input_size=sizes)]
    found = []
    for (space, width), group in groups.items():
        counts, missing = (
            {s.num_classes for s in group},
            [size for size in sizes if size not in {s.input_size for s in group}],
        )
        if missing:
            found.append(command(meta, path, space, width, missing, counts if len(counts) == 1 else None))
    return found
