"""Models of one traceable part or of several, such as the two of a two-stage detector.

Each part is quantized, converted and frozen by itself. A model of several parts names them in an attribute `PARTS` and
gives in `part_examples(images)` an input for each, of the right shape. What lies between the parts stays float and
untraced. A model without `PARTS` is its own only part, called "".
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import quant
from quant.calibrate import calibrate as calibrate_part
from quant.executors import Executor


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The traceable parts of a model by name."""
    names = getattr(model, "PARTS", None)
    return {"": model} if names is None else {name: getattr(model, name) for name in names}


def examples_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """An input of the right shape for each part."""
    return model.part_examples(images) if hasattr(model, "PARTS") else {"": images}


def with_parts(model: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """The model with other parts; it shares everything else with the old one, which stays as it was."""
    if "" in parts:
        return parts[""]
    new = copy.copy(model)
    new.__dict__["_modules"] = {**model._modules, **parts}
    return new


@torch.no_grad()
def inputs_of(model: nn.Module, images: Tensor, run: Callable[[nn.Module, Tensor], Any]) -> dict[str, Tensor]:
    """What each part is given when `run(model, images)` uses the model."""
    if not hasattr(model, "PARTS"):
        return {"": images}
    seen: dict[str, Tensor] = {}
    hooks = [part.register_forward_pre_hook(_noting(seen, name)) for name, part in parts_of(model).items()]
    try:
        run(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _noting(seen: dict[str, Tensor], name: str) -> Callable:
    def note(part: nn.Module, args: tuple) -> None:
        seen.setdefault(name, args[0])

    return note


# ---- what quant does with a model, done with each part -----------------------------------------------------


def attach(model: nn.Module, images: Tensor, config: quant.QuantConfig) -> nn.Module:
    """quant.attach; `images` are such as the model will see."""
    examples = examples_of(model, images)
    return with_parts(
        model, {name: quant.attach(part, examples[name], config) for name, part in parts_of(model).items()}
    )


def plan(model: nn.Module, images: Tensor, config: quant.QuantConfig) -> list[quant.PlanRow]:
    """quant.plan: what `attach` would do."""
    examples = examples_of(model, images)
    return [row for name, part in parts_of(model).items() for row in quant.plan(part, examples[name], config)]


def calibrate(
    model: nn.Module, batches: Iterable[Tensor], config: quant.QuantConfig, method: str, run: Callable
) -> nn.Module:
    """quant.calibrate.calibrate on batches of images; `run(model, images)` uses the model as evaluation does."""
    if not hasattr(model, "PARTS"):
        return calibrate_part(model, batches, config, method)
    kept, model = list(batches), model.eval()  # read once for each part
    inputs = {name: _inputs(model, kept, run, name) for name in parts_of(model)}
    return with_parts(
        model, {name: calibrate_part(part, inputs[name], config, method) for name, part in parts_of(model).items()}
    )


def _inputs(model: nn.Module, batches: Iterable[Tensor], run: Callable, name: str) -> Iterator[Tensor]:
    found = (inputs_of(model, images, run) for images in batches)
    return (inputs[name] for inputs in found if len(inputs.get(name, ())))


def snap_biases(graph: nn.Module) -> None:
    """quant.snap_biases."""
    for part in parts_of(graph).values():
        quant.snap_biases(part)


def convert(graph: nn.Module, engine: str) -> nn.Module:
    """quant.convert: the model with an integer executor for each part."""
    return with_parts(graph, {name: quant.convert(part, engine) for name, part in parts_of(graph).items()}).eval()


def float_ops(converted: nn.Module) -> list[str]:
    """What the executors of a converted model compute in float."""
    executors: dict[str, Executor] = parts_of(converted)
    return [f"{name}.{op}" if name else op for name, executor in executors.items() for op in executor.float_ops]


def parity(graph: nn.Module, converted: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, quant.ParityReport]:
    """quant.parity of each part on its inputs."""
    pairs = zip(parts_of(graph).items(), parts_of(converted).values(), strict=True)
    return {name: quant.parity(part, executor, inputs[name]) for (name, part), executor in pairs}


class Frozen:
    """The frozen parts of a model, to be timed: a call with images runs each part, the others on example inputs."""

    def __init__(self, parts: Mapping[str, Callable], examples: Mapping[str, Tensor]):
        self.parts = dict(parts)
        self._rest = {name: x for name, x in examples.items() if name != next(iter(parts))}

    def __call__(self, images: Tensor) -> Any:
        first, *others = self.parts.items()
        found = first[1](images)
        return (found, *(part(self._rest[name]) for name, part in others)) if others else found


def freeze(converted: nn.Module, images: Tensor, inputs: Mapping[str, Tensor] | None = None) -> Frozen:
    """quant.freeze of each part, for what `inputs_of` found that it is given, or for its example."""
    examples = _channels_last(inputs or examples_of(converted, images))
    return Frozen({name: quant.freeze(part, examples[name]) for name, part in parts_of(converted).items()}, examples)


def freeze_float(model: nn.Module, images: Tensor, engine: str, inputs: Mapping[str, Tensor] | None = None) -> Frozen:
    """quant.freeze_float of each part for the runtime of `engine`, with inputs as in `freeze`."""
    examples = _channels_last(inputs or examples_of(model, images))
    return Frozen(
        {name: quant.freeze_float(part, examples[name], engine=engine) for name, part in parts_of(model).items()},
        examples,
    )


def _channels_last(examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for name, x in examples.items()
    }
