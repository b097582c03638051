"""The network of a run: found by its name, written into the run's folder, and built again from there with what was trained.

A run's folder holds network.json (name, input size, classes, normalisation) and, for a FrostNet, arch.json; the weights are in
checkpoint.pt, or after post-training quantization in calibrated.pt. Folders may come from strangers: everything is checked when read.
"""

import dataclasses
import json
import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import frostnet
import quant
import zoo
from nas import Architecture, Run, UserError, count
from nas.arch import RULES, SHIPPED, find_file
from nas.runs import CHECKPOINT
from quant.settings import config_from
from tasks.data import ClassificationData

NETWORK, CALIBRATED = "network.json", "calibrated.pt"
USUAL_SIZES = {"scenes": 32, "cifar10": 32, "cifar100": 32}  # pixels that a published network sees, 224 in other data
HEADER = {"format": "network", "version": 1}
ENGINE_OF_LIMIT = {63: "fbgemm", 127: "reference"}  # whose largest weight code that is on any CPU


@dataclass(frozen=True)
class Network:
    """A network that classifies pictures: the FrostNet of `arch`, or where there is none the comparison network called `name`."""

    name: str
    input_size: int  # pixels
    num_classes: int
    arch: Architecture | None = None

    def __post_init__(self):
        for field in ("name", "input_size", "num_classes"):
            _check(field, getattr(self, field), *RULES[field])
        if self.arch is None and not zoo.knows(self.name):
            raise UserError(f"name: {self.name!r} is no comparison network; known here: {', '.join(zoo.NAMES)}")
        if self.arch is not None and self.arch.stem.in_channels != 3:
            raise UserError(f"stem.in_channels: {self.arch.stem.in_channels}, must be 3, the channels of a picture")

    def build(self) -> nn.Module:
        """The float network with fresh weights."""
        return frostnet.FrostNet(self.arch) if self.arch is not None else zoo.build(self.name, self.num_classes, self.input_size)

    def example(self) -> Tensor:
        """Pictures to trace it with, (2, 3, input_size, input_size)."""
        return torch.zeros(2, 3, self.input_size, self.input_size)

    def cost(self) -> tuple[int, int]:
        """(parameters, MACs of one picture). Raises UserError where the network cannot run on pictures of this size."""
        try:
            with torch.device("meta"):  # shapes, no numbers
                return count(self.build(), self.example())
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"input_size: {self.name} cannot run on {self.input_size} px ({reason}); choose a larger one") from error


def find_network(name: str, num_classes: int, data: str, input_size: int | None = None, runs: str | Path = "runs") -> Network:
    """The network that a name means: what frostnet.find knows, else one of the zoo. Raises UserError.

    input_size  None: that of the architecture's file; for names from the literature the usual one of `data`
    """
    file, usual = find_file(name, runs), USUAL_SIZES.get(data, 224)
    try:
        arch = frostnet.find(name, runs)
    except UserError as error:
        if file is not None:
            raise
        if not zoo.knows(name):
            raise UserError(f"arch: {name!r} is neither a file, a run nor a known name; {near_names(name, runs)}") from error
        return Network(name, input_size or usual, num_classes)
    arch = arch.for_input(input_size or (usual if file is None else arch.input_size)).with_classes(num_classes)
    return Network(arch.name, arch.input_size, num_classes, arch)


def near_names(name: str, runs: str | Path) -> str:
    """In words: known names that look like `name`, and where all of them stand."""
    made = [path.parent.name for path in sorted(Path(runs).glob("*/arch.json"))]
    known = (*made, *(path.stem for path in sorted(SHIPPED.glob("*.json"))), *frostnet.PUBLISHED, *zoo.NAMES)
    near = ", ".join(get_close_matches(name, dict.fromkeys(known), 5, 0.5))
    return (f"near it: {near}; " if near else "") + f"all names: python -m zoo list, and the folders in {runs}"


@dataclass(frozen=True)
class Trained:
    """A trained network with its quantizers.

    graph        on the CPU, quantizers attached as `config` says
    classes      what the outputs mean
    mean, std    by channel, of the pictures in [0, 1] that it was trained on: it takes (x - mean) / std
    weight_qmax  the largest weight code that it was trained with
    """

    graph: fx.GraphModule
    config: quant.QuantConfig
    name: str
    input_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weight_qmax: int

    @property
    def metadata(self) -> dict[str, str]:
        """What whoever runs the network has to know, as texts (JSON, but for the name)."""
        values = {name: getattr(self, name) for name in ("input_size", "mean", "std", "classes")}
        return {"network": self.name} | {name: json.dumps(value) for name, value in values.items()}


# ---- the run's folder ----------------------------------------------------------------------------------------


def about(data: ClassificationData, engine: str) -> dict[str, Any]:
    """What is to be known of a network trained on `data` for `engine`: the last fields of Trained."""
    normalisation = {"mean": tuple(data.mean.tolist()), "std": tuple(data.std.tolist())}
    return {"classes": data.classes, **normalisation, "weight_qmax": quant.weight_qmax(engine)}


def save_network(run: Run, network: Network, about: dict[str, Any]) -> None:
    """Write network.json, and arch.json where it is a FrostNet."""
    run.write_json(NETWORK, HEADER | {"name": network.name, "input_size": network.input_size} | about)
    if network.arch is not None:
        network.arch.save(run.path / "arch.json")
    else:
        (run.path / "arch.json").unlink(missing_ok=True)


def load_network(run: Run) -> tuple[Network, dict[str, Any]]:
    """The network of a run's folder, and what is to be known of it (`about`). Raises UserError naming file and field."""
    data = run.read_json(NETWORK)
    arch = Architecture.load(run.path / "arch.json") if run.has("arch.json") else None
    try:
        _check_network(data)
        network = Network(data["name"], data["input_size"], len(data["classes"]), arch)
        told = (network.name, network.input_size, network.num_classes)
        if arch is not None and told != (arch.name, arch.input_size, arch.head.num_classes):
            raise UserError("name, input_size or classes differ from arch.json beside it; restore the file that belongs to the checkpoint")
    except UserError as error:
        raise UserError(f"{run.path / NETWORK}: {error}") from error
    return network, {field: tuple(data[field]) for field in ("classes", "mean", "std")} | {"weight_qmax": data["weight_qmax"]}


def load_float(model: nn.Module, name: str, runs: str | Path) -> None:
    """Give `model` the weights of a float run, named by its folder in `runs` or by its checkpoint. Raises UserError."""
    path = Path(name)
    path = path if path.is_file() else Path(runs) / name / CHECKPOINT
    if not path.is_file():
        raise UserError(f"from_float: {name!r} is neither a checkpoint nor a run with one in {runs}")
    state = Run(path.parent).load_checkpoint(path.name)
    if state.get("attached", True):
        raise UserError(f"from_float: {path} does not hold a float model; make one with --float-only")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"from_float: {path} holds another architecture than the one asked for ({first})") from error


def load(path: str | Path) -> Trained:
    """The quantized network that a finished run of retrain.py left in its folder; nothing but the folder is needed.

    Raises UserError for a folder without a run, a run that has not ended or ended in float, and for broken files.
    """
    run, settings = finished_run(path)
    config = _quantizers(run, settings)
    network, known = load_network(run)
    state = run.load_checkpoint(CALIBRATED if settings.get("calibrate") else CHECKPOINT)
    if not state["attached"]:
        raise UserError(f"run: {path} trained a float network; quantize it first, with retrain.py --from-float {path}/{CHECKPOINT} and, if "
                        "it is not to be trained further, --calibrate minmax")  # fmt: skip
    same_codes = dataclasses.replace(config, engine=ENGINE_OF_LIMIT[known["weight_qmax"]])  # an engine's own limit follows the CPU
    graph = quant.attach(network.build(), network.example(), same_codes)
    try:
        graph.load_state_dict(state["model"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"run: {path} holds weights of another network than {network.name} ({first}); restore its files") from error
    return Trained(graph.eval(), config, network.name, network.input_size, **known)


def finished_run(path: str | Path) -> tuple[Run, dict]:
    """The folder of a run of retrain.py that has ended, and its config.json. Raises UserError."""
    path = Path(path)
    if not (path / "config.json").is_file():
        raise UserError(f"run: {path} is not the folder of a run; name one that retrain.py made, such as runs/frostnet_a_int8")
    run = Run(path)
    config = run.read_json("config.json")
    if not isinstance(config, dict) or config.get("program") != "retrain":
        raise UserError(f"run: {path} is not a run of retrain.py; train what it found first: retrain.py --arch {path}")
    if not run.has("metrics.json") or not run.has(NETWORK):
        raise UserError(f"run: {path} has not ended; give its command again (it stands in config.json), which goes on from the checkpoint")
    return run, config


def _quantizers(run: Run, settings: dict) -> quant.QuantConfig:
    try:
        return config_from(settings.get("quantizers"))
    except quant.QuantError as error:
        raise UserError(f"{run.path / 'config.json'}: quantizers: {error}") from error


# ---- checks --------------------------------------------------------------------------------------------------


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 100_000 and all(isinstance(v, str) and len(v) < 256 for v in value)


def _are_finite(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) and math.isfinite(v) for v in value)


def _are_positive(value: Any) -> bool:
    return _are_finite(value) and min(value) > 0


def _is_limit(value: Any) -> bool:
    return type(value) is int and value in ENGINE_OF_LIMIT


FIELDS = {
    "name": RULES["name"],
    "input_size": RULES["input_size"],
    "classes": (_are_names, "a list of class names"),
    "mean": (_are_finite, "three numbers"),
    "std": (_are_positive, "three numbers above 0"),
    "weight_qmax": (_is_limit, "63 or 127"),
}  # of network.json: field -> rule and what it must be


def _check_network(data: Any) -> None:
    if not isinstance(data, dict) or any(data.get(key) != value for key, value in HEADER.items()):
        raise UserError(f"not a network: an object with {HEADER} is wanted")
    for field in (*HEADER, *FIELDS, *data):
        if field not in data or field not in HEADER | FIELDS:
            raise UserError(f"{field}: {'unknown' if field in data else 'missing'}; the fields are {', '.join(HEADER | FIELDS)}")
    for field, (rule, words) in FIELDS.items():
        _check(field, data[field], rule, words)


def _check(field: str, value: Any, rule: Callable[[Any], bool], words: str) -> None:
    if not rule(value):
        raise UserError(f"{field}: {reprlib.repr(value)}, must be {words}")
