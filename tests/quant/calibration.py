"""Calibrating a network that is one tensor: what the tests of quant.calibrate share."""

import torch
from torch import nn

import quant
from quant import QuantConfig
from quant.calibrate import calibrate
from quant.quantizers import Int8Activation

INF = float("inf")
DEFAULT = QuantConfig()


def config(bits=8, **options):
    spec = ",".join([f"int8:{bits}", *(f"{name}={value}" for name, value in options.items())])
    return QuantConfig(activation=spec, residual=spec)


def only(graph):
    """The one activation quantizer."""
    (quantizer,) = (q for q in quant.quantizers_of(graph).values() if isinstance(q, Int8Activation))
    return quantizer


def calibrated(x, method, config=DEFAULT, **options):
    """The range of data alone, and the mean squared error of quantizing these data with it."""
    graph = calibrate(nn.Identity(), [x], config, method, **options)
    return only(graph).lo.item(), only(graph).hi.item(), (graph(x).double() - x).square().mean().item()


def row(*values):
    """An image (1, 1, 1, W) of these values."""
    return torch.tensor(values).view(1, 1, 1, -1)
