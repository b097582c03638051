"""Where quantizers go: for each node of a traced graph a quantizer, or the reason for none."""

from collections import defaultdict
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import fx

from quant.attach import groups, ops
from quant.attach.config import QuantConfig
from quant.attach.plan import Plan, Site, plan_rows
from quant.attach.specs import NodeSpecs, Wanted
from quant.errors import QuantError
from quant.quantizers import ACTIVATION_QUANTIZERS, FLOAT, parse_spec


def decide(graph: fx.GraphModule, config: QuantConfig) -> Plan:
    """The plan for a traced graph whose nodes carry their shapes.

    Raises QuantError where settings contradict each other.
    """
    names = groups.node_names([n for n in graph.graph.nodes if n.op not in ("output", "get_attr")])
    specs = NodeSpecs(graph, names, config)
    sites = _Placement(graph, specs).sites()
    return Plan(specs.weights, specs.gradients, sites, plan_rows(graph, specs, sites))


class _Placement:
    """Sites of activation quantizers: one for each tensor, then further ones for readers of another method."""

    def __init__(self, graph: fx.GraphModule, specs: NodeSpecs):
        self.graph, self.specs, self.names, self.config = graph, specs, specs.names, specs.config
        self.taken = {name for name, _ in graph.named_modules()}

    def sites(self) -> list[Site]:
        tensors = self._tensor_sites() if self.config.op_types is None else {}
        return _shared([*tensors.values(), *self._edge_sites(tensors)], self.config.share, self.names)

    def _free(self, name: str) -> str:
        """`name`, numbered where the model has a module of that name itself."""
        return next(n for i in range(len(self.taken) + 1) if (n := f"{name}_{i}" if i else name) not in self.taken)

    # on the tensors that nodes make

    def _tensor_sites(self) -> dict[fx.Node, Site]:
        sites = {}
        for node in self.names:
            site = self._tensor_site(node) or self._rounding_site(node, sites)
            sites |= {node: site} if site else {}
        return sites

    def _tensor_site(self, node: fx.Node) -> Site | None:
        if not groups.makes_values(self.graph, node) or groups.group_end(self.graph, node) is not node:
            return None
        spec, follows = self._tensor_spec(node)
        if spec == FLOAT:
            return None
        floor, ceiling = ops.clamp_bounds(self.graph, node)
        signed, absorbs = not ops.is_nonnegative(self.graph, node), groups.clamps_group(self.graph, node)
        return Site(node, self._free(f"{self.names[node]}_quant"), spec, floor, ceiling, signed, None, absorbs, follows)

    def _tensor_spec(self, node: fx.Node) -> Wanted:
        """The spec for a tensor: what its readers want of it, if they are layers and want the same."""
        wanted = {self.specs.inputs.get(reader) for reader in groups.readers(self.graph, node)}
        given = self.specs.override(groups.group(self.graph, node), "output")
        if given is not None:
            return Wanted(given, False)
        if self._stays_float(node, wanted):
            return Wanted(FLOAT, False)
        (only,) = wanted if len(wanted) == 1 else (None,)
        if only and only.spec != FLOAT and not ACTIVATION_QUANTIZERS[parse_spec(only.spec).method].transforms:
            return only
        return Wanted(self.config.residual, False)

    def _stays_float(self, node: fx.Node, wanted: set[Wanted | None]) -> bool:
        if node.op == "placeholder" and not self.config.quantize_input:
            return True
        if node.op == "placeholder" and all(w and w.spec == FLOAT for w in wanted):
            return True
        return node in self.specs.exempt and self.specs.op_type(node) not in ops.LAYERS

    def _rounding_site(self, node: fx.Node, sites: dict[fx.Node, Site]) -> Site | None:
        """Averages of values on a grid are rounded to it."""
        origin = sites.get(groups.origin(self.graph, node))
        if ops.kind(self.graph, node) != "resize" or origin is None:
            return None
        return Site(node, self._free(f"{self.names[node]}_quant"), origin.spec, follows=False, like=origin.node)

    # on the way to operations that want another method

    def _edge_sites(self, tensors: dict[fx.Node, Site]) -> list[Site]:
        suffix = "read_quant" if self.config.op_types is None else "quant"
        used = defaultdict(int)
        sites = []
        for (source, (spec, follows)), readers in self._unserved(tensors).items():
            name = self._free(f"{self.names[source]}_{suffix}" + (f"_{used[source]}" if used[source] else ""))
            used[source] += 1
            signed = not ops.is_nonnegative(self.graph, source)
            sites.append(Site(source, name, spec, signed=signed, readers=tuple(readers), follows=follows))
        return sites

    def _unserved(self, tensors: dict[fx.Node, Site]) -> dict[tuple[fx.Node, Wanted], list[fx.Node]]:
        """(source, spec) -> the readers that want this spec where the tensor's quantizer has another."""
        edges = defaultdict(list)
        for node, wanted in self.specs.inputs.items():
            for source in groups.data_inputs(self.graph, node):
                at_hand = tensors.get(groups.origin(self.graph, source))
                served = wanted.spec == FLOAT or (at_hand and at_hand.spec == wanted.spec)
                if not served and not (source.op == "placeholder" and not self.config.quantize_input):
                    edges[source, wanted].append(node)
        return edges


def _shared(sites: list[Site], share: tuple[tuple[str, ...], ...], names: dict[fx.Node, str]) -> list[Site]:
    """The sites, those of each group in `share` that have one spec on one quantizer."""
    merged = {}
    for group in _sharing(sites, share, names):
        merged |= zip(group, _on_one_quantizer(group), strict=True)
    return [merged.get(site, site) for site in sites]


def _sharing(sites: list[Site], share: tuple[tuple[str, ...], ...], names: dict[fx.Node, str]) -> list[list[Site]]:
    """Sites that are to have one quantizer: of one group of globs, and of one spec."""
    placed = {}
    for number, globs in enumerate(share):
        for site in sites:
            if site.like is None and any(fnmatchcase(names[site.node], glob) for glob in globs):
                if placed.setdefault(site, (number, site.spec))[0] != number:
                    raise QuantError(f"share: {names[site.node]} is in two groups; join them")
    sharing = defaultdict(list)
    for site, key in placed.items():
        sharing[key].append(site)
    return list(sharing.values())


def _on_one_quantizer(group: list[Site]) -> list[Site]:
    """The sites with the first one's name, and with its bounds if all have them, else with none."""
    alike = len({(site.floor, site.ceiling) for site in group}) == 1
    bounds = {} if alike else {"floor": float("-inf"), "ceiling": float("inf"), "absorbs": False}
    return [replace(site, name=group[0].name, signed=any(s.signed for s in group), **bounds) for site in group]
