"""Post-training quantization: ranges for a trained float network from some pictures, without training.

    graph = calibrate(model, batches, QuantConfig(engine="fbgemm"), method="mse")
    int8 = quant.convert(graph, "fbgemm")

Every activation quantizer takes its range from all values that the float network sends it, in all batches, whatever
their order:

minmax       the smallest and the largest value
percentile   a range that holds so many percent of the values
mse          the range whose grid has the least mean squared error, clipping and rounding together

The last two keep a histogram. A bin is the float32 numbers that agree in sign, exponent and the first bits of the
mantissa, 1/128 to 1/64 of its values wide: no range is needed beforehand, so the data are read once, and one value a
thousand times larger than the rest leaves the rest as finely resolved as before. Within a bin values count as evenly
spread, and a grid's squared error over it is an integral.
"""

import copy
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from quant.attach.config import QuantConfig
from quant.attach.graph_pass import attach, quantizers_of
from quant.errors import QuantError
from quant.integer.biases import snap_biases
from quant.quantizers import ActivationQuantizer, Int8Activation
from quant.quantizers.base import check_range, choose
from quant.quantizers.fake_quant import widen
from quant.quantizers.grid import QParams
from quant.statistics import set_mode

METHODS = ("minmax", "percentile", "mse")

SHIFT = 17  # bits of a float32 that a bin leaves open: of the mantissa's 23, 6 count
HALF = 2 ** (31 - SHIFT)  # bins of either sign
NEGLIGIBLE = 2.0**-16  # of the largest value: what is smaller is as good as zero

STEP = 0.8  # from one candidate for an end of the range to the next
CANDIDATES = 32  # for each end: from the whole range down to a thousandth
FINER = 8  # then steps so many times smaller, around the best


def calibrate(
    model: nn.Module,
    batches: Iterable,
    config: QuantConfig = QuantConfig(),
    method: str = "minmax",
    percentile: float = 99.99,
) -> fx.GraphModule:
    """A quantized copy of a trained float network, its ranges set from data, in evaluation mode.

    batches     tensors of images (N, C, H, W), or tuples that begin with one, as a DataLoader gives; read once, moved
                to the model's device
    method      one of METHODS
    percentile  of the values that the range holds (method "percentile"); where it has two ends, half of the others lie
                beyond each

    The model stays as it is, mode and batch-norm statistics included; the graph has copies of its weights. Activations
    must be int8, of any width. Raises QuantError for other kinds, where there is no data, and where a quantizer's
    values are not finite.
    """
    choose("method", method, *METHODS)
    check_range("percentile", percentile, 50.0, 100.0)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = (
        _images(batch).to(device) for batch in tqdm(batches, desc="calibrating", unit="batch", delay=3, leave=False)
    )
    first = next(batches, None)
    if first is None:
        raise QuantError("batches: there are none to take ranges from")
    graph = attach(copy.deepcopy(model).eval(), first, config).eval()
    seen = _watch(graph, itertools.chain([first], batches), method != "minmax")
    for name in tqdm(seen, desc="setting ranges", unit="tensor", delay=3, leave=False):
        _set(name, graph.get_submodule(name), seen[name], method, percentile)
    snap_biases(graph)
    return graph


def _images(batch) -> Tensor:
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor) or not images.numel():
        raise QuantError(
            f"batches: need tensors of images, or tuples that begin with one, not {type(images).__name__} (or an empty "
            "one)"
        )
    return images


@torch.no_grad()
def _watch(graph: fx.GraphModule, batches: Iterable[Tensor], histogram: bool) -> dict[str, "_Seen"]:
    """Run the float network; what each activation quantizer saw, by name."""
    quantizers = {name: q for name, q in quantizers_of(graph).items() if isinstance(q, ActivationQuantizer)}
    others = [f"{name} ({type(q).__name__})" for name, q in quantizers.items() if not isinstance(q, Int8Activation)]
    if others:
        raise QuantError(f"only int8 activations can be calibrated; train the ranges of {', '.join(others[:3])}")
    seen = {name: _Seen(q, histogram) for name, q in quantizers.items()}
    hooks = [quantizers[name].register_forward_pre_hook(s) for name, s in seen.items()]
    set_mode(graph, observe=False, fake_quant=False)
    for images in batches:
        graph(images)
    set_mode(graph, observe=True, fake_quant=True)
    for hook in hooks:
        hook.remove()
    return seen


class _Seen:
    """A forward pre-hook: what one quantizer saw, its activation function applied.

    The extremes and, if asked for, how many values in each bin."""

    def __init__(self, quantizer: Int8Activation, histogram: bool):
        self.magnitudes = quantizer.scheme == "symmetric"  # the sign does not matter to that grid
        device = quantizer.lo.device
        self.lo, self.hi = torch.tensor(float("inf"), device=device), torch.tensor(float("-inf"), device=device)
        self.counts = torch.zeros(2 * HALF, dtype=torch.int64, device=device) if histogram else None

    def __call__(self, quantizer: Int8Activation, args: tuple[Tensor]) -> None:
        x = quantizer.activate(widen(args[0])).float()
        x = x.abs() if self.magnitudes else x
        self.lo, self.hi = torch.minimum(self.lo, x.amin()), torch.maximum(self.hi, x.amax())
        if self.counts is not None:
            self.counts += _count(x)


def _count(x: Tensor) -> Tensor:
    """How many float32 values lie in each of the 2 * HALF bins, in the order of the numbers."""
    bits = x.view(torch.int32)
    ordered = bits ^ (bits >> 31 & 0x7FFFFFFF)  # negative numbers run backwards otherwise
    return torch.bincount(((ordered >> SHIFT) + HALF).flatten(), minlength=2 * HALF)


def _edge(number: Tensor) -> Tensor:
    """Where the bin of this number (-HALF to HALF - 1) begins, float64."""
    return torch.sign(number) * (number.abs().int() << SHIFT).view(torch.float32).double()


def _set(name: str, quantizer: Int8Activation, seen: _Seen, method: str, percentile: float) -> None:
    """Give a quantizer its range."""
    lo, hi = seen.lo.item(), seen.hi.item()
    if not (abs(lo) < float("inf") and abs(hi) < float("inf")):  # false for NaN too
        raise QuantError(
            f"{name}: its values reach from {lo} to {hi}; look for bad pictures, or for a network that has diverged"
        )
    if method == "percentile":
        lo, hi = _holding(percentile / 100, _bins(seen, lo, hi))
    elif method == "mse":
        lo, hi = _least_error(quantizer, _bins(seen, lo, hi))
    quantizer.lo.fill_(min(lo, 0.0))
    quantizer.hi.fill_(max(hi, 0.0))
    quantizer.batches = quantizer.delay + 1


class _Bins(NamedTuple):
    """Bins that hold values, in order: left and right ends and counts, float64."""

    left: Tensor
    right: Tensor
    count: Tensor


def _bins(seen: _Seen, lo: float, hi: float) -> _Bins:
    """The bins of a quantizer that saw values from lo to hi, cut to that range."""
    counts = seen.counts.cpu()
    filled = counts.nonzero()[:, 0]
    left, right = _edge(filled - HALF), _edge(filled - HALF + 1)
    return _Bins(left.clamp(lo, hi), right.clamp(lo, hi), counts[filled].double())


def _holding(share: float, bins: _Bins) -> tuple[float, float]:
    """The range that holds a share of the values: cut at both ends alike, or at one if all have one sign."""
    one_sided = bins.left[0] >= 0 or bins.right[-1] <= 0
    outside = (1 - share) if one_sided else (1 - share) / 2
    return _quantile(outside, bins), _quantile(1 - outside, bins)


def _quantile(share: float, bins: _Bins) -> float:
    """The value that a share of all values lies below."""
    below = bins.count.cumsum(0)
    i = min(int(torch.searchsorted(below, share * below[-1])), len(below) - 1)
    inside = 1 - (below[i] - share * below[-1]) / bins.count[i]
    return torch.lerp(bins.left[i], bins.right[i], inside).item()


def _least_error(quantizer: Int8Activation, bins: _Bins) -> tuple[float, float]:
    """The range whose grid has the least squared error among coarse candidates, then finer ones around the best."""
    whole = min(bins.left[0].item(), 0.0), max(bins.right[-1].item(), 0.0)
    large = torch.maximum(bins.left.abs(), bins.right.abs()) > NEGLIGIBLE * max(-whole[0], whole[1])
    bins = _Bins(*(field[large] for field in bins))
    best = _best(quantizer, bins, *([end * STEP**i for i in range(CANDIDATES)] for end in whole))
    finer = [STEP ** (i / FINER) for i in range(-FINER, FINER + 1)]
    return _best(
        quantizer, bins, [max(best[0] * f, whole[0]) for f in finer], [min(best[1] * f, whole[1]) for f in finer]
    )


def _best(quantizer: Int8Activation, bins: _Bins, los: list[float], his: list[float]) -> tuple[float, float]:
    """The pair of a lower and an upper end whose grid has the least squared error; the widest of equals."""
    probe = copy.deepcopy(quantizer).cpu()
    pairs = sorted(set(itertools.product(los, his)), key=lambda pair: pair[0] - pair[1])
    return pairs[int(torch.argmin(_squared_errors([_grid(probe, *pair) for pair in pairs], bins)))]


def _grid(probe: Int8Activation, lo: float, hi: float) -> QParams:
    """The grid that a quantizer lays over a range."""
    probe.lo.fill_(lo)
    probe.hi.fill_(hi)
    return probe.grid()


def _squared_errors(grids: list[QParams], bins: _Bins) -> Tensor:
    """The sum over all values of (value - its nearest grid point)^2, for each grid.

    From 0 to t the integral of that square is n s^3 / 12 + (t - n s)^3 / 3, for a step s and n s the grid point nearest
    to t (of either sign): every step that was passed gives s^3 / 12, and what lies beyond the last one or the grid's
    end a cube.
    """
    fields = torch.tensor([(g.scale, g.qmin - g.zero_point, g.qmax - g.zero_point) for g in grids], dtype=torch.float64)
    step, lowest, highest = fields.T.unsqueeze(2)

    def integral(t: Tensor) -> Tensor:
        n = torch.clamp(torch.round(t / step), lowest, highest)
        return n * step**3 / 12 + (t - n * step) ** 3 / 3

    right = torch.maximum(bins.right, bins.left + 1e-6 * bins.left.abs())  # a bin of a single value has some width too
    return (integral(right) - integral(bins.left)) @ (bins.count / (right - bins.left))
