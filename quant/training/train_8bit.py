"""8-bit training (arXiv:1805.11046): exchanges a model's layers for ones that compute and differentiate in 8 bits.

    model = quant.train_8bit(zoo.build("resnet18"))     # then train as ever, from scratch or on from a float checkpoint

Exchanged are Conv2d, Linear (quant.training.backprop) and BatchNorm1d/2d (Range BN); everything else (sums, ReLU,
pooling, the loss, the weight update) stays float. First and last layer are exchanged too, as in the paper. torch.nn
itself is left alone.

The 8 bits are simulated in float, so a step takes longer than in float: on one CPU core at 32 px 1.7 times for
ResNet-20, 3 times for MobileNetV2-0.5. Layers whose samples have few values (a BatchNorm1d behind ten logits) clip
much, since their range is the mean over samples of a few values' extremes: name them in `ignore`.
"""

from fnmatch import fnmatchcase

from torch import nn

from quant.errors import QuantError
from quant.quantizers.gradients import mix
from quant.training.backprop import QBPConv2d, QBPLinear, QBPRangeBN1d, QBPRangeBN2d

LAYERS = {nn.Conv2d: QBPConv2d, nn.Linear: QBPLinear}
NORMS = {nn.BatchNorm1d: QBPRangeBN1d, nn.BatchNorm2d: QBPRangeBN2d}


def train_8bit(
    model: nn.Module,
    bits: int = 8,
    grad_weight_bits: int = 16,
    zero_point: bool = False,
    constant: str = "gauss",
    ignore: tuple[str, ...] = (),
    seed: int = 0,
) -> nn.Module:
    """The model, changed in place: its modules are exchanged, its Parameters stay the same objects, so an optimizer may
    hold them already.

    bits              of activations, weights and gradients, 2..8 (biases have twice as many)
    grad_weight_bits  of the copy of the gradient that makes weight gradients: 16, or 32 for the float gradient
    zero_point        keep zeros in gradients exactly zero (ReLU's masks stay sparse); off in the published code
    constant          of Range BN: "gauss" continues a trained batch norm, "released" and "paper" are for training from
                      scratch
    ignore            globs of module names that stay float
    seed              of the stochastic rounding; each layer has a stream of its own
    Layers of other classes, subclasses included, stay float. Raises QuantError for a bad setting, for layers with
    hooks, and where there is nothing to exchange.
    """
    if not 2 <= bits <= 8:
        raise QuantError(f"bits: {bits}, takes 2 to 8")
    if grad_weight_bits not in (16, 32):
        raise QuantError(f"grad_weight_bits: {grad_weight_bits}, takes 16 or 32 (the float gradient)")
    options = {"bits": bits, "zero_point": zero_point}
    exchanged = {}
    for index, (name, layer) in enumerate(model.named_modules()):
        if any(fnmatchcase(name, glob) for glob in ignore):
            continue
        if type(layer) in LAYERS:
            new = LAYERS[type(layer)].from_float(
                layer, grad_weight_bits=grad_weight_bits, seed=mix(seed, index), **options
            )
        elif type(layer) in NORMS:
            new = NORMS[type(layer)].from_float(layer, constant, seed=mix(seed, index), **options)
        else:
            continue
        exchanged[layer] = new
    if not exchanged:
        raise QuantError(f"{type(model).__name__}: holds no Conv2d, Linear or BatchNorm to exchange")
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children passes over a second name of one module
            if child in exchanged:
                setattr(parent, name, exchanged[child])
    return exchanged.get(model, model)
