"""What the settings say of each operation: the spec of its weight, of its inputs and of its gradient."""

from collections import defaultdict
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import fx

from quant.attach import ops
from quant.attach.config import QuantConfig
from quant.attach.layers import QUANTIZED
from quant.errors import QuantError
from quant.quantizers import FLOAT


class Wanted(NamedTuple):
    """A spec, and whether it is the configuration's own rather than an override's."""

    spec: str
    follows: bool


class NodeSpecs:
    """The specs of all nodes of a traced graph.

    exempt     nodes that settings keep float, with the setting
    weights    of the nodes whose weight is quantized
    gradients  of the same nodes; None: not quantized
    inputs     of the nodes whose inputs settings care for: layers, or what `op_types` names
    Raises QuantError where a glob matches nothing, and where calls of one layer would need two weights.
    """

    def __init__(self, graph: fx.GraphModule, names: dict[fx.Node, str], config: QuantConfig):
        self.graph, self.names, self.config = graph, names, config
        _check_globs(config, names.values())
        self.exempt = self._ignored() | self._skipped()
        self.weights = {node: wanted for node in names if (wanted := self._weight(node))}
        self.gradients = {node: self._wanted(node, "gradient").spec for node in self.weights}
        self._check_repeated_layers()
        read = ops.LAYERS if config.op_types is None else config.op_types
        self.inputs = {node: self._input(node) for node in names if self.op_type(node) in read}

    def op_type(self, node: fx.Node) -> str:
        return ops.op_type(self.graph, node)

    def override(self, nodes: Iterable[fx.Node], field: str) -> str | None:
        """What the last override of any of these nodes says of a field; None where none does."""
        names = [self.names[node] for node in nodes]
        given = [
            spec
            for override in self.config.overrides
            if any(fnmatchcase(name, override.match) for name in names)
            and (spec := getattr(override, field)) is not None
        ]
        return given[-1] if given else None

    def _wanted(self, node: fx.Node, field: str) -> Wanted:
        spec = self.override([node], field)
        return Wanted(getattr(self.config, field), True) if spec is None else Wanted(spec, False)

    def _ignored(self) -> dict[fx.Node, str]:
        globs = {
            node: next((glob for glob in self.config.ignore if fnmatchcase(name, glob)), None)
            for node, name in self.names.items()
        }
        return {node: f"ignored by {glob!r}" for node, glob in globs.items() if glob is not None}

    def _skipped(self) -> dict[fx.Node, str]:
        by_type, reasons = defaultdict(list), {}
        for node in self.names:
            by_type[self.op_type(node)].append(node)
        for kind, nodes in by_type.items():
            first, last = self.config.skip_first.get(kind, 0), self.config.skip_last.get(kind, 0)
            reasons |= dict.fromkeys(nodes[:first], f"skip_first {kind}: {first}")
            reasons |= dict.fromkeys(nodes[max(0, len(nodes) - last) :], f"skip_last {kind}: {last}")
        return reasons

    def _weight(self, node: fx.Node) -> Wanted | None:
        if node in self.exempt or not self._has_quantizable_weight(node):
            return None
        wanted = self._wanted(node, "weight")
        return None if wanted.spec == FLOAT else wanted

    def _has_quantizable_weight(self, node: fx.Node) -> bool:
        kind = ops.kind(self.graph, node)
        chosen = kind in ops.LAYERS and (self.config.op_types is None or kind in self.config.op_types)
        if not chosen or node.op != "call_module" or ops.target(self.graph, node) not in QUANTIZED:
            return False
        return kind == "linear" or ops.zero_padding(self.graph.get_submodule(node.target)) is not None

    def _input(self, node: fx.Node) -> Wanted:
        return Wanted(FLOAT, False) if node in self.exempt else self._wanted(node, "activation")

    def _check_repeated_layers(self) -> None:
        """A layer that is called twice has one weight."""
        wanted = defaultdict(set)
        for node in self.names:
            if node.op == "call_module" and ops.kind(self.graph, node) in ops.LAYERS:
                wanted[node.target].add(self.weights.get(node))
        for name, several in wanted.items():
            if len(several) > 1:
                raise QuantError(
                    f"{name}: is called several times, and settings want its one weight in several ways; treat all "
                    "calls alike"
                )


def _check_globs(config: QuantConfig, names: Iterable[str]) -> None:
    """A glob that matches nothing is a misspelt name."""
    names = list(names)
    shared = [glob for globs in config.share for glob in globs]
    for glob in [*config.ignore, *(override.match for override in config.overrides), *shared]:
        if not any(fnmatchcase(name, glob) for name in names):
            near = get_close_matches(glob, names, 3, 0.3) or names[:3]
            raise QuantError(f"{glob!r} matches no layer or node; there are {', '.join(near)} ..")
