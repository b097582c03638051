"""Specs of every method, and quantizers made by them: what the tests of the contract and of the methods share."""

import math

import pytest
import torch

from quant.quantizers import activation_quantizer, weight_quantizer

WEIGHTS = """int8:8 int8:3 int8:4,scheme=affine int8:4,granularity=tensor fqn:4
    fqn:2,granularity=tensor dorefa:3
    dorefa:1 dorefa:2,weight_grad=through_max qil:4 qil:2,gamma=learned gdrq:3 gdrq:3,group_size=2,grad=clip
    lsq:4 lsq:2,granularity=channel""".split()
ACTIVATIONS = """int8:8 int8:3 int8:4,scheme=symmetric int8:4,grad=ste fqn:4 pact:4 pact:2,alpha_grad=lsq dorefa:3
    qil:4 gdrq:3
    gdrq:4,group_size=2 lsq:4""".split()
SIGNS = [
    pytest.param((0.0, False), id="relu"),
    pytest.param((-math.inf, True), id="signed"),
    pytest.param((-math.inf, False), id="positive"),
]


def a_weight(spec: str, shape=(8, 4, 3, 3), seed: int = 0, axis: int = 0):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    quantizer = weight_quantizer(spec, 127, axis)
    quantizer.init_from(weight)
    return quantizer, weight.requires_grad_()


def an_activation(spec: str, sign=(-math.inf, True), shape=(4, 8, 6, 6), seed: int = 0):
    floor, signed = sign
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x = x if signed or floor == 0.0 else x.abs()
    quantizer = activation_quantizer(spec, floor, math.inf, signed)
    quantizer(x)  # it has seen a batch
    return quantizer, x
