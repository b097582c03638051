"""From a trained graph to the files that are shipped: converted, compared with what was trained, written whole or not at all."""

import dataclasses
import errno
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

import quant
from nas import UserError
from nas.files import reason
from quant.executors import Executor
from quant.executors.onnx_engines import OnnxNetwork
from tasks.pictures import Pictures, in_order, subset
from tasks.trained import Trained

PARITY_PIXELS = 64 * 32 * 32  # size of the batch that is compared layer by layer
AGREEMENT_IMAGES = 1000  # pictures on which fake-quant and INT8 are compared end to end
# What a network that has learned its task stays within: INT8 differs from fake-quant by single steps, which turn only pictures that lie
# between two classes. More is a warning and no refusal, since a network that has learned little has many such pictures.
LEAST_AGREEMENT = 0.995  # share of pictures with fake-quant's class
LARGEST_GAP = 0.002  # of top-1 accuracy on a held-out split, to either side
SHIPPED = ("int8.pt", "int8.onnx")  # in a run's folder


def parity_batch(input_size: int) -> int:
    """How many pictures are compared layer by layer."""
    return max(8, PARITY_PIXELS // input_size**2)


def compare(graph: fx.GraphModule, executor: Executor, pictures: Pictures) -> dict:
    """Does INT8 compute what was trained? Layer by layer on a batch, end to end on more pictures; "refused" says what is off, or None."""
    report = quant.parity(graph, executor, next(in_order(pictures, parity_batch(pictures.input_size)))[0])
    refused = None
    try:
        report.check()
    except quant.QuantError as error:
        refused = str(error)
    some = subset(pictures, AGREEMENT_IMAGES, 0)
    return {"layer_steps": report.layer_steps, "worst_layer": report.worst.name, "output_steps": round(report.output_steps, 3),
            "agreement": agreement(graph, executor, some), "pictures": len(some), "refused": refused}  # fmt: skip


@torch.inference_mode()
def agreement(graph: fx.GraphModule, network: Executor | quant.Frozen | OnnxNetwork, pictures: Pictures) -> float:
    """Share of pictures to which fake-quant and an INT8 network, converted or read from a file, give the same class."""
    graph.eval()
    with quant.use_engine(network.engine):
        same = [graph(x).argmax(1) == network(x).argmax(1) for x, _ in in_order(pictures, 250)]
    return round(torch.cat(same).double().mean().item(), 6)


def doubts(found: dict, accuracy: dict[str, dict] | None = None) -> list[str]:
    """Warnings where INT8 does not end up where fake-quant does, though no single layer is off; [] where it does.

    found     what `compare` found as "parity" and `save_onnx` as "onnx", as far as there is either
    accuracy  the metrics of "fake_quant" and "int8" by held-out split
    """
    parity, file = found.get("parity", {}), found.get("onnx", {})
    shares = {"INT8": (parity.get("agreement"), parity), "int8.onnx": (file.get("agreement_with_fake_quant"), file)}
    words = [f"{name} gives the same class as fake-quant for only {share:.2%} of {seen['pictures']} pictures, at least "
             f"{LEAST_AGREEMENT:.1%} are to be expected" for name, (share, seen) in shares.items()
             if share is not None and share < LEAST_AGREEMENT]  # fmt: skip
    for split, metrics in (accuracy or {}).get("fake_quant", {}).items():
        gap = round(accuracy["int8"][split]["top1"] - metrics["top1"], 6)
        if abs(gap) > LARGEST_GAP:
            words.append(f"the top-1 accuracy of INT8 on {split} is {100 * abs(gap):.2f} points {'above' if gap > 0 else 'below'} "
                         f"fake-quant's, at most {100 * LARGEST_GAP:.1f} are to be expected")  # fmt: skip
    return words


def ship(trained: Trained, frozen: Any, folder: Path, pictures: Pictures, refused: str | None) -> dict:
    """Leave int8.onnx in a run's folder, and int8.pt where `frozen` is for one of torch's engines: {"onnx": what its check found}.

    refused  why the network does not compute what was trained, if so: then it is not shipped
    """
    for name in SHIPPED:
        (folder / name).unlink(missing_ok=True)
    if refused:
        return {}
    if isinstance(frozen, quant.Frozen):
        save_frozen(frozen, folder / "int8.pt")
    try:
        return {"onnx": save_onnx(trained, folder / "int8.onnx", pictures)}
    except quant.QuantError as error:  # a network without an ONNX form runs on its engine all the same
        return {"onnx": {"refused": str(error)}}


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


def save_onnx(trained: Trained, path: Path, pictures: Pictures) -> dict:
    """Write the network as ONNX, checked on some pictures; what was found. Raises UserError, and QuantError where it is refused.

    The file is compared with the integer reference, layer by layer on a batch, and with fake-quant by its classes on more pictures.
    """
    images = next(in_order(pictures, parity_batch(pictures.input_size)))[0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        report = quant.export_onnx(trained.graph, path, images, trained.metadata)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)})") from error
    some = subset(pictures, AGREEMENT_IMAGES, 0)
    found = {name: value for name, value in dataclasses.asdict(report).items() if name not in ("path", "agreement")}
    same = agreement(trained.graph, quant.load_frozen(path, "onnxruntime"), some)
    return found | {"agreement_with_reference": report.agreement, "agreement_with_fake_quant": same, "pictures": len(some)}


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


# ---- in words ------------------------------------------------------------------------------------------------


def parity_words(found: dict, float_ops: list[str]) -> str:
    """What `compare` found, and what the engine computes in float."""
    return (f"layers within {found['layer_steps']:g} steps (worst {found['worst_layer']}), output within {found['output_steps']:.1f}, "
            f"fake-quant's class for {found['agreement']:.2%} of {found['pictures']} pictures; in float: {_few(float_ops)}")  # fmt: skip


def onnx_words(found: dict) -> str:
    """What `save_onnx` found."""
    if "refused" in found:
        return f"not written, {found['refused']}"
    return (f"{found['bytes']:,} bytes, {found['integer_layers']} integer layers, in float: {_few(found['float_ops'])}; in onnxruntime "
            f"layers within {found['layer_steps']:g} steps of the integer reference, output within {found['output_steps']:.1f}, "
            f"fake-quant's class for {found['agreement_with_fake_quant']:.2%} of {found['pictures']} pictures")  # fmt: skip


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest if names else "nothing"
