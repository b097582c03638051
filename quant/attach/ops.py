"""What the operations in a traced graph are: one table from torch's many spellings to a few kinds."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

CATS = (torch.cat, torch.concat, torch.concatenate)
# Functions that a trace freezes with that moment's value of `training`, and the modules that follow train() and eval()
DROPOUTS = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d, F.dropout3d: nn.Dropout3d,
            F.alpha_dropout: nn.AlphaDropout}  # fmt: skip

_KINDS = {
    "conv": (nn.Conv2d,),
    "linear": (nn.Linear,),
    "deconv": (nn.ConvTranspose2d,),
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d),
    "instance_norm": (nn.InstanceNorm2d,),
    "relu": (nn.ReLU, F.relu, torch.relu, "relu"),
    "relu6": (nn.ReLU6, F.relu6),
    "add": (operator.add, torch.add, "add"),
    "mul": (operator.mul, torch.mul, "mul"),
    "cat": CATS,
    "dropout": (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, *DROPOUTS),
    "move": (
        nn.Identity,
        nn.Flatten,
        nn.MaxPool2d,
        F.max_pool2d,
        torch.flatten,
        torch.reshape,
        torch.transpose,
        torch.permute,
        torch.chunk,
        torch.split,
        torch.squeeze,
        torch.unsqueeze,
        operator.getitem,
        getattr,
        "flatten",
        "view",
        "reshape",
        "transpose",
        "permute",
        "contiguous",
        "chunk",
        "split",
        "squeeze",
        "unsqueeze",
        "size",
        "dim",
    ),
}


def is_stochastic_depth(target) -> bool:
    """Whether a function or class is torchvision's stochastic depth.

    Its name decides: to import torchvision takes seconds, and a model without it does not need it.
    """
    return getattr(target, "__module__", None) == "torchvision.ops.stochastic_depth"


def kind_of(target) -> str | None:
    """The kind of a function, a method's name or a module class; None for what has none."""
    return "dropout" if is_stochastic_depth(target) else _KIND_OF.get(target)


_KIND_OF = {target: kind for kind, targets in _KINDS.items() for target in targets}

# values are selected, moved or cut off at zero; those of "resize" are averages, which are rounded to the same grid
ON_INPUT_GRID = ("relu", "dropout", "move", "resize")
_RESIZED = {"nearest": "move", "bilinear": "resize"}  # by mode
LAYERS = ("conv", "linear", "deconv")  # kinds with a weight
TAKES_CLAMP = (*LAYERS, "batch_norm", "instance_norm", "add", "mul", "cat")  # a ReLU behind these joins their group
PADS = {
    nn.ZeroPad2d: "constant",
    nn.ConstantPad2d: "constant",
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
}
AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean")
MAXIMA = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, F.max_pool2d, F.adaptive_max_pool2d)
POSITIVE = (
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Softmax,
    torch.sigmoid,
    F.sigmoid,
    F.hardsigmoid,
    F.softmax,
    "sigmoid",
    "softmax",
)
OUT_OF_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul, "add_": "add", "mul_": "mul", "relu_": "relu"}


def kind(graph: fx.GraphModule, node: fx.Node) -> str:
    """The kind of a node: a key above, "function" for everything else that computes, "input" for a placeholder."""
    if node.op == "placeholder":
        return "input"
    if padding(graph, node):
        return "move"
    if node.op == "call_module":
        module = graph.get_submodule(node.target)
        if isinstance(module, nn.Upsample):
            return _RESIZED.get(module.mode, "function")
        if isinstance(module, nn.InstanceNorm2d) and module.track_running_stats:
            return "function"  # of running statistics in evaluation
        return next(filter(None, map(kind_of, type(module).__mro__)), "function")
    name = kind_of(node.target) or "function"
    if node.target is F.interpolate and not argument(node, 6, "antialias", False):
        return _RESIZED.get(argument(node, 3, "mode", "nearest"), "function")
    if name == "cat" and not isinstance(node.args[0], (tuple, list)):
        return "function"  # of the parts of something that makes several
    of_two_tensors = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs
    return "function" if name in ("add", "mul") and not of_two_tensors else name


def dropout_module(target) -> type[nn.Module] | None:
    """The module for a functional dropout; None for any other target."""
    if is_stochastic_depth(target):
        from torchvision.ops import StochasticDepth  # has been imported: the target is its function

        return StochasticDepth
    return DROPOUTS.get(target)


def folds(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a batch norm behind a node scales its output channels: of a convolution, or a linear layer on vectors."""
    behind = node.args[0] if kind(graph, node) == "batch_norm" else node
    name = kind(graph, behind)
    return name in LAYERS and (name != "linear" or len(behind.meta["shape"]) == 2)


def target(graph: fx.GraphModule, node: fx.Node):
    """What a node calls: a module's class, a function, or a method's name."""
    return type(graph.get_submodule(node.target)) if node.op == "call_module" else node.target


def op_type(graph: fx.GraphModule, node: fx.Node) -> str:
    """The kind of a node as settings name it (OP_TYPES): pooling of either sort is "pool", resizing a "function"."""
    if node.op.startswith("call") and target(graph, node) in AVERAGES + MAXIMA:
        return "pool"
    name = kind(graph, node)
    return {"relu6": "relu", "resize": "function"}.get(name, name)


def is_nonnegative(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's values cannot be below zero, as far as the graph itself shows."""
    name = kind(graph, node)
    if name in ("relu", "relu6") or (node.op.startswith("call") and target(graph, node) in POSITIVE):
        return True
    averages = node.op.startswith("call") and target(graph, node) in AVERAGES
    keeps_sign = averages or name in ("move", "resize", "dropout", "add", "mul", "cat")
    sources = [n for n in node.all_input_nodes if n.meta.get("is_float")]
    return keeps_sign and bool(sources) and all(is_nonnegative(graph, n) for n in sources)


def zero_padding(layer: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of zeros on either side of a convolution's input.

    None where it pads otherwise, which no engine does as integers.
    """
    if layer.padding_mode != "zeros":
        return None
    if not isinstance(layer.padding, str):
        return layer.padding
    left, right, top, bottom = layer._reversed_padding_repeated_twice  # "same" and "valid" worked out
    return (top, left) if (left, top) == (right, bottom) else None


def padding(graph: fx.GraphModule, node: fx.Node) -> tuple[tuple[int, int, int, int], str] | None:
    """(columns left and right, rows above and below) and mode of a node that pads images with their values or zeros."""
    module = graph.get_submodule(node.target) if node.op == "call_module" else None
    if type(module) in PADS:
        sides, mode, value = module.padding, PADS[type(module)], getattr(module, "value", 0)
    elif node.target is F.pad:
        sides, mode, value = (argument(node, *at) for at in ((1, "pad", ()), (2, "mode", "constant"), (3, "value", 0)))
    else:
        return None
    is_move = mode in ("reflect", "replicate") or (mode == "constant" and not value)
    pictures = len(sides) == 4 and len(node.meta.get("shape") or ()) == 4 and all(isinstance(n, int) for n in sides)
    return (tuple(sides), mode) if is_move and pictures else None


def label(node: fx.Node) -> str:
    """A short name for a functional node: "add", "cat", "mean"."""
    return node.target.strip("_") if isinstance(node.target, str) else node.target.__name__.strip("_")


def argument(node: fx.Node, position: int, name: str, default):
    """An argument of a functional node, however it was passed."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def setting(call, position: int, name: str, default=None):
    """An argument of a quant.integer.graph.Call: a module's attribute, else as it was passed."""
    if isinstance(call.function, nn.Module):
        return getattr(call.function, name, default)
    return call.args[position] if len(call.args) > position else call.kwargs.get(name, default)


def pair(value) -> list[int]:
    """A size by rows and columns, where one number stands for both."""
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


def out_of_place(module: nn.Module) -> nn.Module:
    """A parameterless module (ReLU, Hardswish, Dropout ..) that leaves its input alone."""
    new = type(module).__new__(type(module))
    new.__dict__.update(module.__dict__)
    new.inplace = False
    return new


def clamp_bounds(graph: fx.GraphModule, node: fx.Node) -> tuple[float, float]:
    """The (floor, ceiling) that a node's activation sets: (0, inf) for ReLU, (0, 6) for ReLU6, else none."""
    name = kind(graph, node)
    return {"relu": (0.0, float("inf")), "relu6": (0.0, 6.0)}.get(name, (float("-inf"), float("inf")))
