"""The shapes of everything in an integer graph, found by running it without data."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from quant.errors import QuantError
from quant.executors.reference import Reference
from quant.integer.graph import IntGraph, Op

Shape = tuple[int | None, ...]  # None: as many as the batch has images


class Shapes:
    """The shape of every operation's result by its name.

    It is a list of shapes where there are several tensors, None for what is no tensor. The graph is run for two sizes
    of batch: what differs between them depends on the batch.
    """

    def __init__(self, graph: IntGraph, input_shapes: list[tuple[int, ...]]):
        self._of_two, self._of_three = (
            _run_without_data(graph, [(batch, *shape[1:]) for shape in input_shapes]) for batch in (2, 3)
        )

    def __contains__(self, name: str) -> bool:
        return name in self._of_two

    def __getitem__(self, name: str) -> Shape | list[Shape] | None:
        return _merge(self._of_two[name], self._of_three[name])


class _ShapesOnly(Reference):
    """Runs a graph for its shapes alone: what changes only values is left out, which is three quarters of the time."""

    def conv(self, op: Op, x: Tensor) -> Tensor:
        # neither fake tensors of the weights nor casts: they take most of the time
        return F.conv2d(x, torch.empty(op.weight.shape, dtype=x.dtype), **op.attrs)

    def linear(self, op: Op, x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], op.weight.shape[0])

    def batch_norm(self, op: Op, x: Tensor) -> Tensor:
        return x

    instance_norm = batch_norm

    def add(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    mul = add

    def cat(self, op: Op, *xs: Tensor) -> Tensor:
        return torch.cat(xs, op.attrs["dim"])


def _run_without_data(graph: IntGraph, shapes: list[tuple[int, ...]]) -> dict[str, object]:
    """Every operation's result, tensors without data."""
    executor, rest, values = _ShapesOnly(graph), list(shapes), {}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for op in graph.ops:
            dtype = torch.uint8 if op.qparams else torch.float32
            try:
                values[op.name] = (
                    torch.empty(rest.pop(0), dtype=dtype) if op.kind == "input" else executor.step(op, values)
                )
            except RuntimeError as error:  # a method whose values are more than rounded reads its own parameters
                raise QuantError(
                    f"{op.name}: has no ONNX form here ({str(error).splitlines()[0]}); keep to a torch engine"
                ) from error
    return values


def _merge(two: object, three: object) -> Shape | list[Shape] | None:
    if isinstance(two, Tensor):
        return tuple(a if a == b else None for a, b in zip(two.shape, three.shape))
    if isinstance(two, (tuple, list)) and two and all(isinstance(v, Tensor) for v in two):
        return [_merge(a, b) for a, b in zip(two, three)]
    return None
