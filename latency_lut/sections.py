"""A section of a latency table, one space at one width and input size: parts, networks timed whole, calibration."""

from dataclasses import dataclass, fields
from typing import Any

from common.checks import check_int, check_list, check_number, check_object, check_str, check_strs
from common.errors import UserError
from latency_lut.timing import Timing
from nas import Architecture, SearchSpace, signature

# the entry of a call that computes nothing: each part pays it when it is timed alone, and a network once
CALL = "call"
LOWEST_MS, HIGHEST_MS = 1e-4, 60_000.0  # 100 ns to a minute: outside, a figure is no latency of a network
LOWEST_RATIO, HIGHEST_RATIO = 0.2, 5.0
STATISTICS = {  # of `fitting.prediction_errors`: (lowest, highest)
    "networks": (1, 1e6), "bias": (-1, 1e3), "mape": (0, 1e3), "rmse_ms": (0, HIGHEST_MS), "within_5": (0, 1),
    "within_10": (0, 1), "spearman": (-1, 1), "kendall": (-1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A random network that was timed whole: the signatures of its parts in order, and its rounds."""

    parts: tuple[str, ...]
    timing: Timing | None  # None until its first round


@dataclass(frozen=True)
class Validated:
    """Fresh random networks, timed later than the table was measured, and how well it predicts them."""

    seed: int
    networks: dict[str, Network]
    figures: dict | None = None  # `fitting.prediction_errors` of all of them; None while they are being timed
    conditions: tuple[dict, ...] = ()


@dataclass(frozen=True)
class Section:
    """One space at one width and input size."""

    space: str
    width: float
    input_size: int
    num_classes: int  # of the networks that were timed
    hash: str  # SearchSpace.hash()
    parts: tuple[str, ...]  # every part of the space except heads: those are looked up by class count
    seed: int
    networks: dict[str, Network]
    ratio: float | None = None  # whole network / sum of blocks; None while the section is being measured
    fitted_on: tuple[str, ...] = ()
    validation: dict | None = None  # `fitting.prediction_errors` of the networks not fitted on
    conditions: tuple[dict, ...] = ()  # seconds, load and steal seen, one for each time it was worked on
    validated: Validated | None = None  # by `python -m latency_lut validate`

    @property
    def complete(self) -> bool:
        return self.ratio is not None

    @property
    def key(self) -> str:
        return section_key(self.space, self.width, self.input_size)

    def needed(self) -> set[str]:
        """Signatures of all parts of the space and of the networks."""
        return set(self.parts).union(*(network.parts for network in self.networks.values()))

    def to_json(self) -> dict:
        return {**_fields(self), "validated": self.validated and _fields(self.validated)}


def parts(arch: Architecture) -> dict[str, str]:
    """Signature of each part of a network: "stem", "blocks.0", .., "head"."""
    return {name: signature(spec, size) for name, (spec, size) in arch.components().items()}


def section_key(space: str, width: float, input_size: int) -> str:
    return f"{space}_{width:g}_{input_size}"


def space_key(space: SearchSpace) -> str:
    return section_key(space.name, space.width, space.input_size)


# ---- from JSON ---------------------------------------------------------------------------------------------


def _fields(value: Section | Validated) -> dict:
    networks = {
        name: {"parts": list(network.parts), "timing": network.timing and timing_to_json(network.timing)}
        for name, network in value.networks.items()
    }
    return {**{f.name: getattr(value, f.name) for f in fields(value)}, "networks": networks}


def timing_to_json(timing: Timing) -> dict:
    return {"ms": timing.ms, "rel_spread": timing.rel_spread, "rounds": list(timing.rounds)}


def timing_from_json(path: str, value: Any) -> Timing:
    """A timing whose figures agree with its rounds, so that no hand can change one alone."""
    check_object(path, value, ("ms", "rel_spread", "rounds"))
    rounds = check_list(f"{path}.rounds", value["rounds"], least=1)
    timing = Timing(
        tuple(check_number(f"{path}.rounds[{i}]", ms, LOWEST_MS, HIGHEST_MS) for i, ms in enumerate(rounds))
    )
    if check_number(f"{path}.ms", value["ms"], LOWEST_MS, HIGHEST_MS) != timing.ms:
        raise UserError(f"{path}.ms: {value['ms']}, must be {timing.ms}, the smallest of its rounds")
    if abs(check_number(f"{path}.rel_spread", value["rel_spread"], 0, 1e9) - timing.rel_spread) > 1e-6:
        raise UserError(f"{path}.rel_spread: {value['rel_spread']}, must be {timing.rel_spread:.6g} by its rounds")
    return timing


def section_from_json(path: str, value: Any) -> Section:
    """A section, every field checked. Raises UserError naming the field."""
    check_object(path, value, tuple(f.name for f in fields(Section)))
    if value["ratio"] is not None:
        check_number(f"{path}.ratio", value["ratio"], LOWEST_RATIO, HIGHEST_RATIO)
        _figures(f"{path}.validation", value["validation"])
    return Section(
        space=check_str(f"{path}.space", value["space"]),
        width=check_number(f"{path}.width", value["width"], 0.01, 4),
        input_size=check_int(f"{path}.input_size", value["input_size"], 8, 4096),
        num_classes=check_int(f"{path}.num_classes", value["num_classes"], 1, 100_000),
        hash=check_str(f"{path}.hash", value["hash"]),
        parts=check_strs(f"{path}.parts", value["parts"], least=1),
        seed=check_int(f"{path}.seed", value["seed"], 0, 2**63),
        networks=_networks(f"{path}.networks", value["networks"]),
        ratio=value["ratio"],
        fitted_on=check_strs(f"{path}.fitted_on", value["fitted_on"]),
        validation=value["validation"],
        conditions=_all_conditions(f"{path}.conditions", value["conditions"]),
        validated=None if value["validated"] is None else _validated(f"{path}.validated", value["validated"]),
    )


def _validated(path: str, value: Any) -> Validated:
    check_object(path, value, tuple(f.name for f in fields(Validated)))
    networks = _networks(f"{path}.networks", value["networks"])
    if value["figures"] is not None:
        _figures(f"{path}.figures", value["figures"])
        for name, network in networks.items():
            if network.timing is None:
                raise UserError(f"{path}.networks.{name}.timing: missing, though there are figures")
    seed = check_int(f"{path}.seed", value["seed"], 0, 2**63)
    return Validated(seed, networks, value["figures"], _all_conditions(f"{path}.conditions", value["conditions"]))


def _figures(path: str, value: Any) -> None:
    check_object(path, value, tuple(STATISTICS))
    for key, (low, high) in STATISTICS.items():
        check_number(f"{path}.{key}", value[key], low, high)


def _networks(path: str, value: Any) -> dict[str, Network]:
    return {name: _network(f"{path}.{name}", item) for name, item in check_object(path, value).items()}


def _all_conditions(path: str, value: Any) -> tuple[dict, ...]:
    return tuple(_conditions(f"{path}[{i}]", item) for i, item in enumerate(check_list(path, value)))


def _network(path: str, value: Any) -> Network:
    check_object(path, value, ("parts", "timing"))
    timing = None if value["timing"] is None else timing_from_json(f"{path}.timing", value["timing"])
    return Network(check_strs(f"{path}.parts", value["parts"], least=3), timing)


def _conditions(path: str, value: Any) -> dict:
    check_object(path, value, ("date", "seconds", "load", "steal"))
    check_str(f"{path}.date", value["date"])
    check_number(f"{path}.seconds", value["seconds"], 0)
    for key, high in (("load", 1e6), ("steal", 1)):
        if value[key] is not None:
            check_number(f"{path}.{key}", value[key], 0, high)
    return value
