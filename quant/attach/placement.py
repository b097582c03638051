"""Where quantizers go: the decisions of `attach`, for each node of a traced graph a quantizer or the reason for
none.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import fx

from quant.attach import ops
from quant.attach.config import QuantConfig
from quant.attach.layers import QUANTIZED
from quant.errors import QuantError
from quant.quantizers import ACTIVATION_QUANTIZERS, FLOAT, parse_spec


@dataclass(frozen=True)
class PlanRow:
    """What one node gets. `weight`, `gradient` and `output` are specs of the quantizers on its weight, on the gradients
    that arrive at it and on its result, `reads` and `makes` the names of those that its inputs pass and its result
    passes; "" where there is none. `reason` says why a node has no quantizer, or stays float."""

    name: str
    op: str
    weight: str
    gradient: str
    reads: str
    output: str
    makes: str
    reason: str


@dataclass(frozen=True)
class Site:
    """A place for an activation quantizer: the value of `node`, for `readers` (None: for all).

    floor ceiling signed  as ActivationQuantizer takes them
    absorbs               whether the quantizer computes the ReLU that `node` is
    follows               whether its spec is the configuration's `activation`, and not an exception's
    like                  the node on whose quantizer's grid the value is rounded; None: on one of its own
    """

    node: fx.Node
    name: str
    spec: str
    floor: float = float("-inf")
    ceiling: float = float("inf")
    signed: bool = True
    readers: tuple[fx.Node, ...] | None = None
    absorbs: bool = False
    follows: bool = True
    like: fx.Node | None = None


@dataclass(frozen=True)
class Plan:
    """weights: what layer nodes' weights get; sites in the order in which they are to be filled; rows for all nodes."""

    weights: dict[fx.Node, "Wanted"]
    gradients: dict[fx.Node, str | None]
    sites: list[Site]
    rows: list[PlanRow]


class Wanted(NamedTuple):
    """A spec, and whether it is the configuration's own rather than an override's."""

    spec: str
    follows: bool


def decide(graph: fx.GraphModule, config: QuantConfig) -> Plan:
    """The plan for a traced graph whose nodes carry their shapes.

    Raises QuantError where settings contradict each other.
    """
    return _Planner(graph, config).plan()


class _Planner:
    def __init__(self, graph: fx.GraphModule, config: QuantConfig):
        self.graph, self.config = graph, config
        self.nodes = [n for n in graph.graph.nodes if n.op not in ("output", "get_attr")]
        self.names = node_names(graph, self.nodes)
        self.taken = {name for name, _ in graph.named_modules()}
        self._check_globs()
        self.exempt = self._exempt()
        self.weights = {n: wanted for n in self.nodes if (wanted := self._weight(n))}
        self.gradients = {n: self._wanted(n, "gradient").spec for n in self.weights}
        self._check_repeated_layers()
        self.wants = {
            n: self._reading(n)
            for n in self.nodes
            if self._type(n) in (ops.LAYERS if config.op_types is None else config.op_types)
        }

    def plan(self) -> Plan:
        sites = self._tensor_sites() if self.config.op_types is None else []
        sites = self._share(sites + self._edge_sites({site.node: site for site in sites}))
        return Plan(self.weights, self.gradients, sites, self._rows(sites))

    def _check_globs(self) -> None:
        """A glob that matches nothing is a slip of the pen."""
        globs = [
            *self.config.ignore,
            *(o.match for o in self.config.overrides),
            *(glob for group in self.config.share for glob in group),
        ]
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in self.names.values()):
                near = get_close_matches(glob, self.names.values(), 3, 0.3) or list(self.names.values())[:3]
                raise QuantError(f"{glob!r} matches no layer or node; there are {', '.join(near)} ..")

    def _check_repeated_layers(self) -> None:
        """A layer that is called twice has one weight."""
        wanted = defaultdict(set)
        for node in self.nodes:
            if node.op == "call_module" and ops.kind(self.graph, node) in ops.LAYERS:
                wanted[node.target].add(self.weights.get(node))
        for name, several in wanted.items():
            if len(several) > 1:
                raise QuantError(
                    f"{name}: is called several times, and settings want its one weight in several ways; treat all "
                    "calls alike"
                )

    def _free(self, name: str) -> str:
        """`name`, numbered where the model has a module of that name itself."""
        return next(n for i in range(len(self.taken) + 1) if (n := f"{name}_{i}" if i else name) not in self.taken)

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

    def _weight(self, node: fx.Node) -> Wanted | None:
        kind = ops.kind(self.graph, node)
        chosen = kind in ops.LAYERS and (self.config.op_types is None or kind in self.config.op_types)
        if (
            not chosen
            or node in self.exempt
            or node.op != "call_module"
            or ops.target(self.graph, node) not in QUANTIZED
        ):
            return None
        if kind != "linear" and ops.zero_padding(self.graph.get_submodule(node.target)) is None:
            return None
        wanted = self._wanted(node, "weight")
        return None if wanted.spec == FLOAT else wanted

    def _reading(self, node: fx.Node) -> Wanted:
        """The spec by which an operation reads its inputs."""
        return Wanted(FLOAT, False) if node in self.exempt else self._wanted(node, "activation")

    def _wanted(self, node: fx.Node, field: str) -> Wanted:
        word = self._override([self.names[node]], field)
        return Wanted(getattr(self.config, field), True) if word is None else Wanted(word, False)

    # one quantizer for each tensor

    def _tensor_sites(self) -> list[Site]:
        sites = {}
        for node in self.nodes:
            site = self._tensor_site(node) or self._rounding_site(node, sites)
            sites |= {node: site} if site else {}
        return list(sites.values())

    def _rounding_site(self, node: fx.Node, sites: dict[fx.Node, Site]) -> Site | None:
        """Averages of values on a grid are rounded to it."""
        origin = sites.get(_origin(self.graph, node))
        if ops.kind(self.graph, node) != "resize" or origin is None:
            return None
        return Site(node, self._free(f"{self.names[node]}_quant"), origin.spec, follows=False, like=origin.node)

    def _tensor_site(self, node: fx.Node) -> Site | None:
        if not _makes_values(self.graph, node) or _group_end(self.graph, node) is not node:
            return None
        spec, follows = self._tensor_spec(node)
        if spec == FLOAT:
            return None
        floor, ceiling = ops.clamp_bounds(self.graph, node)
        signed, absorbs = not ops.is_nonnegative(self.graph, node), _clamps_group(self.graph, node)
        return Site(node, self._free(f"{self.names[node]}_quant"), spec, floor, ceiling, signed, None, absorbs, follows)

    def _tensor_spec(self, node: fx.Node) -> Wanted:
        """The spec for a tensor: what its readers want of it, if they are layers and want the same."""
        wanted = {self.wants.get(reader) for reader in _readers(self.graph, node)}
        word = self._override([self.names[n] for n in _group(self.graph, node)], "output")
        if word is not None:
            return Wanted(word, False)
        if node.op == "placeholder" and (not self.config.quantize_input or all(w and w.spec == FLOAT for w in wanted)):
            return Wanted(FLOAT, False)
        if node in self.exempt and self._type(node) not in ops.LAYERS:
            return Wanted(FLOAT, False)
        (only,) = wanted if len(wanted) == 1 else (None,)
        if only and only.spec != FLOAT and not ACTIVATION_QUANTIZERS[parse_spec(only.spec).method].transforms:
            return only
        return Wanted(self.config.residual, False)

    # further ones on the way to operations that want another

    def _edge_sites(self, tensors: dict[fx.Node, Site]) -> list[Site]:
        edges = defaultdict(list)
        for node, wanted in self.wants.items():
            for source in self._data_inputs(node):
                at_hand = tensors.get(_origin(self.graph, source))
                served = wanted.spec == FLOAT or (at_hand and at_hand.spec == wanted.spec)
                if not served and not (source.op == "placeholder" and not self.config.quantize_input):
                    edges[source, wanted].append(node)
        suffix = "read_quant" if self.config.op_types is None else "quant"
        used = defaultdict(int)
        sites = []
        for (source, (spec, follows)), readers in edges.items():
            name = self._free(f"{self.names[source]}_{suffix}" + (f"_{used[source]}" if used[source] else ""))
            used[source] += 1
            signed = not ops.is_nonnegative(self.graph, source)
            sites.append(Site(source, name, spec, signed=signed, readers=tuple(readers), follows=follows))
        return sites

    def _data_inputs(self, node: fx.Node) -> list[fx.Node]:
        inputs = [n for n in node.all_input_nodes if n.meta.get("is_float") and n.op != "get_attr"]
        return inputs[:1] if ops.kind(self.graph, node) in ops.LAYERS else inputs

    def _share(self, sites: list[Site]) -> list[Site]:
        """Give the sites of each group in `share` that have one spec one name, and bounds that hold for all of them."""
        placed = {}
        for number, globs in enumerate(self.config.share):
            for site in sites:
                if site.like is None and any(fnmatchcase(self.names[site.node], glob) for glob in globs):
                    if placed.setdefault(site, (number, site.spec))[0] != number:
                        raise QuantError(f"share: {self.names[site.node]} is in two groups; join them")
        groups = defaultdict(list)
        for site, key in placed.items():
            groups[key].append(site)
        shared = {
            site: merged
            for group in groups.values()
            for site, merged in zip(group, _on_one_quantizer(group), strict=True)
        }
        return [shared.get(site, site) for site in sites]

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
            origins = [
                (n, edges.get((node, n)) or tensors.get(_origin(self.graph, n), "")) for n in self._data_inputs(node)
            ]
            reads = ", ".join(dict.fromkeys(name for _, name in origins if name))
            weight = self.weights[node].spec if node in self.weights else ""
            gradient = self.gradients.get(node) or ""
            makes = ", ".join(site.name for site in outputs[node])
            output = ", ".join(site.spec for site in outputs[node])
            reason = self.exempt.get(node) or ("" if weight or output else self._reason(node))
            rows.append(
                PlanRow(self.names[node], _op_label(self.graph, node), weight, gradient, reads, output, makes, reason)
            )
        return rows

    def _reason(self, node: fx.Node) -> str:
        kind, end = ops.kind(self.graph, node), _group_end(self.graph, node)
        if not node.meta["is_float"]:
            return "makes no float tensor"
        if self.config.op_types is not None:
            return (
                f"op_types leaves out {self._type(node)}"
                if self._type(node) not in self.config.op_types
                else "nothing chosen reads it"
            )
        if node.op == "placeholder":
            return "read by float layers only" if self.config.quantize_input else "quantize_input is off"
        if end is not node:
            return f"in one group with {self.names[end]}"
        return "stays on its input's grid" if kind in ops.ON_INPUT_GRID else "float by an override"


def _on_one_quantizer(group: list[Site]) -> list[Site]:
    """The sites with the first one's name, and with its bounds if all have them, else with none."""
    alike = len({(site.floor, site.ceiling) for site in group}) == 1
    bounds = {} if alike else {"floor": float("-inf"), "ceiling": float("inf"), "absorbs": False}
    return [replace(site, name=group[0].name, signed=any(s.signed for s in group), **bounds) for site in group]


def node_names(graph: fx.GraphModule, nodes: list[fx.Node]) -> dict[fx.Node, str]:
    """A name for each node: the module that it calls, or `block.add` for an operation in the forward of `block`;
    numbered if repeated.
    """
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
    """Whether a node is the ReLU or ReLU6 that ends a group (alone on a tensor others read too, it works on the
    integers instead).
    """
    if ops.kind(graph, node) not in ("relu", "relu6"):
        return False
    source = node.args[0]
    return len(source.users) == 1 and ops.kind(graph, source) in ops.TAKES_CLAMP


def _group_end(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The last node of the group that `node` is in: conv -> batch norm -> ReLU, as far as each has no other reader."""
    if len(node.users) != 1:
        return node
    (user,) = node.users
    folds = ops.kind(graph, user) == "batch_norm" and ops.kind(graph, node) in ops.LAYERS and ops.folds(graph, node)
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
