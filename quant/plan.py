"""Where quantizers go: the decisions of `attach`, for each node of a traced graph a quantizer or the reason for none."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import fx

from quant import ops
from quant.config import QuantConfig
from quant.errors import QuantError
from quant.layers import QUANTIZED
from quant.quantizers import ACTIVATION_QUANTIZERS, FLOAT, parse_spec


@dataclass(frozen=True)
class PlanRow:
    """What one node gets. `weight` and `output` are specs of the quantizers on its weight and its result, `reads` and `makes` the names
    of those that its inputs pass and its result passes; "" where there is none. `reason` says why a node has no quantizer, or stays
    float."""

    name: str
    op: str
    weight: str
    reads: str
    output: str
    makes: str
    reason: str


@dataclass(frozen=True)
class Site:
    """A place for an activation quantizer: the value of `node`, for `readers` (None: for all).

    floor ceiling signed  as ActivationQuantizer takes them
    absorbs               whether the quantizer computes the ReLU that `node` is
    for_layers            whether only layers read the value there
    """

    node: fx.Node
    name: str
    spec: str
    floor: float = float("-inf")
    ceiling: float = float("inf")
    signed: bool = True
    readers: tuple[fx.Node, ...] | None = None
    absorbs: bool = False
    for_layers: bool = True


@dataclass(frozen=True)
class Plan:
    """weights: the specs of layer nodes' weights; sites in the order in which they are to be filled; rows for all nodes."""

    weights: dict[fx.Node, str]
    sites: list[Site]
    rows: list[PlanRow]


def decide(graph: fx.GraphModule, config: QuantConfig) -> Plan:
    """The plan for a traced graph whose nodes carry their shapes. Raises QuantError where settings contradict each other."""
    return _Planner(graph, config).plan()


class _Planner:
    def __init__(self, graph: fx.GraphModule, config: QuantConfig):
        self.graph, self.config = graph, config
        self.nodes = [n for n in graph.graph.nodes if n.op not in ("output", "get_attr")]
        self.names = node_names(graph, self.nodes)
        self.exempt = self._exempt()
        self.weights = {n: spec for n in self.nodes if (spec := self._weight(n))}
        self.wants = {n: self._wants(n) for n in self.nodes if self._type(n) in (config.op_types or ops.LAYERS)}

    def plan(self) -> Plan:
        sites = self._tensor_sites() if self.config.op_types is None else []
        sites = self._share(sites + self._edge_sites({site.node: site.spec for site in sites}))
        return Plan(self.weights, sites, self._rows(sites))

    # what each operation gets

    def _type(self, node: fx.Node) -> str:
        return ops.op_type(self.graph, node)

    def _exempt(self) -> dict[fx.Node, str]:
        """Nodes that settings keep float, with the setting."""
        reasons, by_type = {}, defaultdict(list)
        for node in self.nodes:
            by_type[self._type(node)].append(node)
            globs = [glob for glob in self.config.ignore if fnmatchcase(self.names[node], glob)]
            if globs:
                reasons[node] = f"ignored by {globs[0]!r}"
        for kind, nodes in by_type.items():
            first, last = self.config.skip_first.get(kind, 0), self.config.skip_last.get(kind, 0)
            reasons |= dict.fromkeys(nodes[:first], f"skip_first {kind}: {first}")
            reasons |= dict.fromkeys(nodes[max(0, len(nodes) - last) :], f"skip_last {kind}: {last}")
        return reasons

    def _override(self, names: list[str], field: str) -> str | None:
        """The last override's word on `field` for any of these names."""
        words = (getattr(o, field) for o in self.config.overrides if any(fnmatchcase(name, o.match) for name in names))
        return next(reversed([word for word in words if word is not None]), None)

    def _weight(self, node: fx.Node) -> str | None:
        kind = ops.kind(self.graph, node)
        chosen = kind in ops.LAYERS and (self.config.op_types is None or kind in self.config.op_types)
        if not chosen or node in self.exempt or node.op != "call_module" or ops.target(self.graph, node) not in QUANTIZED:
            return None
        spec = self._override([self.names[node]], "weight") or self.config.weight
        return None if spec == FLOAT else spec

    def _wants(self, node: fx.Node) -> str:
        """The spec by which an operation reads its inputs."""
        if node in self.exempt:
            return FLOAT
        return self._override([self.names[node]], "activation") or self.config.activation

    # one quantizer for each tensor

    def _tensor_sites(self) -> list[Site]:
        return [site for node in self.nodes if (site := self._tensor_site(node))]

    def _tensor_site(self, node: fx.Node) -> Site | None:
        if not _makes_values(self.graph, node) or _group_end(self.graph, node) is not node:
            return None
        spec, for_layers = self._tensor_spec(node)
        if spec == FLOAT:
            return None
        floor, ceiling = ops.clamp_bounds(self.graph, node)
        signed, absorbs = not ops.is_nonnegative(self.graph, node), _clamps_group(self.graph, node)
        return Site(node, f"{self.names[node]}_quant", spec, floor, ceiling, signed, None, absorbs, for_layers)

    def _tensor_spec(self, node: fx.Node) -> tuple[str, bool]:
        """The spec for a tensor, and whether it is what layers want of it."""
        wanted = {self.wants.get(reader, "") for reader in _readers(self.graph, node)}
        word = self._override([self.names[n] for n in _group(self.graph, node)], "output")
        if word is not None:
            return word, False
        if node.op == "placeholder" and (not self.config.quantize_input or wanted == {FLOAT}):
            return FLOAT, False
        if node in self.exempt and self._type(node) not in ops.LAYERS:
            return FLOAT, False
        (only,) = wanted if len(wanted) == 1 else ("",)
        if only not in ("", FLOAT) and not ACTIVATION_QUANTIZERS[parse_spec(only).method].transforms:
            return only, True
        return self.config.residual, False

    # further ones on the way to operations that want another

    def _edge_sites(self, tensors: dict[fx.Node, str]) -> list[Site]:
        edges = defaultdict(list)
        for node, spec in self.wants.items():
            for source in self._data_inputs(node):
                at_hand = tensors.get(_origin(self.graph, source))
                if spec not in (FLOAT, at_hand) and not (source.op == "placeholder" and not self.config.quantize_input):
                    edges[source, spec].append(node)
        suffix = "read_quant" if self.config.op_types is None else "quant"
        used = defaultdict(int)
        sites = []
        for (source, spec), readers in edges.items():
            name = f"{self.names[source]}_{suffix}" + (f"_{used[source]}" if used[source] else "")
            used[source] += 1
            sites.append(Site(source, name, spec, signed=not ops.is_nonnegative(self.graph, source), readers=tuple(readers)))
        return sites

    def _data_inputs(self, node: fx.Node) -> list[fx.Node]:
        inputs = [n for n in node.all_input_nodes if n.meta.get("is_float") and n.op != "get_attr"]
        return inputs[:1] if ops.kind(self.graph, node) in ops.LAYERS else inputs

    def _share(self, sites: list[Site]) -> list[Site]:
        """Give the sites of each group in `share` one name, and bounds that hold for all of them."""
        for globs in self.config.share:
            group = [s for s in sites if any(fnmatchcase(self.names[s.node], glob) for glob in globs)]
            if len({s.spec for s in group}) > 1:
                raise QuantError(f"share {list(globs)}: its tensors are quantized by {' and '.join(sorted({s.spec for s in group}))}; "
                                 "one quantizer needs one spec")  # fmt: skip
            alike = len({(s.floor, s.ceiling) for s in group}) == 1
            merged = {} if alike else {"floor": float("-inf"), "ceiling": float("inf"), "absorbs": False}
            signed = any(s.signed for s in group)
            sites = [replace(s, name=group[0].name, signed=signed, **merged) if s in group else s for s in sites]
        return sites

    # the report

    def _rows(self, sites: list[Site]) -> list[PlanRow]:
        outputs, tensors, edges = defaultdict(list), {}, {}
        for site in sites:
            outputs[site.node].append(site)
            if site.readers is None:
                tensors[site.node] = site.name
            edges |= {(reader, site.node): site.name for reader in site.readers or ()}
        rows = []
        for node in self.nodes:
            origins = [(n, edges.get((node, n)) or tensors.get(_origin(self.graph, n), "")) for n in self._data_inputs(node)]
            reads = ", ".join(dict.fromkeys(name for _, name in origins if name))
            weight, makes = self.weights.get(node, ""), ", ".join(site.name for site in outputs[node])
            output = ", ".join(site.spec for site in outputs[node])
            reason = self.exempt.get(node) or ("" if weight or output else self._reason(node))
            rows.append(PlanRow(self.names[node], _op_label(self.graph, node), weight, reads, output, makes, reason))
        return rows

    def _reason(self, node: fx.Node) -> str:
        kind, end = ops.kind(self.graph, node), _group_end(self.graph, node)
        if not node.meta["is_float"]:
            return "makes no float tensor"
        if self.config.op_types is not None:
            return f"op_types leaves out {self._type(node)}" if self._type(node) not in self.config.op_types else "nothing chosen reads it"
        if node.op == "placeholder":
            return "read by float layers only" if self.config.quantize_input else "quantize_input is off"
        if end is not node:
            return f"in one group with {self.names[end]}"
        return "stays on its input's grid" if kind in ops.ON_INPUT_GRID else "float by an override"


def node_names(graph: fx.GraphModule, nodes: list[fx.Node]) -> dict[fx.Node, str]:
    """A name for each node: the module that it calls, or `block.add` for an operation in the forward of `block`; numbered if repeated."""
    taken, names = set(), {}
    for node in nodes:
        base = node.target if node.op in ("call_module", "placeholder") else _scoped(node)
        name = next(n for i in range(len(nodes) + 1) if (n := f"{base}_{i}" if i else base) not in taken)
        taken.add(name)
        names[node] = name
    return names


def _scoped(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"{stack[-1][0] if stack else ''}.{ops.label(node)}".lstrip(".")


def _op_label(graph: fx.GraphModule, node: fx.Node) -> str:
    kind = ops.op_type(graph, node)
    if kind not in ("function", "move"):
        return kind
    return ops.target(graph, node).__name__ if node.op == "call_module" else ops.label(node)


def _makes_values(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's value is a float tensor off its inputs' grids."""
    if not node.meta["is_float"] or node.meta["shape"] is None:
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
    folds = ops.kind(graph, node) in ops.LAYERS and ops.kind(graph, user) == "batch_norm"
    return _group_end(graph, user) if folds or _clamps_group(graph, user) else node


def _group(graph: fx.GraphModule, end: fx.Node) -> Iterator[fx.Node]:
    """The nodes of the group that `end` ends, last first."""
    yield end
    for source in end.all_input_nodes[:1]:
        if _group_end(graph, source) is end:
            yield from _group(graph, source)


def _readers(graph: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """Who reads a node's value, through operations that only move it."""
    for user in node.users:
        if ops.kind(graph, user) in ops.ON_INPUT_GRID and user.meta.get("is_float"):
            yield from _readers(graph, user)
        elif user.op == "output" or user.meta.get("is_float"):
            yield user


def _origin(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node whose grid a value lies on: back through operations that only move values."""
    while not _makes_values(graph, node) and node.op != "placeholder" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node
