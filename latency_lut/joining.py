"""Sections of the same space, measured apart, as one: networks that several timed keep the rounds of all, the others
stand side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from latency_lut.sections import Network, Section, Validated
from latency_lut.timing import Timing

Rounds = tuple[float, ...]


def joined_rounds(several: Sequence[Rounds]) -> Rounds:
    """All rounds one after another, without those that are a run within others: a copied measurement counts once.

    >>> joined_rounds([(1.0, 2.0), (3.0,), (1.0, 2.0, 4.0)])
    (3.0, 1.0, 2.0, 4.0)
    """
    kept: list[Rounds] = []
    for rounds in several:
        if not any(_within(rounds, other) for other in kept):
            kept = [*(other for other in kept if not _within(other, rounds)), rounds]
    return sum(kept, ())


def _within(few: Rounds, many: Rounds) -> bool:
    return any(many[i : i + len(few)] == few for i in range(len(many) - len(few) + 1))


def joined_sections(sections: Sequence[Section], ms: Mapping[str, float]) -> Section:
    """One section of several, which does not depend on their order but in its rounds; its ratio is still to be fitted
    anew.

    ms: of every part. A section that was interrupted adds rounds to the networks of the others, but no networks of its
    own.
    """
    base = max(sections, key=lambda s: (s.complete, _visits(s.networks)))
    networks = _networks(
        "random", [s.networks for s in sections if s.complete] or [base.networks], [s.networks for s in sections], ms
    )
    known = {network.parts for network in networks.values()}
    conditions = tuple(seen for section in sections for seen in section.conditions)
    validated = _validated([s.validated for s in sections if s.validated], known, ms)
    return replace(base, networks=networks, conditions=conditions, validated=validated)


def _validated(several: Sequence[Validated], known: set[tuple[str, ...]], ms: Mapping[str, float]) -> Validated | None:
    """Fresh networks of all, none of which calibrates the joined section."""
    if not several:
        return None
    base = max(several, key=lambda v: (v.figures is not None, _visits(v.networks)))
    networks = _networks(
        "fresh", [v.networks for v in several if v.figures] or [base.networks], [v.networks for v in several], ms
    )
    fresh = {name: network for name, network in networks.items() if network.parts not in known}
    return (
        replace(base, networks=fresh, conditions=tuple(seen for v in several for seen in v.conditions))
        if fresh
        else None
    )


def _visits(networks: Mapping[str, Network]) -> int:
    return sum(len(network.timing.rounds) for network in networks.values() if network.timing)


def _networks(
    kind: str, chosen: Sequence[Mapping[str, Network]], timed: Sequence[Mapping[str, Network]], ms: Mapping[str, float]
) -> dict[str, Network]:
    """The networks of all in `chosen`, each with its rounds in all of `timed`.

    Where they are the same they keep names and order; else they are named anew from the quickest by its parts to the
    slowest, so that those which calibrate span the range.
    """
    rounds: dict[tuple[str, ...], list[Rounds]] = {}
    for network in (network for networks in timed for network in networks.values() if network.timing):
        rounds.setdefault(network.parts, []).append(network.timing.rounds)

    def whole(parts: tuple[str, ...]) -> Network:
        return Network(parts, Timing(joined_rounds(rounds[parts])) if parts in rounds else None)

    first, *others = [{name: network.parts for name, network in networks.items()} for networks in chosen]
    if all(list(other.items()) == list(first.items()) for other in others):
        return {name: whole(parts) for name, parts in first.items()}
    every = sorted(
        {parts for named in (first, *others) for parts in named.values()}, key=lambda p: (sum(ms[key] for key in p), p)
    )
    return {f"{kind}_{i:02}": whole(parts) for i, parts in enumerate(every)}
