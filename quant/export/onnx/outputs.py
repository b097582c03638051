"""Names of a model's outputs by their places in what the network gives.

A single output is "output". Of several, the second one is "output_1", and the first part of that "output_1_0".
"""

import re

from quant.integer.graph import Ref


def output_paths(output: Ref | tuple, path: str = "") -> list[tuple[str, Ref]]:
    """Every output with its place.

    "" where it is the only one, "_1" for the second one, "_1_0" for the first part of that.
    """
    if isinstance(output, Ref):
        return [(path, output)]
    return [found for i, part in enumerate(output) for found in output_paths(part, f"{path}_{i}")]


def structure(names: list[str]) -> int | tuple:
    """What a model gives, by the names of its outputs: the number of one, or (nested) tuples of such.

    Of foreign names, a flat tuple.
    """
    found = [re.fullmatch(r"output((?:_[0-9]{1,3}){0,5})_*", name) for name in names]
    places = {tuple(int(i) for i in match[1].split("_")[1:]): number for number, match in enumerate(found) if match}
    nested = _nested(places) if len(places) == len(names) else None
    if nested is not None:
        return nested
    return tuple(range(len(names))) if len(names) > 1 else 0


def _nested(places: dict[tuple[int, ...], int]) -> int | tuple | None:
    """Numbers by place as (nested) tuples; None where places are missing, or in each other's way."""
    if () in places:
        return places[()] if len(places) == 1 else None
    groups = [
        {place[1:]: n for place, n in places.items() if place[0] == first}
        for first in range(1 + max(p[0] for p in places))
    ]
    parts = [_nested(group) if group else None for group in groups]
    return None if None in parts else tuple(parts)
