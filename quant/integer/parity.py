"""Parity of the integer network with what was trained: by layer on equal integer inputs, and end to end."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quant.engines import use_engine
from quant.errors import QuantError
from quant.executors import Executor
from quant.executors.reference import Reference
from quant.integer.graph import IntGraph, leaves
from quant.quantizers import Quantizer

MAX_LAYER_STEPS = 2


@dataclass(frozen=True)
class LayerParity:
    """Largest difference of one operation's output codes, in steps, all fed the same integer inputs."""

    name: str
    kind: str
    fake_quant_steps: float  # fake-quant against reference
    engine_steps: int  # engine against reference


@dataclass(frozen=True)
class ParityReport:
    """What `parity` found: layer by layer in `rows`, and fake-quant against the engine end to end, over all outputs.

    output_steps  the largest difference of an output, in steps of its own grid
    agreement     share of positions whose argmax over dimension 1 is equal: of pictures for logits (N, K), of pixels
                  for (N, K, H, W)
    """

    engine: str
    rows: tuple[LayerParity, ...]
    output_steps: float
    agreement: float
    images: int

    @property
    def worst(self) -> LayerParity:
        return max(self.rows, key=lambda r: max(r.fake_quant_steps, r.engine_steps))

    @property
    def layer_steps(self) -> float:
        return max(self.worst.fake_quant_steps, self.worst.engine_steps)

    def __str__(self) -> str:
        worst = self.worst
        return (
            f"parity on {self.engine}, {self.images} images: at most {self.layer_steps:g} steps in a layer "
            f"({worst.kind} {worst.name}), {self.output_steps:g} at the output, "
            f"{100 * self.agreement:.1f} % of equal argmax"
        )

    def check(self, max_layer_steps: float = MAX_LAYER_STEPS) -> "ParityReport":
        """Return the report; raise QuantError naming the layer where one is further off than `max_layer_steps`."""
        if not self.layer_steps <= max_layer_steps:  # NaN is no small difference
            raise QuantError(
                f"parity on {self.engine}: {self.worst.kind} {self.worst.name} is off by {self.layer_steps:g} steps "
                f"(at most {max_layer_steps:g}); train for this engine, or convert for another one"
            )
        return self


@torch.no_grad()
def parity(graph: fx.GraphModule, executor: Executor, images: Tensor) -> ParityReport:
    """Compare an attached graph with its integer network on `images`, (N, C, H, W) real and normalised as in training.

    Layer by layer: each operation gets the reference's integer inputs, once in fake-quant arithmetic and once on the
    engine, and is compared with the reference's output codes. End to end: the graph against the engine.
    """
    if not len(images) or not images.isfinite().all():
        raise QuantError("images: none, or values that are not finite; parity needs real pictures")
    was_training = graph.training
    graph.eval()
    reference = Reference(executor.graph)
    try:
        values = run_values(reference, images)
        by_engine = engine_steps(executor, values)
        fake_steps = _FakeQuantSteps(graph, reference, values).measure(images)
        expected = graph(images)
    finally:
        graph.train(was_training)
    with use_engine(executor.engine):
        got = executor(images)
    expected, got = leaves(expected), leaves(got)
    shapes, wanted = ([tuple(x.shape) for x in outputs] for outputs in (got, expected))
    if shapes != wanted:
        raise QuantError(f"{executor.engine} gives {shapes} where fake-quant gives {wanted}; take another engine")
    rows = tuple(LayerParity(n, executor.graph.op(n).kind, fake_steps.get(n, 0.0), s) for n, s in by_engine.items())
    steps = max(d / step for d, step in zip(differences(expected, got), output_steps(executor.graph), strict=True))
    return ParityReport(executor.engine, rows, steps, equal_argmax(expected, got), len(images))


def run_values(executor: Executor, *inputs: Tensor) -> dict[str, object]:
    """Every operation's value."""
    values, rest = {}, list(inputs)
    for op in executor.graph.ops:
        values[op.name] = rest.pop(0) if op.kind == "input" else executor.step(op, values)
    return values


def engine_steps(executor: Executor, values: dict[str, object]) -> dict[str, int]:
    """Per operation that makes codes: the engine's code minus the reference's, largest magnitude.

    Args:
        values: of the reference (`run_values`). Each operation of the engine gets its inputs from them.
    """
    steps, own = {}, {}
    with use_engine(executor.engine):
        for op in executor.graph.ops:
            value = values[op.name]
            if op.qparams is not None and isinstance(value, Tensor):
                got = executor.codes(executor.step(op, own))
                if got.shape != value.shape:
                    shapes = f"{tuple(got.shape)} and not {tuple(value.shape)}"
                    raise QuantError(f"{op.name}: {executor.engine} computes a tensor of {shapes}; take another engine")
                steps[op.name] = (got.int() - value.int()).abs().max().item()
                own[op.name] = executor.from_codes(value, op.qparams)
            else:
                own[op.name] = value if op.kind == "input" else executor.step(op, own)
    return steps


class _FakeQuantSteps(fx.Interpreter):
    """Runs the attached graph; notes how far each quantizer is from the reference and goes on with that one's value."""

    def __init__(self, graph: fx.GraphModule, reference: Reference, values: dict[str, object]):
        super().__init__(graph)
        self.reference, self.values, self.steps = reference, values, {}

    def measure(self, images: Tensor) -> dict[str, float]:
        self.run(images)
        return self.steps

    def run_node(self, node):
        result = super().run_node(node)
        if node.op != "call_module" or not isinstance(self.module.get_submodule(node.target), Quantizer):
            return result
        qparams = self.reference.graph.op(node.name).qparams
        expected = qparams.dequantize(self.values[node.name])
        self.steps[node.name] = round(((result - expected).abs().max() / qparams.scale).item(), 3)
        return expected


def output_steps(graph: IntGraph) -> list[float]:
    """The step of the grid that each output of the network lies on; QuantError where one lies on none."""
    ends = [graph.op(op.inputs[0]) if op.kind == "dequantize" else op for op in graph.outputs]
    for number, end in enumerate(ends):
        if end.qparams is None or end.attrs.get("several"):
            which = f"output {number} of the network" if len(ends) > 1 else "the network's output"
            raise QuantError(
                f"{which} ({end.name}) is not one tensor on a grid, so it has no step to compare in; quantize it"
            )
    return [end.qparams.scale for end in ends]


def differences(expected: list[Tensor], got: list[Tensor]) -> list[float]:
    """The largest difference of each output, in real units."""
    return [(a - b).abs().max().item() for a, b in zip(expected, got, strict=True)]


def equal_argmax(expected: list[Tensor], got: list[Tensor]) -> float:
    """Share of positions whose argmax over dimension 1 is equal, over all outputs."""
    same = [(a.argmax(1) == b.argmax(1)).flatten() for a, b in zip(expected, got, strict=True)]
    return torch.cat(same).double().mean().item()
