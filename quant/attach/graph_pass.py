"""Attach fake-quantizers to any traceable model, without touching the model: one torch.fx pass.

    graph = attach(model, example_inputs)          # trains like the model, its activations and weights on integer grids

Where quantizers go. A *group* is a convolution or linear layer with the batch norm and the ReLU or ReLU6 that follow it
alone (also an addition, concatenation, batch or instance norm with its ReLU). Every group's output, every other
operation that makes new values (pooling by averages, hard-swish, multiplication ..) and the model's input get an
activation quantizer; a ReLU of a group moves into its quantizer's clamp. Operations that only move or select values
(max-pool, flatten, slices, padding ..) stay on the grid of their input; so do bilinear resizings, whose averages are
rounded to it (quant.quantizers.SameGrid: no range of their own). Where layers read activations by another method than
the rest (QuantConfig), a tensor that others read too gets a second quantizer on the way to them. With `op_types` only
the inputs of the chosen kinds get one. quant/attach/placement.py decides, this file carries it out. Weights are
quantized by channel inside their layer; batch norm runs unfolded, because scaling a channel only scales its step: the
integer weights after folding are the ones trained on. Parameters stay the same objects, so optimizer state survives.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.attach import ops
from quant.attach.config import QuantConfig
from quant.attach.layers import QUANTIZED, take_over
from quant.attach.placement import decide
from quant.attach.plan import Plan, PlanRow, Site
from quant.engines import weight_qmax
from quant.errors import QuantError
from quant.quantizers import FLOAT, Quantizer, SameGrid, activation_quantizer, gradient_quantizer, weight_quantizer
from quant.quantizers.gradients import mix
from quant.statistics import FROZEN


def attach(
    model: nn.Module, example_inputs: tuple[Tensor, ...] | Tensor, config: QuantConfig = QuantConfig()
) -> fx.GraphModule:
    """The model as a graph with quantizers attached.

    It shares every Parameter and buffer with `model`, which stays as it was.

    example_inputs: one batch (or a tuple of inputs) of the shapes to expect, (N, C, H, W) for an image model; runs once
    in evaluation mode. The graph's `plan_rows` say what each node got. Raises QuantError where the model cannot be
    traced or has quantizers already.
    """
    graph = prepare(model, example_inputs)
    decided = decide(graph, config)
    graph.plan_rows = decided.rows
    _quantize_weights(graph, config, decided)
    _quantize_activations(graph, decided)
    if config.freeze_bn:
        _freeze_batch_norms(graph)
    graph.graph.lint()
    graph.recompile()
    for module in graph.modules():
        if isinstance(module, (Quantizer, *FROZEN.values())):
            module.train(model.training)
    return graph


def plan(
    model: nn.Module, example_inputs: tuple[Tensor, ...] | Tensor, config: QuantConfig = QuantConfig()
) -> list[PlanRow]:
    """What `attach` would do: a row for each node, with its quantizers or the reason for none.

    The model stays as it was.
    """
    return decide(prepare(model, example_inputs), config).rows


def prepare(model: nn.Module, example_inputs: tuple[Tensor, ...] | Tensor) -> fx.GraphModule:
    """The traced model without quantizers, out of place, a shape noted at each node."""
    attached = next((name for name, m in model.named_modules() if isinstance(m, Quantizer)), None)
    if attached is not None:
        raise QuantError(f"{type(model).__name__} has quantizers already ({attached}); attach to the float model")
    graph = trace(model)
    _normalise(graph)
    _out_of_place(graph)
    _record_values(graph, example_inputs if isinstance(example_inputs, tuple) else (example_inputs,))
    return graph


def trace(model: nn.Module) -> fx.GraphModule:
    """torch.fx's symbolic trace, its failure in words."""
    try:
        return fx.GraphModule(model, fx.Tracer().trace(model), type(model).__name__)
    except (fx.proxy.TraceError, TypeError) as error:
        raise QuantError(
            f"{type(model).__name__} cannot be traced by torch.fx ({error}); quantize the traceable part of it"
        ) from error


def quantizers_of(graph: nn.Module) -> dict[str, Quantizer]:
    """All quantizers in a model by name."""
    return {name: m for name, m in graph.named_modules() if isinstance(m, Quantizer)}


def set_bits(graph: nn.Module, bits: int) -> None:
    """Change the width of the quantizers that follow the configuration's `weight` and `activation` (not overrides, not
    `residual`, and so not those that serve both because the two are equal). Raises QuantError, and changes nothing,
    where one cannot have that width."""
    following = [quantizer for quantizer in quantizers_of(graph).values() if quantizer.follows_default]
    for quantizer in following:
        quantizer.check_bits(bits)
    for quantizer in following:
        quantizer.set_bits(bits)


def extra_loss(graph: nn.Module) -> Tensor | float:
    """The sum of the quantizers' regularisers; add it to the training loss."""
    return sum(quantizer.extra_loss() for quantizer in quantizers_of(graph).values())


def quantizer_parameters(graph: nn.Module, lr: float | None = None) -> list[dict]:
    """Parameter groups for an optimizer: what quantizers learn, one group per relative learning rate.

    They are without weight decay and GradBoost.

    Args:
        graph: An attached model.
        lr: Learning rate of the weights; None leaves "lr" out, for a loop that multiplies its rate by "lr_scale".
    """
    by_scale = {}
    for quantizer in quantizers_of(graph).values():
        learned = [p for p in quantizer.parameters(recurse=False) if p.requires_grad]
        by_scale.setdefault(quantizer.lr_scale, []).extend(learned)
    groups = []
    for scale, params in by_scale.items():
        if params:
            rate = {} if lr is None else {"lr": lr * scale}
            groups.append({"params": params, "lr_scale": scale, **rate, "weight_decay": 0.0, "boost": False})
    return groups


def _normalise(graph: fx.GraphModule) -> None:
    """One spelling for calls that name their first arguments."""
    for node in graph.graph.nodes:
        cat, layer = node.target in ops.CATS, node.op == "call_module" or node.target in (F.interpolate, F.pad)
        first = "tensors" if cat else "input" if layer else None
        if first in node.kwargs:
            node.args = (node.kwargs[first], *node.args)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != first}


def _out_of_place(graph: fx.GraphModule) -> None:
    """Replace in-place forms: what a quantizer saved for its backward must not change under it."""
    for node in graph.graph.nodes:
        if node.op == "call_module" and getattr(graph.get_submodule(node.target), "inplace", False):
            graph.set_submodule(node.target, ops.out_of_place(graph.get_submodule(node.target)))
        elif node.op in ("call_function", "call_method"):
            node.target = ops.OUT_OF_PLACE.get(node.target, node.target)
            if node.kwargs.get("inplace"):
                node.update_kwarg("inplace", False)
        if node.op == "call_function" and (module := ops.dropout_module(node.target)):
            _dropout_to_module(graph, node, module)


def _dropout_to_module(graph: fx.GraphModule, node: fx.Node, module: type[nn.Module]) -> None:
    """Replace a functional dropout, whose trace keeps one value of `training`, by a module that follows train()."""
    chosen = (ops.argument(node, 1, "p", 0.5), *([node.args[2]] if ops.is_stochastic_depth(node.target) else []))
    with graph.graph.inserting_after(node):
        graph.add_submodule(f"{node.name}_module", module(*chosen).train(graph.training))
        new = graph.graph.call_module(f"{node.name}_module", (node.args[0],))
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)


class _Recorder(fx.Interpreter):
    """Runs the graph once. Notes on each node whether its value is float tensors, and the shape of a single one."""

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


def _quantize_weights(graph: fx.GraphModule, config: QuantConfig, decided: Plan) -> None:
    layers = {node: graph.get_submodule(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    done = {}  # a layer that is used twice, under one name or two, is one layer
    for node, layer in layers.items():
        if node in decided.weights:
            if layer not in done:
                done[layer] = _quantized_layer(node, layer, config, decided, mix(config.seed, len(done)))
            graph.set_submodule(node.target, done[layer])
        elif isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and type(layer) not in QUANTIZED:
            warnings.warn(f"{node.target}: {type(layer).__name__} has no quantized form and stays float", stacklevel=3)
        elif isinstance(layer, nn.modules.conv._ConvNd) and ops.zero_padding(layer) is None:
            words = f"padding {layer.padding!r}, {layer.padding_mode!r}"
            warnings.warn(
                f"{node.target}: {words} has no quantized form and the layer stays float; pad alike on both sides, "
                "with zeros",
                stacklevel=3,
            )


def _quantized_layer(node: fx.Node, layer: nn.Module, config: QuantConfig, decided: Plan, seed: int) -> nn.Module:
    kind, wanted, gradient = QUANTIZED[type(layer)], decided.weights[node], decided.gradients[node]
    try:
        quantizer = weight_quantizer(wanted.spec, weight_qmax(config.engine), kind.channel_axis)
        new = kind.from_float(layer, quantizer.to(layer.weight.device))
    except QuantError as error:
        raise QuantError(f"{node.target}: {error}") from error
    new.weight_quant.follows_default = wanted.follows
    if gradient not in (None, FLOAT):
        new.gradient_quant = gradient_quantizer(gradient, seed)
    return new


def _quantize_activations(graph: fx.GraphModule, decided: Plan) -> None:
    made: dict[str, Quantizer] = {}
    for site in decided.sites:
        if site.name not in made:
            made[site.name] = _activation_quantizer(graph, site)
            made[site.name].follows_default = site.follows
            graph.add_submodule(site.name, made[site.name].to(_device(graph)))
        _insert(graph, site)


def _activation_quantizer(graph: fx.GraphModule, site: Site) -> Quantizer:
    if site.like is not None:
        return SameGrid(graph.get_submodule(site.like.meta["quantized_by"].target))
    return activation_quantizer(site.spec, site.floor, site.ceiling, site.signed)


def _insert(graph: fx.GraphModule, site: Site) -> None:
    """Put a site's quantizer behind its node, in place of it where it is a ReLU that the quantizer's clamp computes."""
    node = site.node
    source = node.meta.get("quantized_by", node)
    with graph.graph.inserting_after(source):
        new = graph.graph.call_module(site.name, (source,))
    new.meta = {"is_float": True, "shape": node.meta["shape"], "nn_module_stack": node.meta.get("nn_module_stack", {})}
    if site.readers is not None:
        for reader in site.readers:
            reader.replace_input_with(source, new)
        return
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    node.meta["quantized_by"] = new
    if site.absorbs:
        new.args = (node.args[0],)
        graph.graph.erase_node(node)


def _freeze_batch_norms(graph: fx.GraphModule) -> None:
    for name, module in list(graph.named_modules()):
        if type(module) in FROZEN:
            graph.set_submodule(name, take_over(FROZEN[type(module)], module))


def _device(graph: fx.GraphModule) -> torch.device:
    return next((p.device for p in graph.parameters()), torch.device("cpu"))
