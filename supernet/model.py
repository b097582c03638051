"""The supernet: every candidate of every slot, with its own batch norm and, once attached, its own quantizers."""

from dataclasses import replace

import torch
from torch import Tensor, nn

import quant
from nas.blocks import Block, build, init_weights
from nas.space import Choice, SearchSpace
from supernet.samplers import Gates


class Supernet(nn.Module):
    """stages[stage][slot][candidate] between a stem and a head; (N, C, H, W) images to (N, classes) logits."""

    def __init__(self, space: SearchSpace):
        super().__init__()
        self.space = space
        self.stem = build(space.stem)
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(build(spec) for spec in slot.candidates) for slot in stage.slots)
            for stage in space.stages
        )
        self.head = build(space.head)
        init_weights(self)
        quant.speed_up(self)
        for block in self.modules():
            if isinstance(block, Block) and block.residual:
                # a residual block begins as the identity: deep paths learn from the start
                nn.init.zeros_(block.project.bn.weight)

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """One path."""
        for module in self.path(choice):
            x = module(x)
        return x

    def path(self, choice: Choice) -> list[nn.Module]:
        """The modules of one path in order: stem, blocks, head."""
        blocks = [
            slot[op]
            for stage, depth, ops in zip(self.stages, choice.depths, choice.ops, strict=True)
            for slot, op in zip(stage[:depth], ops)
        ]
        return [self.stem, *blocks, self.head]

    def gated(self, op_gates: list[list[Gates]]) -> list[nn.Module]:
        """The modules that `forward_gated` may run, whatever the depths."""
        pairs = [
            pair for stage, ops in zip(self.stages, op_gates, strict=True) for pair in zip(stage, ops, strict=True)
        ]
        return [self.stem, *(slot[i] for slot, gates in pairs for i in gates.indices), self.head]

    def forward_gated(self, x: Tensor, op_gates: list[list[Gates]], depth_gates: list[Gates]) -> Tensor:
        """A weighted sum of alternatives in every slot, and of depths in every stage."""
        x = self.stem(x)
        for spec, stage, ops, depth in zip(self.space.stages, self.stages, op_gates, depth_gates, strict=True):
            weights = {spec.min_depth + i: weight for i, weight in zip(depth.indices, depth.weights, strict=True)}
            sinks = []
            for ran, (slot, gates) in enumerate(zip(stage[: max(weights)], ops), start=1):
                x = sum(
                    weight.to(x.device) * slot[i](x) for i, weight in zip(gates.indices, gates.weights, strict=True)
                )
                if ran in weights:
                    sinks.append(weights[ran].to(x.device) * x)
            x = sum(sinks)
        return self.head(x)

    def attach(self, config: quant.QuantConfig, images: Tensor) -> None:
        """Attach quantizers to every part, in place.

        Parameters stay the same objects; `images` (N, C, H, W) gives the input's shape.
        """
        inner = replace(config, quantize_input=False)
        examples = self._examples(images[:1])
        self.stem = quant.attach(self.stem, images[:1], config)
        for stage, inputs in zip(self.stages, examples):
            for slot, x in zip(stage, inputs):
                for i, block in enumerate(slot):
                    slot[i] = quant.attach(block, x, inner)
        self.head = quant.attach(self.head, examples[-1], inner)

    @torch.no_grad()
    def _examples(self, x: Tensor) -> list:
        """Zero inputs of every slot's shape, [stage][slot], and last the head's."""

        def size(channels, pixels):
            return x.new_zeros(1, channels, pixels, pixels)

        rows = [
            [size(slot.candidates[0].in_channels, pixels) for slot, pixels in zip(stage.slots, sizes)]
            for stage, sizes in zip(self.space.stages, self.space.sizes)
        ]
        return [*rows, size(self.space.head.in_channels, self.space.head_size)]

    def path_state(self, choice: Choice) -> dict[str, Tensor]:
        """The state dict of one path, with the keys of FrostNet(space.architecture(choice)): stem.*, blocks.0.*, .."""
        stem, *blocks, head = self.path(choice)
        named = [("stem", stem), *((f"blocks.{i}", block) for i, block in enumerate(blocks)), ("head", head)]
        state = {f"{prefix}.{key}": value for prefix, module in named for key, value in module.state_dict().items()}
        # the images' quantizer is in the stem here, in front of it there
        return {
            key.removeprefix("stem.") if key.startswith("stem.x_quant.") else key: value for key, value in state.items()
        }
