"""How a model is to be quantized, as data."""

from dataclasses import dataclass, field

from quant.engines import weight_qmax
from quant.errors import QuantError
from quant.quantizers import ACTIVATION_QUANTIZERS, FLOAT, check_spec, parse_spec

_KINDS = {
    "weight": "weights",
    "activation": "activations",
    "residual": "activations",
    "output": "activations",
    "gradient": "gradients",
}
OP_TYPES = ("conv", "linear", "deconv", "add", "mul", "cat", "pool", "relu", "function")


@dataclass(frozen=True)
class Override:
    """Exceptions for the layers and nodes whose name matches the glob `match`.

    A spec, "float" for no quantizer, or None for what the configuration says.

    weight      of the layer's weight
    activation  of the tensors that the layer reads
    output      of the tensor that the node (or the group it ends) makes
    gradient    of the gradients that arrive at the layer
    """

    match: str
    weight: str | None = None
    activation: str | None = None
    output: str | None = None
    gradient: str | None = None

    def __post_init__(self):
        for name, kind in _KINDS.items():
            if name != "residual":
                _normalize(self, name, kind, f"overrides {self.match!r}: ")


@dataclass(frozen=True)
class QuantConfig:
    """How `attach` quantizes. Quantizers are written as specs, "method:bits" (quant.quantizers.parse_spec).

    engine          that the network is meant for (quant.engines.ENGINES); decides the range of the weights
    weight          of the weights of convolutions, linear layers and transposed convolutions
    activation      of tensors as those layers read them
    residual        of every other tensor: sums, skip connections, outputs. Where it equals `activation`, or only layers
                    read a tensor, one quantizer serves both
    gradient        of the gradients that arrive at those layers, e.g. "dorefa:6"
    op_types        None: every tensor gets a quantizer, the placement that converts to integers. Given, kinds from
                    OP_TYPES: only weights and inputs of operations of these kinds are quantized (as in the MXNet
                    operators' graph pass)
    skip_first, skip_last  by kind: so many of its first or last operations stay float
    ignore          globs: layers and nodes that stay float; each glob here and below must match something
    overrides       exceptions by name; later ones win
    share           groups of globs: tensors of one group that have one spec use one quantizer; it takes in each of them
                    in turn
    freeze_bn       batch norms keep to their running statistics, in training too
    quantize_input  False where the input already lies on a grid (a block inside a quantized network)
    seed            of the noise in stochastic gradient quantizers

    Raises QuantError for a name of nothing.

    What op_types, quantize_input=False and an override of an output to "float" leave off every grid trains, but
    converts only where no integer layer reads it.
    """

    engine: str = "fbgemm"
    weight: str = "int8"
    activation: str = "int8"
    residual: str = "int8"
    gradient: str | None = None
    op_types: tuple[str, ...] | None = None
    skip_first: dict[str, int] = field(default_factory=dict)
    skip_last: dict[str, int] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    share: tuple[tuple[str, ...], ...] = ()
    freeze_bn: bool = False
    quantize_input: bool = True
    seed: int = 0

    def __post_init__(self):
        weight_qmax(self.engine)
        for name in ("weight", "activation", "residual", "gradient"):
            _normalize(self, name, _KINDS[name])
        if isinstance(self.ignore, str) or self.op_types == () or any(isinstance(globs, str) for globs in self.share):
            raise QuantError(
                "ignore, op_types, share: write a tuple of words (op_types: at least one, or None for every tensor)"
            )
        for name in ("op_types", "skip_first", "skip_last"):
            unknown = next((kind for kind in getattr(self, name) or () if kind not in OP_TYPES), None)
            if unknown is not None:
                raise QuantError(f"{name}: {unknown!r} is no kind of operation; choose from {', '.join(OP_TYPES)}")


def _normalize(config, name: str, kind: str, where: str = "") -> None:
    """Check the spec in a field and write it out in full, so that equal ones are equal: "int8" becomes "int8:8"."""
    spec = getattr(config, name)
    if spec is None or spec == FLOAT:
        return
    try:
        check_spec(spec, kind)
        if name in ("residual", "output") and ACTIVATION_QUANTIZERS[parse_spec(spec).method].transforms:
            raise QuantError(
                f"{spec!r} changes values by more than rounding, so only layers may read them; use it for `activation`"
            )
    except QuantError as error:
        raise QuantError(f"{where}{name}: {error}") from error
    object.__setattr__(config, name, str(parse_spec(spec)))
