"""Attach fake-quantizers to any traceable model, without touching the model: one torch.fx pass.

    graph = attach(model, example_inputs)          # trains like the model, its activations and weights on integer grids

Where quantizers go. A *group* is a convolution or linear layer with the batch norm and the ReLU or ReLU6 that follow it alone (also
an addition, concatenation or batch norm with its ReLU). Every group's output, every other operation that makes new values (pooling by
averages, hard-swish, multiplication ..) and the model's input get an activation quantizer; a ReLU of a group moves into its
quantizer's clamp. Operations that only move or select values (max-pool, flatten, slices ..) stay on the grid of their input.
Weights are quantized by channel inside their layer; batch norm runs unfolded, because scaling a channel only scales its step: the
integer weights after folding are the ones trained on. Parameters stay the same objects, so optimizer state survives.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant import ops
from quant.errors import QuantError
from quant.grid import weight_qmax
from quant.layers import QUANTIZED
from quant.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, Quantizer

LEVELS = 255  # of 8-bit activations


@dataclass(frozen=True)
class QuantConfig:
    """How `attach` quantizes.

    engine      the engine the network is meant for (quant.grid.ENGINES); decides the range of the weights
    weight      method for weights, a key of WEIGHT_QUANTIZERS
    activation  method for activations, a key of ACTIVATION_QUANTIZERS
    momentum    weight of the newest batch in the activations' moving ranges
    quantize_input  False where the input already lies on a grid (a block inside a quantized network)
    """

    engine: str = "fbgemm"
    weight: str = "int8"
    activation: str = "int8"
    momentum: float = 0.05
    quantize_input: bool = True


def attach(model: nn.Module, example_inputs: tuple[Tensor, ...] | Tensor, config: QuantConfig = QuantConfig()) -> fx.GraphModule:
    """The model as a graph with quantizers attached; it shares every Parameter and buffer with `model`, which stays as it was.

    example_inputs: one batch (or a tuple of inputs) of the shapes to expect, (N, C, H, W) for an image model; runs once in evaluation
    mode. Raises QuantError where the model cannot be traced.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    graph = trace(model)
    _out_of_place(graph)
    _record_values(graph, inputs)
    _quantize_weights(graph, config)
    _quantize_activations(graph, config)
    graph.graph.lint()
    graph.recompile()
    for quantizer in quantizers(graph).values():
        quantizer.train(model.training)
    return graph


def trace(model: nn.Module) -> fx.GraphModule:
    """torch.fx's symbolic trace, its failure in words."""
    try:
        return fx.GraphModule(model, fx.Tracer().trace(model), type(model).__name__)
    except (fx.proxy.TraceError, TypeError) as error:
        raise QuantError(f"{type(model).__name__} cannot be traced by torch.fx ({error}); quantize the traceable part of it") from error


def quantizers(graph: nn.Module) -> dict[str, Quantizer]:
    """All quantizers in a model by name."""
    return {name: m for name, m in graph.named_modules() if isinstance(m, Quantizer)}


def set_mode(graph: nn.Module, *, observe: bool, fake_quant: bool) -> None:
    """Switch range tracking and rounding of all quantizers in a model."""
    for quantizer in quantizers(graph).values():
        quantizer.observe, quantizer.fake_quant = observe, fake_quant


def freeze_bn(graph: nn.Module) -> None:
    """Stop batch-norm statistics: running values normalise from here on. Call again after each `model.train()`."""
    for module in graph.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _out_of_place(graph: fx.GraphModule) -> None:
    """Replace in-place forms: what a quantizer saved for its backward must not change under it."""
    for node in graph.graph.nodes:
        if node.op == "call_module" and getattr(graph.get_submodule(node.target), "inplace", False):
            graph.set_submodule(node.target, ops.out_of_place(graph.get_submodule(node.target)))
        elif node.op in ("call_function", "call_method"):
            node.target = ops.OUT_OF_PLACE.get(node.target, node.target)
            if node.kwargs.get("inplace"):
                node.update_kwarg("inplace", False)
        if ops.kind(graph, node) == "dropout" and node.op == "call_function":
            # traced with today's value of `training`; a module follows train() and eval()
            p = ops.argument(node, 1, "p", 0.5)
            with graph.graph.inserting_after(node):
                graph.add_submodule(f"{node.name}_module", nn.Dropout(p))
                new = graph.graph.call_module(f"{node.name}_module", (node.args[0],))
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)


class _Recorder(fx.Interpreter):
    """Runs the graph once and notes on each node whether its value is a float tensor (or several), and one tensor's shape."""

    def run_node(self, node):
        value = super().run_node(node)
        several = value if isinstance(value, (tuple, list)) else (value,)
        node.meta["is_float"] = any(isinstance(v, Tensor) and v.is_floating_point() for v in several)
        node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        return value


def _record_values(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    modes = {m: m.training for m in graph.modules()}
    graph.eval()
    try:
        with torch.no_grad():
            _Recorder(graph).run(*inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise QuantError(f"example_inputs: the model cannot run on {shapes} ({str(error).splitlines()[0]})") from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _quantize_weights(graph: fx.GraphModule, config: QuantConfig) -> None:
    quantizer_class = _method(WEIGHT_QUANTIZERS, "weight", config.weight)
    done = {}  # a layer that is used twice, under one name or two, is one layer
    for node in graph.graph.nodes:
        layer = graph.get_submodule(node.target) if node.op == "call_module" else None
        if type(layer) in QUANTIZED:
            if layer not in done:
                done[layer] = QUANTIZED[type(layer)].from_float(layer, quantizer_class(weight_qmax(config.engine)))
            graph.set_submodule(node.target, done[layer])
        elif isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and layer not in done.values():
            warnings.warn(f"{node.target}: {type(layer).__name__} has no quantized form and stays float", stacklevel=3)


def _quantize_activations(graph: fx.GraphModule, config: QuantConfig) -> None:
    quantizer_class = _method(ACTIVATION_QUANTIZERS, "activation", config.activation)
    for node in list(graph.graph.nodes):
        if not _makes_values(graph, node) or (node.op == "placeholder" and not config.quantize_input):
            continue
        if _group_end(graph, node) is node:  # the group's last node carries the quantizer
            _insert(graph, node, quantizer_class(LEVELS, *ops.clamp_bounds(graph, node), config.momentum))


def _makes_values(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's value is a float tensor off its inputs' grids."""
    if node.op in ("output", "get_attr") or not node.meta["is_float"] or node.meta["shape"] is None:
        return False
    return ops.kind(graph, node) not in ops.ON_INPUT_GRID or _clamps_group(graph, node)


def _clamps_group(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is the ReLU or ReLU6 that ends a group (alone on a tensor others read too, it works on the integers instead)."""
    if ops.kind(graph, node) not in ("relu", "relu6"):
        return False
    source = node.args[0]
    return len(source.users) == 1 and ops.kind(graph, source) in ops.TAKES_CLAMP


def _group_end(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The last node of the group that `node` is in: conv -> batch norm -> ReLU, as far as each has no other reader."""
    if len(node.users) != 1:
        return node
    (user,) = node.users
    folds = ops.kind(graph, node) in ("conv", "linear") and ops.kind(graph, user) == "batch_norm"
    return _group_end(graph, user) if folds or _clamps_group(graph, user) else node


def _insert(graph: fx.GraphModule, node: fx.Node, quantizer: Quantizer) -> None:
    """Put `quantizer` behind `node`, in place of it where it is a ReLU that the quantizer's clamp computes."""
    name = _free_name(graph, node)
    graph.add_submodule(name, quantizer)
    with graph.graph.inserting_after(node):
        new = graph.graph.call_module(name, (node,))
    new.meta = {"is_float": True, "shape": node.meta["shape"]}
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    if _clamps_group(graph, node):
        new.args = (node.args[0],)
        graph.graph.erase_node(node)


def _free_name(graph: fx.GraphModule, node: fx.Node) -> str:
    """`features.0.1_quant` beside the module that made the value, `blocks.3.add_quant` in the module whose forward did."""
    if node.op == "call_module":
        base = node.target
    else:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        scope = stack[-1][0] if stack else ""
        base = f"{scope}.{ops.label(node)}".lstrip(".")
    taken = {name for name, _ in graph.named_modules()}
    names = (f"{base}_quant" if i == 0 else f"{base}_{i}_quant" for i in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def _method(table: dict, field: str, name: str):
    if name not in table:
        raise QuantError(f"{field}: {name!r} is not one of {', '.join(table)}")
    return table[name]
