"""The network of a run: found by its name, written into the run's folder, and built again from there.

A run's folder holds network.json (task, name, input size, classes, normalisation) and, for a FrostNet or a network
around one, arch.json; the weights are in checkpoint.pt, or after post-training quantization in calibrated.pt. Folders
may come from strangers: everything is checked when read.
"""

import dataclasses
import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import frostnet
import quant
import zoo
from common.checks import check_choice, check_format, check_list, check_number, check_str
from common.errors import UserError
from common.runs import CHECKPOINT, Run
from nas import Architecture, count
from nas.arch import RULES, SHIPPED, find_file
from quant.attach.settings import config_from
from quant.engines import engine_of_qmax
from tasks import parts
from zoo import backbones, detectors, generators, segmenters

NETWORK, CALIBRATED = "network.json", "calibrated.pt"
# tasks whose networks stand around a backbone, or have a name of their own
AROUND = {"detection": detectors, "segmentation": segmenters}
FORMS = {**AROUND, "pix2pix": generators, "cyclegan": generators}
DROPOUT = 0.5  # in pix2pix's generators, the only noise that they get (arXiv:1611.07004, section 3.1)
TASKS = ("classification", *FORMS)
HEADER = {"format": "network", "version": 1}
ENGINE_OF_LIMIT = engine_of_qmax()


@dataclass(frozen=True)
class Network:
    """A network for one of TASKS.

    name  of a comparison network or a FrostNet; of a detector or segmenter its form and, where it has one, its
          backbone, as in "ssdlite:frostnet_a"
    arch  of the FrostNet that it is or that is its backbone; None where there is none
    """

    name: str
    input_size: int  # pixels
    num_classes: int
    arch: Architecture | None = None
    task: str = "classification"

    def __post_init__(self):
        for field in ("name", "input_size", "num_classes", "task"):
            CHECKS[field](field, getattr(self, field))
        if self.task == "classification" and self.arch is None and not zoo.knows(self.name):
            raise UserError(f"name: {self.name!r} is no comparison network; known here: {', '.join(zoo.NAMES)}")
        if self.task != "classification" and self.arch is None and not FORMS[self.task].knows(self.name):
            raise UserError(
                f"name: {self.name!r} is no network for {self.task}; known here: {', '.join(FORMS[self.task].NAMES)}"
            )
        if self.arch is not None and self.arch.stem.in_channels != 3:
            raise UserError(f"stem.in_channels: {self.arch.stem.in_channels}, must be 3, the channels of a picture")
        if FORMS.get(self.task) is generators:
            generators.check_size(self.name, self.input_size)

    def build(self) -> nn.Module:
        """The float network with fresh weights."""
        if self.task == "detection":
            return detectors.build(self.name, self.num_classes, self.input_size, arch=self.arch)
        if self.task == "segmentation":
            return segmenters.build(self.name, self.num_classes, arch=self.arch)
        if self.task == "pix2pix":
            return generators.build(self.name, DROPOUT)
        if self.task == "cyclegan":
            return generators.Cycle(lambda: generators.build(self.name))
        return (
            frostnet.FrostNet(self.arch)
            if self.arch is not None
            else zoo.build(self.name, self.num_classes, self.input_size)
        )

    @property
    def folder_name(self) -> str:
        """The name as part of a folder's."""
        return self.name.replace(":", "_")

    def example(self) -> Tensor:
        """Pictures to trace it with, (2, 3, input_size, input_size)."""
        return torch.zeros(2, 3, self.input_size, self.input_size)

    def cost(self) -> tuple[int, int]:
        """(parameters, MACs of one picture). Raises UserError where the network cannot run on pictures of this size."""
        try:
            with torch.device("meta"):  # shapes, no numbers
                model = self.build()
                examples = parts.examples_of(model, self.example())
                counts = [count(part, examples[name]) for name, part in parts.parts_of(model).items()]
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"input_size: {self.name} cannot run on {self.input_size} px ({reason}); choose a larger one"
            ) from error
        return sum(params for params, _ in counts), sum(macs for _, macs in counts)


def find_network(
    name: str,
    num_classes: int,
    usual: int,
    input_size: int | None = None,
    runs: str | Path = "runs",
    task: str = "classification",
) -> Network:
    """The network that a name means: what frostnet.find knows, else one of the zoo; for other tasks "form:backbone".
    Raises UserError.

    usual       pixels that networks from the literature see in the data at hand
    input_size  None: for classification that of the architecture's file; else the usual one
    """
    if task in AROUND:
        return _find_form(name, num_classes, input_size or usual, runs, task)
    if task in FORMS:
        if not FORMS[task].knows(name):
            raise UserError(
                f"arch: {name!r} is no network for {task}; choose from {', '.join(FORMS[task].NAMES)}, each also with "
                f"{', '.join(':' + norm for norm in generators.NORMS)}"
            )
        return Network(name, input_size or usual, num_classes, task=task)
    file = find_file(name, runs)
    try:
        arch = frostnet.find(name, runs)
    except UserError as error:
        if file is not None:
            raise
        if not zoo.knows(name):
            if generators.knows(name):
                raise UserError(f"arch: {name!r} is a generator; add --task pix2pix or --task cyclegan") from error
            raise UserError(
                f"arch: {name!r} is neither a file, a run nor a known name; {near_names(name, runs)}"
            ) from error
        return Network(name, input_size or usual, num_classes)
    arch = arch.for_input(input_size or (usual if file is None else arch.input_size)).with_classes(num_classes)
    return Network(arch.name, arch.input_size, num_classes, arch)


def _find_form(name: str, num_classes: int, input_size: int, runs: str | Path, task: str) -> Network:
    """A detector or segmenter; a FrostNet in it is written down by its blocks, not by its name."""
    form, colon, backbone = name.partition(":")
    if not colon or not FORMS[task].knows(f"{form}:{backbones.MOBILENETS[0]}") or backbones.is_mobilenet(backbone):
        if not FORMS[task].knows(name):
            raise UserError(
                f"arch: {name!r} is no network for {task}; choose from {', '.join(FORMS[task].NAMES)}, "
                "where a backbone is a FrostNet (a run, a file, a shipped or published name) or a MobileNet"
            )
        return Network(name, input_size, num_classes, task=task)
    arch = backbones.find(backbone, runs)
    # a backbone's stem strides at any size
    arch = arch.for_input(max(input_size, backbones.LARGE)).with_classes(num_classes)
    return Network(f"{form}:{arch.name}", input_size, num_classes, arch, task)


def near_names(name: str, runs: str | Path) -> str:
    """In words: known names that look like `name`, and where all of them stand."""
    made = [path.parent.name for path in sorted(Path(runs).glob("*/arch.json"))]
    known = (*made, *(path.stem for path in sorted(SHIPPED.glob("*.json"))), *frostnet.PUBLISHED, *zoo.NAMES)
    near = ", ".join(get_close_matches(name, dict.fromkeys(known), 5, 0.5))
    return (f"near it: {near}; " if near else "") + f"all names: python -m zoo list, and the folders in {runs}"


@dataclass(frozen=True)
class Trained:
    """A trained network with its quantizers.

    graph        on the CPU, quantizers attached as `config` says (to each of its parts, see tasks.parts)
    classes      what the outputs mean
    mean, std    by channel, of the pictures in [0, 1] that it was trained on: it takes (x - mean) / std
    weight_qmax  the largest weight code that it was trained with
    """

    graph: nn.Module
    config: quant.QuantConfig
    name: str
    input_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weight_qmax: int
    task: str = "classification"

    @property
    def metadata(self) -> dict[str, str]:
        """What whoever runs the network has to know, as texts (JSON, but for the name)."""
        values = {name: getattr(self, name) for name in ("input_size", "mean", "std", "classes")}
        return {"network": self.name, "task": self.task} | {name: json.dumps(value) for name, value in values.items()}


# ---- the run's folder --------------------------------------------------------------------------------------


def about(data: Any, engine: str) -> dict[str, Any]:
    """What is to be known of a network trained on `data` for `engine`: the last fields of Trained."""
    normalisation = {"mean": tuple(data.mean.tolist()), "std": tuple(data.std.tolist())}
    return {"classes": data.classes, **normalisation, "weight_qmax": quant.weight_qmax(engine)}


def save_network(run: Run, network: Network, about: dict[str, Any]) -> None:
    """Write network.json, and arch.json where it is a FrostNet or has one as its backbone."""
    run.write_json(
        NETWORK, HEADER | {"task": network.task, "name": network.name, "input_size": network.input_size} | about
    )
    if network.arch is not None:
        network.arch.save(run.path / "arch.json")
    else:
        (run.path / "arch.json").unlink(missing_ok=True)


def load_network(run: Run) -> tuple[Network, dict[str, Any]]:
    """The network of a run's folder, and what is to be known of it (`about`).

    Raises UserError naming file and field.
    """
    data = run.read_json(NETWORK)
    arch = Architecture.load(run.path / "arch.json") if run.has("arch.json") else None
    try:
        check_format(data, **HEADER, fields=FIELDS)
        for field in FIELDS:
            CHECKS[field](field, data[field])
        network = Network(data["name"], data["input_size"], len(data["classes"]), arch, data["task"])
        if arch is not None and not _agree(network, arch):
            raise UserError(
                "name, input_size or classes differ from arch.json beside "
                "it; restore the file that belongs to the checkpoint"
            )
    except UserError as error:
        raise UserError(f"{run.path / NETWORK}: {error}") from error
    return network, {field: tuple(data[field]) for field in ("classes", "mean", "std")} | {
        "weight_qmax": data["weight_qmax"]
    }


def _agree(network: Network, arch: Architecture) -> bool:
    if network.task != "classification":
        return network.name.partition(":")[2] == arch.name
    return (network.name, network.input_size, network.num_classes) == (
        arch.name,
        arch.input_size,
        arch.head.num_classes,
    )


def load_float(model: nn.Module, name: str, runs: str | Path) -> tuple[Tensor, Tensor] | None:
    """Give `model` the weights of a float run, named by its folder in `runs` or by its checkpoint. Raises UserError.

    Returns the (mean, std) of the pictures that it was trained on, where its folder says so.
    """
    path, state = _float_state(name, runs)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"from_float: {path} holds another architecture than the one asked for ({first})") from error
    run = Run(path.parent)
    return _normalisation(load_network(run)[1]) if run.has(NETWORK) else None


def load_rival(task: Any, name: str, runs: str | Path) -> None:
    """Let a generator that goes on from a float run meet the discriminators that it was trained against.

    Raises UserError.
    """
    path, state = _float_state(name, runs)
    if getattr(task, "rival", None) is None or "rival" not in state:
        return
    try:
        task.rival.load_state_dict(state["rival"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"discriminator: {path} was trained against another; name that one") from error


def float_settings(name: str, runs: str | Path) -> dict:
    """config.json beside the checkpoint of a float run, {} where there is none. Raises UserError."""
    run = Run(_float_state(name, runs)[0].parent)
    found = run.read_json("config.json") if run.has("config.json") else {}
    return found if isinstance(found, dict) else {}


def _float_state(name: str, runs: str | Path) -> tuple[Path, dict]:
    """The checkpoint of a float run, named by its folder in `runs` or by itself, and what it holds.

    Raises UserError.
    """
    path = Path(name)
    if not path.is_file():
        path = (path if (path / CHECKPOINT).is_file() else Path(runs) / name) / CHECKPOINT
    if not path.is_file():
        raise UserError(f"from_float: {name!r} is neither a checkpoint nor a run with one in {runs}")
    state = Run(path.parent).load_checkpoint(path.name)
    if state.get("attached", True):
        raise UserError(f"from_float: {path} does not hold a float model; make one with --float-only")
    return path, state


def load_backbone(network: Network, model: nn.Module, name: str, runs: str | Path) -> tuple[Tensor, Tensor]:
    """Give the backbone of a detector or segmenter the weights of a classification run; the run's (mean, std).

    The run is named by its folder, or by its name in `runs`. Raises UserError where it trained another network.
    """
    run = Run(name if (Path(name) / NETWORK).is_file() else Path(runs) / name)
    if not run.has(NETWORK) or not run.has(CHECKPOINT):
        raise UserError(f"backbone: {name!r} is no run with {NETWORK} and {CHECKPOINT} in {runs}")
    other, known = load_network(run)
    holder = next((module for path, module in model.named_modules() if path.split(".")[-1] == "backbone"), None)
    if other.task != "classification" or holder is None:
        raise UserError(
            f"backbone: {run.path} is a run of {other.task}; {network.name} "
            "needs one of classification, of its own backbone"
        )
    wanted = holder.state_dict()
    found = {_in_backbone(key): value for key, value in run.load_checkpoint()["model"].items()}
    missing = [key for key, value in wanted.items() if key not in found or found[key].shape != value.shape]
    if missing:
        raise UserError(
            f"backbone: {run.path} trained {other.name}, which has no such {missing[0]} as {network.name} has; "
            "name a run of its own backbone"
        )
    holder.load_state_dict({key: found[key] for key in wanted})
    return _normalisation(known)


def _normalisation(known: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return torch.tensor(known["mean"]), torch.tensor(known["std"])


def _in_backbone(key: str) -> str:
    """The name in zoo.backbones of a parameter of a classifier: a MobileNet's features are a stem and blocks there."""
    if not key.startswith("features."):
        return key
    _, number, rest = key.split(".", 2)
    return f"stem.{rest}" if number == "0" else f"blocks.{int(number) - 1}.{rest}"


def load(path: str | Path) -> Trained:
    """The quantized network that a finished run of retrain.py left in its folder; nothing but the folder is needed.

    Raises UserError for a folder without a run, a run that has not ended or ended in float, and for broken files.
    """
    run, settings = finished_run(path)
    config = _quantizers(run, settings)
    network, known = load_network(run)
    state = run.load_checkpoint(CALIBRATED if settings.get("calibrate") else CHECKPOINT)
    if state.get("attached") is False:
        raise UserError(
            f"run: {path} trained a float network; quantize it first, with retrain.py --from-float "
            f"{path}/{CHECKPOINT} and, if it is not to be trained further, --calibrate minmax"
        )
    # an engine's own limit follows the CPU
    same_codes = dataclasses.replace(config, engine=ENGINE_OF_LIMIT[known["weight_qmax"]])
    graph = parts.attach(network.build(), network.example(), same_codes)
    try:
        graph.load_state_dict(state["model"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(
            f"run: {path} holds weights of another network than {network.name} ({first}); restore its files"
        ) from error
    return Trained(graph.eval(), config, network.name, network.input_size, **known, task=network.task)


def finished_run(path: str | Path) -> tuple[Run, dict]:
    """The folder of a run of retrain.py that has ended, and its config.json. Raises UserError."""
    path = Path(path)
    if not (path / "config.json").is_file():
        raise UserError(
            f"run: {path} is not the folder of a run; name one that retrain.py made, such as runs/frostnet_a_int8"
        )
    run = Run(path)
    config = run.read_json("config.json")
    if not isinstance(config, dict) or config.get("program") != "retrain":
        raise UserError(f"run: {path} is not a run of retrain.py; train what it found first: retrain.py --arch {path}")
    if not run.has("metrics.json") or not run.has(NETWORK):
        raise UserError(
            f"run: {path} has not ended; give its command again (it "
            "stands in config.json), which goes on from the checkpoint"
        )
    return run, config


def _quantizers(run: Run, settings: dict) -> quant.QuantConfig:
    try:
        return config_from(settings.get("quantizers"))
    except quant.QuantError as error:
        raise UserError(f"{run.path / 'config.json'}: quantizers: {error}") from error


# ---- checks ------------------------------------------------------------------------------------------------


def _check_name(path: str, value: Any) -> str:
    """The name of a network, or those of a form and its backbone with ":" between them."""
    for name in check_str(path, value).split(":", 1):
        RULES["name"](path, name)
    return value


def _check_classes(path: str, value: Any) -> None:
    for i, name in enumerate(check_list(path, value, 1, 100_000)):
        check_str(f"{path}[{i}]", name, longest=255)


def _check_channels(path: str, value: Any, **bounds: float) -> None:
    """A number for each of the three channels of an image."""
    for i, number in enumerate(check_list(path, value, 3, 3)):
        check_number(f"{path}[{i}]", number, **bounds)


FIELDS = ("task", "name", "input_size", "classes", "mean", "std", "weight_qmax")  # of network.json, after the header
CHECKS = {
    "task": partial(check_choice, choices=TASKS),
    "name": _check_name,
    "input_size": RULES["input_size"],
    "num_classes": RULES["num_classes"],
    "classes": _check_classes,
    "mean": _check_channels,
    "std": partial(_check_channels, above=0),
    "weight_qmax": partial(check_choice, choices=tuple(ENGINE_OF_LIMIT)),
}  # field of Network or of network.json -> its check, called with the field's path and value
