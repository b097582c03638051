"""The bottleneck computes what its description says."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given

from nas import BlockSpec, HeadSpec, StemSpec, build, init_weights
from tests.strategies import block_specs, examples

FROST = BlockSpec("frost", 5, 40, 40, 1, 6, 4, "relu")


def _randomised(module, seed=0):
    """The module in eval mode with every weight and statistic drawn, so that nothing cancels by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
        for name, parameter in module.named_parameters():
            if name.endswith("conv.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return module.eval()


def _bn(x, bn):
    view = (1, -1, 1, 1)
    normal = (x - bn.running_mean.view(view)) / (bn.running_var.view(view) + bn.eps).sqrt()
    return normal * bn.weight.view(view) + bn.bias.view(view)


def test_a_frost_block_follows_the_papers_description_step_by_step():
    block, x = _randomised(build(FROST)), torch.randn(2, 40, 7, 7)

    def pointwise(x, part):  # a 1x1 convolution is a matrix product over channels
        return _bn(torch.einsum("nchw,oc->nohw", x, part.conv.weight[:, :, 0, 0]), part.bn)

    def depthwise(x, part):
        columns = torch.nn.functional.unfold(x, 5, padding=2).view(2, 336, 25, 49)
        return _bn((columns * part.conv.weight.view(1, 336, 25, 1)).sum(2).view(2, 336, 7, 7), part.bn)

    z = torch.cat([pointwise(x, block.squeeze).relu(), x], 1)
    y = depthwise(pointwise(z, block.expand).relu(), block.depthwise).relu()
    torch.testing.assert_close(block(x), x + pointwise(y, block.project), rtol=1e-4, atol=1e-4)


def test_the_squeezed_channels_come_first_in_the_concatenation():
    block, x = _randomised(build(FROST)), torch.randn(1, 40, 5, 5)
    with torch.no_grad():
        block.expand.conv.weight[:, : FROST.squeeze_channels] = 0
        before = block(x)
        block.squeeze.conv.weight.zero_()
        assert torch.equal(block(x), before)


def test_a_residual_block_with_a_silent_branch_is_the_identity():
    block, x = _randomised(build(FROST)), torch.randn(1, 40, 5, 5)
    with torch.no_grad():
        block.project.bn.weight.zero_()
        block.project.bn.bias.zero_()
        assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    "spec, parts",
    [
        (FROST, ["squeeze", "expand", "depthwise", "project"]),
        (BlockSpec("mb", 3, 16, 24, 2, 6, 0, "relu"), ["expand", "depthwise", "project"]),
        (BlockSpec("mb", 3, 32, 16, 1, 1, 0, "relu"), ["depthwise", "project"]),
    ],
)
def test_absent_parts_are_absent(spec, parts):
    assert [name for name, _ in build(spec).named_children()] == parts


@examples(20)
@given(block_specs())
def test_a_block_keeps_its_promise_of_shape_and_traces_to_the_same_function(spec):
    block, x = _randomised(build(spec)), torch.randn(1, spec.in_channels, 9, 9)
    y = block(x)
    side = -(-9 // spec.stride)
    assert y.shape == (1, spec.out_channels, side, side)
    assert torch.equal(torch.fx.symbolic_trace(block)(x), y)


def test_activations_are_not_in_place():
    block = build(FROST)
    assert all(not m.inplace for m in block.modules() if isinstance(m, torch.nn.ReLU))


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [8, 9])
def test_a_dilated_block_equals_the_strided_one_at_subsampled_positions(kernel_size, size):
    # reading with stride 2, and reading every pixel but keeping every second result, are one
    strided = _randomised(build(replace(FROST, kernel_size=kernel_size, stride=2)))
    dense = build(replace(FROST, kernel_size=kernel_size, stride=2), strided=False)
    dense.load_state_dict(strided.state_dict())
    x = torch.randn(1, 40, size, size)
    assert dense.eval()(x).shape[-1] == size
    torch.testing.assert_close(dense(x)[..., ::2, ::2], strided(x))


def test_dilation_spreads_the_taps_of_the_depthwise_kernel():
    block = build(replace(FROST, kernel_size=3), dilation=4)
    x = torch.zeros(1, 336, 17, 17)
    x[..., 8, 8] = 1
    with torch.no_grad():
        block.depthwise.conv.weight.fill_(1)
        rows = block.depthwise.conv(x)[0, 0].sum(1).nonzero().flatten()
    assert rows.tolist() == [4, 8, 12]


def test_the_head_is_a_linear_map_of_the_mean_feature():
    head = _randomised(build(HeadSpec(16, 32, 5, 0.2, "relu")))
    x = torch.randn(2, 16, 4, 4)
    mean = head.conv(x).mean((2, 3))
    expected = mean @ head.classifier.weight[:, :, 0, 0].T + head.classifier.bias
    torch.testing.assert_close(head(x), expected)


def test_the_stem_halves_the_picture_when_told_to():
    assert build(StemSpec(3, 16, 3, 2, "relu"))(torch.randn(1, 3, 33, 33)).shape == (1, 16, 17, 17)


def test_initialisation_is_kaiming_normal_by_fan_out_but_small_in_the_classifier():
    torch.manual_seed(0)
    head = build(HeadSpec(256, 512, 100, 0.2, "relu"))
    init_weights(head)
    assert head.conv.conv.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert head.classifier.bias.abs().max() == 0
    assert (head.conv.bn.weight == 1).all() and (head.conv.bn.bias == 0).all()
