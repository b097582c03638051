"""Networks for detection and segmentation as integers: bilinear resizing, average pooling, dilation, gates, and whole
ones.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant import QuantConfig
from quant.calibrate import calibrate
from quant.executors.fbgemm_forms import apart, fast_form, together
from quant.integer.graph import Op, leaves
from quant.integer.parity import output_steps
from quant.quantizers import SameGrid
from tests.quant.executors.test_kernel_traps import STEPS, Two, check, each_engine, on_codes
from tests.quant.integer.test_outputs import in_tuples, observed, shapes


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def block(inputs, outputs, stride=1, act=nn.ReLU6):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), act())


class Pyramid(nn.Module):
    """Two maps of unlike size, the coarse one added to the fine one; two heads on each, and all of it as one map."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = block(3, 16, 2), block(16, 24, 2)
        self.lateral, self.smooth = nn.Conv2d(16, 24, 1), nn.AvgPool2d(3, 1, 1)
        self.scores, self.boxes = nn.Conv2d(24, 6, 3, padding=1), nn.Conv2d(24, 4, 1)

    def forward(self, x):
        fine = self.fine(x)
        coarse = self.coarse(fine)
        up = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        merged = self.smooth(self.lateral(fine) + up)
        return [[self.scores(merged), self.boxes(merged)], (self.scores(coarse), self.boxes(coarse))], torch.cat(
            [up, merged, fine], 1
        )


class Gated(nn.Module):
    """LR-ASPP's head: a map gated by what is seen everywhere, resized to a finer one and added to it."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = block(3, 8, 2), block(8, 16, 2)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1, bias=False), nn.Sigmoid())
        self.body, self.low, self.high = block(16, 16, act=nn.ReLU), nn.Conv2d(8, 5, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        fine = self.fine(x)
        coarse = self.coarse(fine)
        gated = self.body(coarse) * self.scale(coarse)
        return self.low(fine) + self.high(
            F.interpolate(gated, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        )


class Spatial(nn.Module):
    """An ESP block: reduced, split into branches of growing dilation, their sums fused step by step, concatenated and
    projected.
    """

    def __init__(self):
        super().__init__()
        self.reduce, self.pool = (
            nn.Sequential(nn.Conv2d(16, 8, 1, groups=4, bias=False), nn.BatchNorm2d(8), nn.PReLU(8)),
            nn.MaxPool2d(2, ceil_mode=True),
        )
        self.branches = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=d, dilation=d, groups=8) for d in (1, 2, 4, 8)])
        self.project = nn.Sequential(nn.Conv2d(32, 16, 1, groups=4, bias=False), nn.BatchNorm2d(16))
        self.stem, self.down = nn.Conv2d(3, 13, 3, padding=1), nn.AvgPool2d(3, 2, 1)

    def forward(self, x):
        x = self.pool(torch.cat([self.stem(x), x], 1))
        reduced = self.reduce(x)
        fused = [self.branches[0](reduced)]
        for branch in self.branches[1:]:
            fused.append(fused[-1] + branch(reduced))
        y = F.relu(self.project(torch.cat(fused, 1)) + x)
        left, right = torch.split(self.down(y), [4, 12], 1)
        return torch.cat([right, torch.cat([left, left], 1)], 1), left.chunk(2, 1)[0]


# ---- whole networks ----------------------------------------------------------------------------------------

NETWORKS = {"pyramid": Pyramid, "gated": Gated, "spatial": Spatial}


@each_engine
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_the_same_structure_and_values_converted_frozen_and_read_back(name, engine, tmp_path):
    x = torch.randn(2, 3, 33, 29)
    graph = observed(NETWORKS[name](), x, engine)
    quant.snap_biases(graph)
    executor = quant.convert(graph, engine)
    report = quant.parity(graph, executor, x).check(STEPS.get(engine, 1) + 0.01)
    assert report.output_steps <= 4 and report.agreement > 0.9
    frozen = quant.freeze(executor, x)
    frozen.save(tmp_path / "network")
    loaded = quant.load_frozen(tmp_path / "network", engine if engine in ("onnxruntime", "openvino") else None)
    with quant.use_engine(engine), torch.inference_mode():
        expected = graph(x)
        for network in (executor, frozen, loaded):
            got = network(x)
            assert in_tuples(got) and shapes(got) == shapes(expected)
            assert all(torch.equal(a, b) for a, b in zip(leaves(got), leaves(executor(x))))


@each_engine
def test_codes_come_out_in_the_same_structure(engine):
    x = torch.randn(2, 3, 16, 16)
    graph = observed(Pyramid(), x, engine)
    executor, real = quant.convert(graph, engine, codes_io=True), quant.convert(graph, engine)
    with quant.use_engine(engine), torch.inference_mode():
        got, expected = executor(*quant.code_inputs(executor, x)), real(x)
        assert shapes(got) == shapes(expected)
        ends = [executor.graph.op(op.name).qparams for op in executor.graph.outputs]
        for codes, grid, wanted in zip(leaves(got), ends, leaves(expected), strict=True):
            assert torch.allclose(grid.dequantize(executor.codes(codes)), wanted, atol=1.01 * grid.scale)


# ---- bilinear resizing -------------------------------------------------------------------------------------

RESIZINGS = {
    "twice": {"scale_factor": 2},
    "twice, corners aligned": {"scale_factor": 2, "align_corners": True},
    "1.5 times": {"scale_factor": 1.5},
    "to a size": {"size": (13, 31), "align_corners": False},
    "to a size, corners aligned": {"size": (13, 31), "align_corners": True},
    "smaller": {"size": (3, 4), "align_corners": False},
}


@each_engine
@pytest.mark.parametrize("shape", [(2, 8, 7, 9), (1, 13, 5, 5), (2, 8, 1, 1)])
@pytest.mark.parametrize("name", RESIZINGS)
def test_bilinear_resizing_is_within_half_a_step_of_the_exact_average(name, shape, engine):
    options, x = {"mode": "bilinear"} | RESIZINGS[name], on_codes(*shape)
    graph = calibrate(nn.Sequential(nn.Upsample(**options)), [x], QuantConfig(engine=engine))
    executor = quant.convert(graph, engine)
    first, last = (next(op for op in executor.graph.ops if op.kind == kind) for kind in ("quantize", "resize"))
    assert last.qparams == first.qparams and executor.float_ops == []
    exact = F.interpolate(x.double(), **options)
    with torch.no_grad():
        error = (executor(x).double() - exact).abs().max() / first.qparams.scale
    assert error <= 0.509, "half a step, and the little by which halves are moved away from zero"
    assert error > 0.2 or shape[2:] == (1, 1), "an average of codes lies between them somewhere"


@each_engine
def test_halves_go_the_same_way_in_training_and_on_every_engine(engine):
    """Many averages of a doubled picture lie halfway between two codes: rounding noise must not decide, nor where zero
    lies.
    """
    x = 0.37 * (on_codes(2, 8, 9, 9) + 0.29)
    graph = calibrate(nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear")), [x], QuantConfig(engine=engine))
    executor = quant.convert(graph, engine)
    grid = executor.graph.ops[1].qparams
    averages = F.interpolate(grid.quantize(x).double() - grid.zero_point, scale_factor=2, mode="bilinear")
    assert (averages % 1 == 0.5).float().mean() > 0.02 and grid.zero_point % 2 == 1
    halves_away = torch.sign(averages) * (averages.abs() + 0.5).floor() * grid.scale
    with torch.no_grad():
        assert torch.allclose(graph(x).double(), halves_away, atol=0.01 * grid.scale)
        assert torch.allclose(executor(x).double(), halves_away, atol=0.01 * grid.scale)


@each_engine
@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
def test_a_constant_picture_stays_constant_by_channel(size, engine):
    values = on_codes(1, 16, 1, 1)
    x = values.expand(2, 16, *size).contiguous()
    graph = calibrate(nn.Sequential(nn.Upsample((9, 11), mode="bilinear")), [x], QuantConfig(engine=engine))
    executor = quant.convert(graph, engine)
    with torch.no_grad():
        assert torch.equal(executor(x), graph(x)[:, :, :1, :1].expand(2, 16, 9, 11))
        assert torch.allclose(executor(x), values.expand(2, 16, 9, 11), atol=0.01)


def test_resizing_has_no_range_of_its_own_and_passes_the_gradient_as_it_is():
    model = nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"))
    x = (0.1 + torch.rand(2, 3, 5, 5)).requires_grad_()  # none that rounds to zero, where ReLU has no gradient
    graph = quant.attach(model, x.detach()).train()
    quantizers = quant.quantizers_of(graph)
    (same,) = (q for q in quantizers.values() if isinstance(q, SameGrid))
    assert len(quantizers) == 2 and not list(same.parameters()) and not list(same.buffers())
    y, weight = graph(x), torch.rand(2, 3, 10, 10)
    (got,) = torch.autograd.grad((y * weight).sum(), x)
    (expected,) = torch.autograd.grad((F.interpolate(x.relu(), scale_factor=2, mode="bilinear") * weight).sum(), x)
    assert torch.allclose(got, expected)
    codes = y.detach() / same.qparams().scale
    assert (codes - codes.round()).abs().max() < 1e-4
    assert same.of.batches == 1, "the source's quantizer has not watched its averages"


def test_resizing_follows_the_switches_and_the_width_of_its_inputs_quantizer():
    x = torch.rand(2, 3, 5, 5)
    graph = quant.attach(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 1)), x
    ).train()
    graph(x)
    (same,) = (q for q in quant.quantizers_of(graph).values() if isinstance(q, SameGrid))
    averages = same.qparams().highest * torch.rand(3, 4, 5, 5)
    quant.set_mode(graph, observe=False, fake_quant=False)
    assert torch.equal(same(averages), averages)
    quant.set_mode(graph, observe=False, fake_quant=True)
    assert same(averages).unique().numel() > 17
    quant.set_bits(graph, 4)
    assert same(averages).unique().numel() <= 16


def test_a_checkpoint_of_an_attached_network_with_resizing_is_taken_up_again():
    x = torch.rand(2, 3, 16, 16)
    trained, fresh = observed(Gated(), x), quant.attach(Gated(), x).eval()
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(x), trained(x))


def test_a_resizing_of_what_lies_on_no_grid_stays_float():
    x = torch.randn(2, 3, 6, 6)
    model = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 4, 1))
    graph = observed(model, x, quantize_input=False)
    executor = quant.convert(graph, "reference")
    assert executor.float_ops == ["_0_read_quant"], "resized in float, then quantized"
    quant.parity(graph, executor, x).check()


def test_a_resizing_between_grids_chosen_by_the_kinds_of_operations_keeps_to_them():
    """Its input is quantized because it is a function, its result because a convolution reads it: on unlike grids."""
    x = torch.randn(2, 3, 6, 6)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample((2, 2), mode="bilinear"), nn.Conv2d(4, 4, 1), nn.Tanh())
    graph = observed(model, x, op_types=("conv", "function"))
    executor = quant.convert(graph, "reference")
    assert not any(op.kind == "resize" for op in executor.graph.ops)
    with torch.no_grad():
        assert (executor(x) - graph(x)).abs().max() <= 0.01


@pytest.mark.parametrize("engine", ["reference", "fbgemm", "onnxruntime"])
def test_sizes_taken_from_another_tensor_follow_the_pictures_that_come(engine):
    graph = observed(Gated(), torch.randn(4, 3, 24, 24), engine)
    executor = quant.convert(graph, engine)
    x = torch.randn(1, 3, 21, 38)
    with torch.no_grad():
        got, expected = executor(x), graph(x)
    assert got.shape == expected.shape == (1, 5, 11, 19)
    assert (got - expected).abs().max() <= 4 * output_steps(executor.graph)[0]


@each_engine
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: (
            a
            * torch.sigmoid(F.interpolate(F.avg_pool2d(b, 2), size=a.shape[-2:], mode="bilinear", align_corners=False))
        ),
        lambda a, b: a * F.interpolate(F.hardsigmoid(F.adaptive_avg_pool2d(b, 1)), size=a.shape[-2:], mode="bilinear"),
        lambda a, b: F.hardsigmoid(b.mean((2, 3), keepdim=True)) * a,
        lambda a, b: torch.cat(
            [a, torch.cat([b, F.interpolate(F.max_pool2d(a, 2), scale_factor=2, mode="bilinear")], 1)], 1
        ),
    ],
    ids=["gate from a coarser map", "gate of one pixel, resized", "gate of one pixel", "nested pyramid"],
)
def test_gates_and_pyramids(function, engine):
    check(Two(function, (4.0, 1.0)), on_codes(2, 8, 6, 6), engine, "conv")


# ---- average pooling ---------------------------------------------------------------------------------------

AS_INTEGERS = {
    "3x3": (8, nn.AvgPool2d(3)),
    "overlapping": (8, nn.AvgPool2d(3, 1)),
    "padded": (8, nn.AvgPool2d(3, 2, 1)),
    "5x5": (16, nn.AvgPool2d(5, 2, 2)),
    "of pictures": (3, nn.AvgPool2d(3, 2, 1)),
    "odd channels": (13, nn.AvgPool2d(3, 2, 1)),
}
IN_FLOAT = {
    "2x2": (8, nn.AvgPool2d(2)),
    "7x7": (8, nn.AvgPool2d(7)),
    "padding not counted": (8, nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "rounded up": (8, nn.AvgPool2d(3, 2, ceil_mode=True)),
    "another divisor": (8, nn.AvgPool2d(3, divisor_override=4)),
    "many odd channels": (39, nn.AvgPool2d(3)),
}


@each_engine
@pytest.mark.parametrize("name", AS_INTEGERS)
def test_average_pooling_is_an_integer_operation(name, engine):
    channels, pool = AS_INTEGERS[name]
    x = on_codes(2, channels, 10, 9)
    graph = calibrate(nn.Sequential(pool), [x], QuantConfig(engine=engine))
    executor = quant.convert(graph, engine)
    assert executor.float_ops == []
    quant.parity(graph, executor, x).check(1.01)
    with torch.no_grad():
        error = (executor(x).double() - pool(x.double())).abs().max()
    assert error <= 0.51 * output_steps(executor.graph)[0]


@pytest.mark.parametrize("name", IN_FLOAT)
def test_other_pooling_by_averages_stays_float_and_right(name):
    channels, pool = IN_FLOAT[name]
    x = on_codes(2, channels, 10, 9)
    graph = calibrate(nn.Sequential(pool), [x], QuantConfig(engine="fbgemm"))
    executor = quant.convert(graph, "fbgemm")
    assert len(executor.float_ops) == 1
    with torch.no_grad():
        error = (executor(x).double() - pool(x.double())).abs().max()
    assert error <= 0.51 * output_steps(executor.graph)[0]


@each_engine
def test_padding_counts_as_zeros(engine):
    """Real zero, whose code is not 0: a constant picture keeps 4 ninths of itself in its corners, 6 along its edges."""
    x = torch.full((1, 8, 4, 4), 0.9)
    x[0, 1] = -0.9
    executor = quant.convert(calibrate(nn.Sequential(nn.AvgPool2d(3, 1, 1)), [x], QuantConfig(engine=engine)), engine)
    with torch.no_grad():
        got = executor(x)[0, 0]
    for place, share in (((0, 0), 4), ((0, 2), 6), ((2, 1), 9)):
        assert got[place].item() == pytest.approx(0.9 * share / 9, abs=0.01)


def test_a_pooling_is_not_taken_for_the_layer_before_it_when_biases_are_snapped():
    """It is a convolution of eleven channels, that has eight."""
    x = torch.randn(2, 8, 8, 8)
    graph = observed(Two(lambda a, b: F.avg_pool2d(torch.cat([a, b[:, :3]], 1), 3, 1)), x)
    quant.snap_biases(graph)
    integers = quant.convert(graph, "reference").graph
    layers = [op for op in integers.ops if op.kind == "conv"]
    assert len(layers) == 3
    for op in layers:
        units = op.bias.double() / (op.weight_scale.double() * integers.op(op.inputs[0]).qparams.scale)
        assert (units - units.round()).abs().max() < 0.01


# ---- dilation ----------------------------------------------------------------------------------------------

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
