"""Networks for detection and segmentation as integers: pyramids, gates, and whole ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.integer.graph import leaves
from quant.integer.parity import output_steps
from tests.quant.executors.kernels import STEPS, Two, check, each_engine, on_codes
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
    """An ESP block: reduced, branches of growing dilation, their sums fused stepwise, concatenated, projected."""

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


def test_a_checkpoint_of_an_attached_network_with_resizing_is_taken_up_again():
    x = torch.rand(2, 3, 16, 16)
    trained, fresh = observed(Gated(), x), quant.attach(Gated(), x).eval()
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(x), trained(x))


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
