"""What a report is made of, read from a run's folder and checked: the files may come from anywhere.

config.json   "command" and settings
latency.json  {"parts": {"stem": ms, "blocks.0": ms, .., "head": ms}, further facts}
front.json    see `nas.report.front`
space.json    {"tied": bool, "stages": [{"min_depth": int, "slots": [[label of each candidate, ..], ..]}, ..]}
alphas.jsonl  rows {"step", "ops": [stage][slot][candidate] probabilities, "depths": [stage][depth] probabilities}
metrics.json  any numbers, words and tables; "health": {"warnings": [text, ..], numbers}
"""

from dataclasses import dataclass
from typing import Any

from common.checks import check_int, check_list, check_number, check_object, check_str, check_strs
from common.runs import ALPHAS, Run
from nas.arch import Architecture
from nas.cost import cost
from nas.report.style import LARGEST


def read_object(run: Run, name: str) -> dict:
    """A JSON object of the run, {} where there is no such file."""
    return check_object(str(run.path / name), run.read_json(name)) if run.has(name) else {}


def read_architecture(run: Run) -> tuple[Architecture | None, dict[str, float] | None, dict]:
    """(arch.json, milliseconds of each of its components, further facts of latency.json); None for what is missing."""
    if not run.has("arch.json"):
        return None, None, {}
    arch, facts = Architecture.load(run.path / "arch.json"), read_object(run, "latency.json")
    parts, names = facts.pop("parts", None), [row.name for row in cost(arch).rows]
    if parts is None:
        return arch, None, facts
    path = f"{run.path / 'latency.json'}: parts"
    for name, value in check_object(path, parts, names).items():
        check_number(f"{path}.{name}", value, high=LARGEST, above=0)
    return arch, {name: parts[name] for name in names}, facts


def read_front(run: Run) -> dict:
    """front.json; {} where there is none."""
    data = read_object(run, "front.json")
    for field, keys in (("points", ("latency_ms", "score")), ("networks", ("latency_ms",))):
        path = f"{run.path / 'front.json'}: {field}"
        for i, row in enumerate(check_list(path, data.get(field, []))):
            check_object(f"{path}[{i}]", row)
            for key in keys:
                check_number(f"{path}[{i}].{key}", row.get(key), -LARGEST, LARGEST)
            for key in ("name", "kind"):
                check_str(f"{path}[{i}].{key}", row.get(key, ""))
    return data


def read_health(run: Run, metrics: dict) -> tuple[dict, list[str]]:
    """(numbers, warnings) of "health", the run's further warnings among them; both are taken out of `metrics`."""
    path = f"{run.path / 'metrics.json'}: "
    health = check_object(f"{path}health", metrics.pop("health", {}))
    warnings = check_strs(f"{path}warnings", metrics.pop("warnings", []))
    return health, [*warnings, *check_strs(f"{path}health.warnings", health.pop("warnings", []))]


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
    space = read_object(run, "space.json")
    path = f"{run.path / 'space.json'}: stages"
    stages = check_list(path, space.get("stages"), 1)
    for i, stage in enumerate(stages):
        check_object(f"{path}[{i}]", stage)
        slots = check_list(f"{path}[{i}].slots", stage.get("slots"), 1)
        for j, labels in enumerate(slots):
            check_strs(f"{path}[{i}].slots[{j}]", labels, 1)
        check_int(f"{path}[{i}].min_depth", stage.get("min_depth"), 0, len(slots))
    return {"stages": stages, "tied": space.get("tied") is True}


def _check_row(path: str, row: dict, stages: list[dict]) -> None:
    """Raise UserError unless the row has one probability for each depth and candidate of the space."""
    check_number(f"{path}: step", row.get("step"), -LARGEST, LARGEST)
    for field in ("ops", "depths"):
        check_list(f"{path}: {field}", row.get(field), len(stages), len(stages))
    for i, stage in enumerate(stages):
        slots = stage["slots"]
        check_list(f"{path}: ops[{i}]", row["ops"][i], len(slots), len(slots))
        _check_probabilities(f"{path}: depths[{i}]", row["depths"][i], len(slots) - stage["min_depth"] + 1)
        for j, labels in enumerate(slots):
            _check_probabilities(f"{path}: ops[{i}][{j}]", row["ops"][i][j], len(labels))


def _check_probabilities(path: str, values: Any, count: int) -> None:
    for value in check_list(path, values, count, count):
        check_number(path, value, 0, 1.001)
