"""What a report is made of, read from a run's folder and checked: the files may come from anywhere.

config.json   "command" and settings
latency.json  {"parts": {"stem": ms, "blocks.0": ms, .., "head": ms}, further facts}
front.json    see `nas.report.page.front`
space.json    {"tied": bool, "stages": [{"min_depth": int, "slots": [[label of each candidate, ..], ..]}, ..]}
alphas.jsonl  rows {"step", "ops": [stage][slot][candidate] probabilities, "depths": [stage][depth] probabilities}
metrics.json  any numbers, words and tables; "health": {"warnings": [text, ..], numbers}
"""

from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.runs import ALPHAS, Run
from nas.arch import Architecture
from nas.cost import cost
from nas.report.style import is_number


def read_object(run: Run, name: str) -> dict:
    """A JSON object of the run, {} where there is no such file."""
    value = run.read_json(name) if run.has(name) else {}
    if not isinstance(value, dict):
        raise UserError(f"{run.path / name}: a {type(value).__name__}, must be an object")
    return value


def read_architecture(run: Run) -> tuple[Architecture | None, dict[str, float] | None, dict]:
    """(arch.json, the milliseconds of each of its parts, further facts of latency.json);

    None for what the run does not have.
    """
    if not run.has("arch.json"):
        return None, None, {}
    arch, facts = Architecture.load(run.path / "arch.json"), read_object(run, "latency.json")
    parts, names = facts.pop("parts", None), [row.name for row in cost(arch).rows]
    if parts is None:
        return arch, None, facts
    place = f"{run.path / 'latency.json'}: parts"
    if not isinstance(parts, dict) or set(parts) != set(names):
        raise UserError(
            f"{place}: {', '.join(map(str, parts)) if isinstance(parts, (dict, list)) else parts}, must be those of "
            "arch.json"
        )
    for name, value in parts.items():
        if not is_number(value) or value <= 0:
            raise UserError(f"{place}.{name}: {value!r}, must be milliseconds above 0")
    return arch, {name: parts[name] for name in names}, facts


def read_front(run: Run) -> dict:
    """front.json; {} where there is none."""
    data, file = read_object(run, "front.json"), run.path / "front.json"
    points = _objects(file, "points", data.get("points", []))
    networks = _objects(file, "networks", data.get("networks", []))
    for field, rows, keys in (("points", points, ("latency_ms", "score")), ("networks", networks, ("latency_ms",))):
        for i, row in enumerate(rows):
            for key in keys:
                if not is_number(row.get(key)):
                    raise UserError(f"{file}: {field}[{i}].{key}: {row.get(key)!r}, must be a number")
    for i, row in enumerate(networks):
        for key in ("name", "kind"):
            if not isinstance(row.get(key, ""), str):
                raise UserError(f"{file}: networks[{i}].{key}: {row[key]!r}, must be a text")
    return data


def read_health(run: Run, metrics: dict) -> tuple[dict, list[str]]:
    """(numbers, warnings) of the "health" in `metrics`, and the run's further warnings; both are taken out of
    `metrics`.
    """
    health, file = metrics.pop("health", {}), run.path / "metrics.json"
    if not isinstance(health, dict):
        raise UserError(f"{file}: health: a {type(health).__name__}, must be an object")
    warnings = [metrics.pop("warnings", []), health.pop("warnings", [])]
    for value in warnings:
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise UserError(f"{file}: warnings: {value!r}, must be a list of texts")
    return health, [text for value in warnings for text in value]


# ---- alphas ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distribution:
    """One distribution over time: `rows[time][label]` are probabilities."""

    title: str
    labels: list[str]
    rows: list[list[float]]


@dataclass(frozen=True)
class Stage:
    """What there is to choose in a stage; `depth` is None where that is fixed."""

    title: str
    depth: Distribution | None
    slots: list[Distribution]


@dataclass(frozen=True)
class Trajectory:
    """All alphas over time."""

    steps: tuple[float, float]  # first and last
    stages: list[Stage]


def read_alphas(run: Run) -> Trajectory | None:
    """How the alphas moved; None where the run has no alphas.jsonl or space.json, or no row in it."""
    rows = run.read_log(ALPHAS) if run.has("space.json") else []
    if not rows:
        return None
    space = _space(run)
    for i, row in enumerate(rows):
        _check_row(f"{run.path / ALPHAS}: row {i + 1}", row, space["stages"])
    stages = [_stage(i, stage, rows, space["tied"]) for i, stage in enumerate(space["stages"])]
    if space["tied"]:
        stages.insert(0, Stage("Every slot", None, [_shared(rows, space["stages"])]))
    return Trajectory((rows[0]["step"], rows[-1]["step"]), [stage for stage in stages if stage.depth or stage.slots])


def _stage(i: int, stage: dict, rows: list[dict], tied: bool) -> Stage:
    labels, least, depth, slots = stage["slots"], stage["min_depth"], None, []
    if least < len(labels):
        depths = [f"{n} block{'s' if n != 1 else ''}" for n in range(least, len(labels) + 1)]
        depth = Distribution("depth", depths, [row["depths"][i] for row in rows])
    for j, candidates in enumerate(labels):
        if len(candidates) > 1 and not tied:
            runs = sum(rows[-1]["depths"][i][max(0, j + 1 - least) :])
            slots.append(Distribution(f"slot {j + 1}, runs {runs:.0%}", candidates, [row["ops"][i][j] for row in rows]))
    return Stage(f"Stage {i + 1}", depth, slots)


def _shared(rows: list[dict], stages: list[dict]) -> Distribution:
    """The one distribution of a tied space, with the labels of the slot in which most candidates differ."""
    slots = [(len(set(labels)), i, j) for i, stage in enumerate(stages) for j, labels in enumerate(stage["slots"])]
    _, i, j = max(slots)
    return Distribution("candidates", stages[i]["slots"][j], [row["ops"][i][j] for row in rows])


def _space(run: Run) -> dict:
    space, file = read_object(run, "space.json"), run.path / "space.json"
    stages = _objects(file, "stages", space.get("stages"))
    for i, stage in enumerate(stages):
        slots, least = stage.get("slots"), stage.get("min_depth")
        if not isinstance(slots, list) or not slots or not all(_is_labels(labels) for labels in slots):
            raise UserError(f"{file}: stages[{i}].slots: must be lists of the candidates' labels")
        if type(least) is not int or not 0 <= least <= len(slots):
            raise UserError(f"{file}: stages[{i}].min_depth: {least!r}, must be a whole number from 0 to {len(slots)}")
    if not stages:
        raise UserError(f"{file}: stages: none, must be one or more")
    return {"stages": stages, "tied": space.get("tied") is True}


def _is_labels(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(label, str) for label in value)


def _check_row(place: str, row: dict, stages: list[dict]) -> None:
    """Raise UserError unless the row has one probability for each depth and candidate of the space."""
    if not is_number(row.get("step")):
        raise UserError(f"{place}: step: {row.get('step')!r}, must be a number")
    ops, depths = row.get("ops"), row.get("depths")
    for field, value in (("ops", ops), ("depths", depths)):
        if not isinstance(value, list) or len(value) != len(stages):
            raise UserError(f"{place}: {field}: must be a list for each of the {len(stages)} stages of space.json")
    for i, stage in enumerate(stages):
        if not isinstance(ops[i], list) or len(ops[i]) != len(stage["slots"]):
            raise UserError(
                f"{place}: ops[{i}]: must be a list for each of the {len(stage['slots'])} slots of space.json"
            )
        _check_probabilities(f"{place}: depths[{i}]", depths[i], len(stage["slots"]) - stage["min_depth"] + 1)
        for j, labels in enumerate(stage["slots"]):
            _check_probabilities(f"{place}: ops[{i}][{j}]", ops[i][j], len(labels))


def _check_probabilities(place: str, values: Any, count: int) -> None:
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(is_number(v) and 0 <= v <= 1.001 for v in values)
    ):
        raise UserError(f"{place}: must be {count} probabilities")


def _objects(file, field: str, value: Any) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise UserError(f"{file}: {field}: must be a list of objects")
    return value
