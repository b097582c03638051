"""ONNX files to deploy: written from the integer graph, checked, run, and compared with the reference."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from quant.attach.graph_pass import prepare
from quant.errors import QuantError
from quant.executors.onnxruntime import OnnxRuntime, optimised
from quant.executors.reference import Reference
from quant.executors.sessions import to_bytes
from quant.export import FORMATS
from quant.export.onnx.graph import to_onnx
from quant.integer.frozen import OnnxNetwork
from quant.integer.graph import IntGraph, leaves
from quant.integer.lowering import lower
from quant.integer.parity import MAX_LAYER_STEPS, differences, engine_steps, equal_argmax, output_steps, run_values
from quant.quantizers import Quantizer

CHECKER = FORMATS["onnx"].engine
CHECK_IMAGES = 4
FLOAT_TOLERANCE = 1e-3  # of the largest output


@dataclass(frozen=True)
class OnnxReport:
    """What `export_onnx` wrote and found when it ran the file in onnxruntime beside the reference.

    max_difference  largest at an output, in real units; agreement is the share of equal argmax over dimension 1
    layer_steps     largest difference of one operation on equal codes, in steps (this and what follows: not for a float
                    model)
    output_steps    largest difference at an output, in steps of its own grid
    integer_layers  convolutions and linear layers that run as integers; float_ops names what is computed in float
    """

    path: str
    bytes: int
    images: int
    max_difference: float
    agreement: float
    layer_steps: int = 0
    output_steps: float = 0.0
    integer_layers: int = 0
    float_ops: tuple[str, ...] = ()


def export_onnx(
    model: nn.Module, path: Path | str, images: Tensor | None = None, metadata: Mapping[str, str] | None = None
) -> OnnxReport:
    """Write an attached, trained graph (or a float model) as ONNX with a dynamic batch, opset 18, and check the file.

    images    (N, C, H, W) real, to compare on; their size is the network's input size. Default: noise of the size it
              was attached with.
    metadata  texts to store in the file, beside what the comparison found. The same call writes the same bytes.
    Raises QuantError where an operation has no ONNX form, a layer is off by more than 2 steps, or one with integer
    weights stays float, and UserError where the file cannot be written.
    """
    quantized = any(isinstance(m, Quantizer) for m in model.modules())
    if not quantized and images is None:
        raise QuantError("images: a float model needs some to be traced with")
    with torch.no_grad():
        model = model if quantized else copy.deepcopy(model).cpu().eval()
        graph = lower(model if quantized else prepare(model, images))
        images = _noise(graph) if images is None else images
        proto = to_onnx(graph, [tuple(images.shape)])
        # its inference of shapes does not know a last window cut short; onnxruntime's does
        onnx.checker.check_model(proto)
        network = OnnxNetwork(to_bytes(proto), CHECKER)
        got = network(images)
        got = leaves(got)
        found = _compare_codes(graph, proto, images, got) if quantized else _compare_float(leaves(model(images)), got)
    texts = {name: str(value) for name, value in found.items() if name != "float_ops"} | dict(metadata or {})
    onnx.helper.set_model_props(proto, dict(sorted(texts.items())))
    network.model = to_bytes(proto)  # now with what was found
    network.save(path)
    return OnnxReport(str(path), len(network.model), len(images), **found)


def _noise(graph: IntGraph) -> Tensor:
    (shape,) = (op.attrs["shape"] for op in graph.ops if op.kind == "input")
    return torch.randn(CHECK_IMAGES, *shape[1:], generator=torch.Generator().manual_seed(0))


def _compare_codes(graph: IntGraph, proto: onnx.ModelProto, images: Tensor, got: list[Tensor]) -> dict:
    """What the file computes against the integer graph: each operation on equal codes, and end to end."""
    executor, reference = OnnxRuntime(graph, CHECKER), Reference(graph)
    steps = engine_steps(executor, run_values(reference, images))
    worst = max(steps, key=steps.get)
    if steps[worst] > MAX_LAYER_STEPS:
        mend = "train with engine onnxruntime if weights above 63 saturate on this CPU, else keep to a torch engine"
        raise QuantError(f"onnxruntime: {worst} is off by {steps[worst]} steps (at most {MAX_LAYER_STEPS}); {mend}")
    fused = _integer_layers(graph, optimised(proto))
    expected = leaves(reference(images))
    furthest = max(d / step for d, step in zip(differences(expected, got), output_steps(graph), strict=True))
    found = _compare(expected, got) | {
        "layer_steps": steps[worst],
        "output_steps": round(furthest, 2),
        "integer_layers": fused,
    }
    return found | {"float_ops": tuple(executor.float_ops)}


def _compare_float(expected: list[Tensor], got: list[Tensor]) -> dict:
    for number, (one, difference) in enumerate(zip(expected, differences(expected, got), strict=True)):
        if not difference <= FLOAT_TOLERANCE * max(1.0, one.abs().max().item()):
            raise QuantError(
                f"onnxruntime is off by {difference:g} at output {number}; a call of the model has no ONNX form here"
            )
    return _compare(expected, got)


def _compare(expected: list[Tensor], got: list[Tensor]) -> dict:
    difference = float(f"{max(differences(expected, got)):.6g}")
    return {"max_difference": difference, "agreement": round(equal_argmax(expected, got), 6)}


def _integer_layers(graph: IntGraph, optimised: onnx.ModelProto) -> int:
    """How many layers run as integers; QuantError where one with integer weights does not."""
    fused = sum(node.op_type in ("QLinearConv", "QGemm") for node in optimised.graph.node)
    wanted = sum(op.kind in ("conv", "linear", "batch_norm") for op in graph.ops)
    if fused < wanted:
        left = [n.name for n in optimised.graph.node if n.op_type in ("Conv", "FusedConv", "Gemm", "MatMul")]
        raise QuantError(
            f"onnxruntime left {wanted - fused} of {wanted} integer layers in float: {', '.join(left[:3])} .."
        )
    return fused
