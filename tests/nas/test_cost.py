"""Counted costs equal the costs that a formula gives from the numbers of the architecture alone."""

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from frostnet import FrostNet, architecture
from nas import Architecture, BlockSpec, HeadSpec, StemSpec, cost, count
from nas.blocks import build
from tests.strategies import architectures, examples

# ---- the formula: weights and batch norms of each component, and the pixels at which the weights run ----------


def _formula(net: Architecture) -> list[tuple[int, int]]:
    """(parameters, MACs) of the stem, every block and the head."""
    sizes = net.sizes()
    return [_stem(net.stem, sizes[0]), *map(_block, net.blocks, sizes, sizes[1:]), _head(net.head, sizes[-1])]


def _stem(s: StemSpec, after: int) -> tuple[int, int]:
    weights = s.in_channels * s.out_channels * s.kernel_size**2
    return weights + 2 * s.out_channels, weights * after**2


def _block(b: BlockSpec, before: int, after: int) -> tuple[int, int]:
    """Weights at the input's size, at the output's size, and on one pixel; two numbers per channel of a batch norm."""
    squeezed, hidden, channels = b.squeeze_channels, b.hidden_channels, b.in_channels
    squeeze, norms = {
        "mb": (0, 0),
        "se": (0, 0),
        "frost": (channels * squeezed, squeezed),
        "add": (2 * channels * squeezed, squeezed + channels),
    }[b.op]
    wide = channels + squeezed if b.op == "frost" else channels
    expand = wide * hidden if b.expand_ratio > 1 else 0
    gate, biases = (2 * hidden * squeezed, hidden + squeezed) if b.op == "se" else (0, 0)
    small, large = hidden * b.kernel_size**2 + hidden * b.out_channels, squeeze + expand
    norms += (hidden if expand else 0) + hidden + b.out_channels
    return large + small + gate + biases + 2 * norms, large * before**2 + small * after**2 + gate


def _head(h: HeadSpec, size: int) -> tuple[int, int]:
    conv, classifier = h.in_channels * h.channels, h.channels * h.num_classes
    return conv + 2 * h.channels + classifier + h.num_classes, conv * size**2 + classifier


# ---- architectures -----------------------------------------------------------------------------------------


def test_a_block_small_enough_to_count_by_hand():
    # squeeze 16x8, expand 24x72, depthwise 72 x 3x3, project 72x24; batch norm 2 a channel; 8x8 pixels in, 4x4 out
    spec = BlockSpec("frost", 3, 16, 24, 2, 3, 2, "relu")
    convs = 16 * 8 + 24 * 72 + 72 * 9 + 72 * 24
    macs = (16 * 8 + 24 * 72) * 64 + (72 * 9 + 72 * 24) * 16
    assert count(build(spec), torch.zeros(1, 16, 8, 8)) == (convs + 2 * (8 + 72 + 72 + 24), macs)


def test_a_network_whose_maps_shrink_to_one_pixel():
    # stem 1x8x3x3 at 17x17; five blocks of 8x3x3 + 8x8 at 9, 5, 3, 2 and 1 pixels a side; head 8x8 + 8x5 on one pixel
    block = BlockSpec("mb", 3, 8, 8, 2, 1, 0, "relu")
    net = Architecture("n", 17, StemSpec(1, 8, 3, 1, "relu"), (block,) * 5, HeadSpec(8, 8, 5, 0, "relu"))
    macs = 72 * 17**2 + (72 + 64) * (9**2 + 5**2 + 3**2 + 2**2 + 1) + 64 + 40
    assert macs == 37_232
    assert cost(net).macs == macs
    assert count(FrostNet(net), torch.zeros(1, 1, 17, 17)) == (cost(net).params, macs)


@examples(25)
@given(architectures())
def test_the_cost_of_any_network_equals_the_formula_and_what_its_modules_count(net):
    total = cost(net)
    assert [(row.params, row.macs) for row in total.rows] == _formula(net)
    example = torch.zeros(1, net.stem.in_channels, net.input_size, net.input_size)
    assert (total.params, total.macs) == count(FrostNet(net), example)


@examples(10)
@given(architectures())
def test_rows_add_up_and_name_the_modules_they_count(net):
    model, total = FrostNet(net), cost(net)
    assert sum(row.params for row in total.rows) == total.params
    assert sum(row.macs for row in total.rows) == total.macs
    for row in total.rows:
        assert row.params == sum(p.numel() for p in model.get_submodule(row.name).parameters())


@pytest.mark.parametrize("size", [32, 224])
def test_cost_follows_the_input_size(size):
    net = architecture("base", 0.5).for_input(size)
    assert cost(net).macs == sum(macs for _, macs in _formula(net))


def test_cost_draws_no_random_number():
    state = torch.get_rng_state()
    cost(architecture("small", 0.35, num_classes=3, input_size=40))
    assert torch.equal(torch.get_rng_state(), state)


# ---- any module --------------------------------------------------------------------------------------------


def test_counting_is_per_image_and_leaves_the_mode_alone():
    model = FrostNet(architecture("small", 0.35, input_size=32))
    assert count(model, torch.zeros(3, 3, 32, 32)) == count(model, torch.zeros(1, 3, 32, 32))
    assert model.training


def test_a_transposed_convolution_runs_its_kernel_once_per_input_pixel():
    assert count(nn.ConvTranspose2d(8, 4, 4, 2, 1), torch.zeros(2, 8, 5, 5)) == (8 * 4 * 16 + 4, 8 * 4 * 16 * 25)


def test_a_linear_layer_counts_its_weights_at_every_position():
    assert count(nn.Linear(8, 4), torch.zeros(2, 8)) == (36, 32)
    assert count(nn.Linear(8, 4, bias=False), torch.zeros(2, 5, 8)) == (32, 5 * 32)


class _Attention(nn.Module):
    def forward(self, x):
        return scaled_dot_product_attention(x, x, x)


def test_attention_counts_its_two_products_whatever_kernel_torch_prefers():
    assert count(_Attention(), torch.zeros(1, 2, 16, 8)) == (0, 2 * 2 * 16 * 16 * 8)


def test_counting_in_inference_mode_is_the_same():
    with torch.inference_mode():
        assert count(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 6, 6)) == (112, 4 * 27 * 16)
