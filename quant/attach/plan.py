"""A plan: the places of quantizers, and its report, a row for each node with its quantizers or the reason for none."""

from collections import defaultdict
from dataclasses import dataclass

from torch import fx

from quant.attach import groups, ops
from quant.attach.specs import NodeSpecs, Wanted


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

    weights: dict[fx.Node, Wanted]
    gradients: dict[fx.Node, str | None]
    sites: list[Site]
    rows: list[PlanRow]


def plan_rows(graph: fx.GraphModule, specs: NodeSpecs, sites: list[Site]) -> list[PlanRow]:
    """A row for each node, in the order in which they run."""
    made, tensors, edges = defaultdict(list), {}, {}
    for site in sites:
        made[site.node].append(site)
        if site.readers is None:
            tensors[site.node] = site.name
        edges |= {(reader, site.node): site.name for reader in site.readers or ()}

    def read(node: fx.Node) -> list[str]:
        """The quantizers that the inputs of a node pass."""
        sources = groups.data_inputs(graph, node)
        return [edges.get((node, n)) or tensors.get(groups.origin(graph, n), "") for n in sources]

    return [_row(graph, specs, node, read(node), made[node]) for node in specs.names]


def _row(graph: fx.GraphModule, specs: NodeSpecs, node: fx.Node, reads: list[str], sites: list[Site]) -> PlanRow:
    weight = specs.weights[node].spec if node in specs.weights else ""
    output = ", ".join(site.spec for site in sites)
    return PlanRow(
        name=specs.names[node],
        op=_op_label(graph, node),
        weight=weight,
        gradient=specs.gradients.get(node) or "",
        reads=", ".join(dict.fromkeys(name for name in reads if name)),
        output=output,
        makes=", ".join(site.name for site in sites),
        reason=specs.exempt.get(node) or ("" if weight or output else _reason(graph, specs, node)),
    )


def _reason(graph: fx.GraphModule, specs: NodeSpecs, node: fx.Node) -> str:
    """Why a node has no quantizer."""
    config, kind, end = specs.config, specs.op_type(node), groups.group_end(graph, node)
    if not node.meta["is_float"]:
        return "makes no float tensor"
    if config.op_types is not None:
        return f"op_types leaves out {kind}" if kind not in config.op_types else "nothing chosen reads it"
    if node.op == "placeholder":
        return "read by float layers only" if config.quantize_input else "quantize_input is off"
    if end is not node:
        return f"in one group with {specs.names[end]}"
    on_input_grid = ops.kind(graph, node) in ops.ON_INPUT_GRID
    return "stays on its input's grid" if on_input_grid else "float by an override"


def _op_label(graph: fx.GraphModule, node: fx.Node) -> str:
    kind = ops.op_type(graph, node)
    if kind not in ("function", "move"):
        return kind
    return ops.target(graph, node).__name__ if node.op == "call_module" else ops.label(node)
