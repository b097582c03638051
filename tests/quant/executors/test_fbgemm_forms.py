"""Convolutions of many groups, dilated or not, in forms that fbgemm has kernels for: the values are the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant import QuantConfig
from quant.calibrate import calibrate
from quant.executors.fbgemm_forms import apart, fast_form, together
from quant.integer.graph import Op
from tests.quant.executors.kernels import check, each_engine, on_codes


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


DILATED = {
    f"{groups} groups of {channels // groups}, {kernel}x{kernel}, dilation {dilation}": (
        channels,
        groups,
        kernel,
        dilation,
    )
    for channels, groups in ((24, 24), (104, 104), (16, 4), (64, 32), (6, 1))
    for kernel, dilation in ((3, 2), (3, 16), (5, 2), (5, 4))
}


@each_engine
@pytest.mark.parametrize("name", DILATED)
def test_dilated_convolutions(name, engine):
    channels, groups, kernel, dilation = DILATED[name]
    conv = nn.Conv2d(channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=groups)
    check(nn.Sequential(conv), on_codes(1, channels, 11, 9), engine, "conv", whole=2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("engine", ["fbgemm", "x86", "onednn"])
@pytest.mark.parametrize(
    ("channels", "groups", "outputs", "kernel", "dilation"),
    [
        (24, 24, 24, 3, 2),
        (24, 24, 24, 3, 4),
        (104, 104, 208, 5, 2),
        (104, 104, 104, 3, 2),
        (64, 32, 64, 3, 2),
        (64, 4, 32, 3, 2),
        (134, 134, 134, 3, 3),
        (6, 1, 6, 3, 2),
        (24, 24, 24, (1, 3), (1, 2)),
        (58, 58, 58, 3, 1),
        (116, 116, 232, 3, 1),
        (16, 16, 16, 2, 1),
    ],
)
def test_forms_for_fbgemm_compute_the_same(channels, groups, outputs, kernel, dilation, engine, stride):
    conv = nn.Conv2d(channels, outputs, kernel, stride, "valid", dilation, groups)
    attrs = {"stride": conv.stride, "padding": (0, 3), "dilation": conv.dilation, "groups": groups}
    op = Op("conv", "conv", weight=torch.randint(-127, 128, conv.weight.shape, dtype=torch.int8), attrs=attrs)
    (form, phases), x = fast_form(op, engine), torch.randint(-128, 128, (2, channels, 13, 11)).double()
    expected, got = (
        F.conv2d(x, op.weight.double(), **op.attrs),
        F.conv2d(apart(x, phases), form.weight.double(), **form.attrs),
    )
    got = together(got, phases, (13, 11)) if phases > 1 else got
    assert torch.equal(expected, got)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 4), (5, 2), (5, 3), (7, 2)])
@pytest.mark.parametrize("size", [(13, 11), (12, 12), (4, 5)])
def test_phases_for_fbgemm_compute_the_same(kernel, dilation, size):
    attrs = {"stride": 1, "padding": (dilation * (kernel // 2),) * 2, "dilation": dilation, "groups": 24}
    op = Op("conv", "conv", weight=torch.randint(-127, 128, (24, 1, kernel, kernel), dtype=torch.int8), attrs=attrs)
    (form, phases), x = fast_form(op, "fbgemm"), torch.randint(-128, 128, (2, 24, *size)).double()
    assert phases == dilation and form.attrs["dilation"] == (1, 1)
    got = together(F.conv2d(apart(x, phases), form.weight.double(), **form.attrs), phases, size)
    assert torch.equal(got, F.conv2d(x, op.weight.double(), **attrs)) and got.is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("made_for", [(16, 16), (13, 11)])
def test_a_network_frozen_in_phases_takes_pictures_of_any_size_and_number(made_for, tmp_path):
    conv = nn.Conv2d(24, 24, 5, padding=4, dilation=2, groups=24)
    executor = quant.convert(
        calibrate(nn.Sequential(conv), [on_codes(2, 24, 16, 16)], QuantConfig(engine="fbgemm")), "fbgemm"
    )
    assert max(executor.phases.values()) == 2
    frozen = quant.freeze(executor, on_codes(1, 24, *made_for))
    frozen.save(tmp_path / "network")
    for shape in ((1, 24, *made_for), (3, 24, 16, 16), (2, 24, 17, 12), (1, 24, 12, 17), (1, 24, 3, 5)):
        x = on_codes(*shape)
        with torch.inference_mode():
            expected = executor(x)
            assert torch.equal(frozen(x), expected) and torch.equal(
                quant.load_frozen(tmp_path / "network")(x), expected
            )


def test_the_form_for_fbgemm_is_by_channel_where_a_kernel_fits_and_in_blocks_elsewhere():
    def form(channels, kernel, dilation, engine="fbgemm", padding=0, phases=1):
        attrs = {"stride": 1, "padding": padding, "dilation": dilation, "groups": channels}
        op, found = fast_form(
            Op("conv", "conv", weight=torch.ones(channels, 1, kernel, kernel, dtype=torch.int8), attrs=attrs), engine
        )
        assert found == phases
        return tuple(op.weight.shape), op.attrs["groups"], op.attrs["dilation"]

    assert form(24, 3, 2) == ((24, 1, 5, 5), 24, (1, 1))
    assert form(128, 3, 4) == ((128, 64, 3, 3), 2, 4)
    assert form(24, 5, 2) == ((24, 24, 5, 5), 1, 2)
    assert form(24, 5, 2, padding=4, phases=2) == ((24, 1, 5, 5), 24, (1, 1))
    assert form(24, 3, 3) == ((24, 1, 7, 7), 24, (1, 1))
    assert form(128, 3, 1) == ((128, 1, 3, 3), 128, 1)
    assert form(58, 3, 1) == ((58, 58, 3, 3), 1, 1)
    assert form(116, 3, 1, "x86") == ((116, 58, 3, 3), 2, 1)
    assert form(58, 3, 1, "onednn") == ((58, 1, 3, 3), 58, 1)
    assert form(128, 3, 2, "onednn") == ((128, 1, 3, 3), 128, 2)
    assert form(128, 3, 2, "x86") == form(128, 3, 2)
