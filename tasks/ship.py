"""From a trained graph to the files that are shipped: converted, compared with the trained graph, written whole."""

import errno
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import quant
from common.errors import UserError
from common.files import reason
from tasks import parts
from tasks.kinds import ANSWERS, Kind, Likeness
from tasks.trained import Trained

PARITY_PIXELS = 8 * 224 * 224  # in the batch that is compared layer by layer
SHIPPED = ("int8.pt", "int8.onnx")  # in a run's folder; of each part of a network in several


@dataclass(frozen=True)
class Checked:
    """Pictures to compare networks on, and how."""

    kind: Kind
    task: Any
    pictures: Any  # a part of the task's data

    @cached_property
    def batch(self) -> Tensor:
        """The pictures that are compared layer by layer; fewer where they are large."""
        count = min(64, max(2, PARITY_PIXELS // self.pictures.input_size**2))
        return next(iter(self.kind.in_order(self.pictures, count)))[0]

    @cached_property
    def some(self) -> Any:
        """The pictures that are compared end to end: such as have the batch's size, since a file is for one size."""
        return self.kind.of_size(self.kind.some(self.pictures, self.kind.compared, 0), tuple(self.batch.shape[2:]))

    def inputs(self, model: nn.Module) -> dict[str, Tensor]:
        """What each part of a model is given for the batch."""
        return parts.inputs_of(model.eval(), self.batch, self.task.predict)


def compare(graph: nn.Module, converted: nn.Module, checked: Checked) -> dict:
    """Does INT8 compute what was trained? Layer by layer on a batch, end to end on more images.

    "refused" describes what is off, or is None.
    """
    reports = parts.parity(graph, converted, checked.inputs(graph))
    refused = None
    try:
        for report in reports.values():
            report.check()
    except quant.QuantError as error:
        refused = str(error)
    part, worst = max(reports.items(), key=lambda item: item[1].layer_steps)
    some, steps = checked.some, max(report.output_steps for report in reports.values())
    return {
        "layer_steps": worst.layer_steps,
        "worst_layer": _within(part, worst.worst.name),
        "output_steps": round(steps, 3),
        "agreement": checked.task.agreement(graph, converted, some),
        "pictures": len(some),
        "refused": refused,
    }


def _within(part: str, name: str) -> str:
    return f"{part}.{name}" if part else name


def doubts(
    found: dict, metrics: dict[str, dict] | None = None, score: str = "top1", likeness: Likeness = ANSWERS
) -> list[str]:
    """Warnings where INT8 does not end up where fake-quant does, though no single layer is off; [] where it does.

    Warnings and no refusals, since a network that has learned little has many pictures between two answers.
    found    what `compare` found as "parity" and `save_onnx` as "onnx", as far as there is either
    metrics  of "fake_quant" and "int8" by held-out split; `score` is the one to look at
    """
    parity, file = found.get("parity", {}), found.get("onnx", {})
    shares = {"INT8": (parity.get("agreement"), parity), "int8.onnx": (file.get("agreement_with_fake_quant"), file)}
    words = [
        f"{name}: only {likeness.says(agreement)} of {seen['pictures']} "
        f"pictures, {likeness.amount(likeness.least)} are expected"
        for name, (agreement, seen) in shares.items()
        if agreement is not None and agreement < likeness.least
    ]
    for split, values in (metrics or {}).get("fake_quant", {}).items():
        gap = round(metrics["int8"][split][score] - values[score], 6)
        if abs(gap) > likeness.largest_gap:
            words.append(
                f"{score} of INT8 on {split} is {likeness.gap_words(abs(gap))} {'above' if gap > 0 else 'below'} "
                f"fake-quant's, at most {likeness.gap_words(likeness.largest_gap)} are to be expected"
            )
    return words


def ship(trained: Trained, frozen: parts.Frozen | None, folder: Path, checked: Checked, refused: str | None) -> dict:
    """Leave int8.onnx in a run's folder, and int8.pt where `frozen` is for one of torch's engines.

    Returns {"onnx": what its check found}.

    refused  why the network does not compute what was trained, if so: then it is not shipped
    """
    for old in shipped(folder):
        (folder / old).unlink()
    if refused:
        return {}
    for name, part in (frozen.parts if frozen else {}).items():
        if isinstance(part, quant.Frozen):
            save_frozen(part, part_path(folder / "int8.pt", name))
    try:
        return {"onnx": save_onnx(trained, folder / "int8.onnx", checked)}
    except quant.QuantError as error:  # a network without an ONNX form runs on its engine all the same
        return {"onnx": {"refused": str(error)}}


def shipped(folder: Path) -> list[str]:
    """The names of the INT8 files in a run's folder."""
    found = [
        path.name
        for name in SHIPPED
        for path in folder.glob(f"{Path(name).stem}*{Path(name).suffix}")
        if path.is_file()
    ]
    # exported later
    return sorted(name for name in found if not name.startswith(tuple(f"int8_{engine}" for engine in quant.ENGINES)))


def part_path(path: Path, part: str) -> Path:
    """The file of one part of a network: int8_features.onnx for int8.onnx."""
    return path.with_name(f"{path.stem}_{part}{path.suffix}") if part else path


def save_frozen(frozen: quant.Frozen, path: Path) -> None:
    """Write the frozen network of one of torch's engines. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            frozen.save(Path(folder) / path.name)  # the file's name is written into the file
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)})") from error
    except RuntimeError as error:  # torch's own, without the system's cause
        raise UserError(f"{path}: cannot be written ({str(error).splitlines()[0]}); is the disk full?") from error


def save_onnx(trained: Trained, path: Path, checked: Checked) -> dict:
    """Write the network as ONNX, checked on some images; returns what was found.

    The file is compared with the integer reference, layer by layer on a batch, and with fake-quant by its answers on
    more images. A network of several parts becomes a file for each (`part_path`). Raises UserError, and QuantError
    where it is refused.
    """
    inputs, reports, loaded = checked.inputs(trained.graph), [], {}
    for name, part in parts.parts_of(trained.graph).items():
        file = part_path(path, name)
        try:
            reports.append(quant.export_onnx(part, file, inputs[name], trained.metadata))
        except quant.QuantError:
            for written in loaded:  # half a network is none
                part_path(path, written).unlink()
            raise
        loaded[name] = _Callable(quant.load_frozen(file, quant.FORMATS["onnx"].engine))
    some = checked.some
    same = checked.task.agreement(trained.graph, parts.with_parts(trained.graph, loaded), some)
    found = {
        "bytes": sum(r.bytes for r in reports),
        "images": reports[0].images,
        **{name: max(getattr(r, name) for r in reports) for name in ("max_difference", "layer_steps", "output_steps")},
        "integer_layers": sum(r.integer_layers for r in reports),
        "float_ops": [op for r in reports for op in r.float_ops],
        "agreement_with_reference": min(r.agreement for r in reports),
    }
    return found | {"agreement_with_fake_quant": same, "pictures": len(some)}


class _Callable(nn.Module):
    """A network read from a file as the part of a model."""

    def __init__(self, network: Any):
        super().__init__()
        self.engine = network.engine
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


def check_writable(path: Path) -> None:
    """Raise UserError where a file could not be written to `path`; leaves nothing behind."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)})") from error


def state_bytes(model: nn.Module) -> int:
    """Size of a file of the model's state dict, in bytes."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


# ---- in words ----------------------------------------------------------------------------------------------


def parity_words(found: dict, float_ops: list[str], likeness: Likeness = ANSWERS) -> str:
    """What `compare` found, and what the engine computes in float."""
    return (
        f"layers within {found['layer_steps']:g} steps (worst {found['worst_layer']}), output within "
        f"{found['output_steps']:.1f}, "
        f"{likeness.says(found['agreement'])} of {found['pictures']} pictures; in float: {_few(float_ops)}"
    )


def onnx_words(found: dict, likeness: Likeness = ANSWERS) -> str:
    """What `save_onnx` found."""
    if "refused" in found:
        return f"not written, {found['refused']}"
    return (
        f"{found['bytes']:,} bytes, {found['integer_layers']} integer layers, in float: "
        f"{_few(found['float_ops'])}; in onnxruntime layers within {found['layer_steps']:g} "
        f"steps of the integer reference, output within {found['output_steps']:.1f}, "
        f"{likeness.says(found['agreement_with_fake_quant'])} of {found['pictures']} pictures"
    )


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest if names else "nothing"
