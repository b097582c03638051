"""Models of several traceable parts with something untraceable between them: each part is quantized by itself."""

import pytest
import torch
from torch import Tensor, nn

import quant
from quant import QuantConfig
from tasks import parts


class TwoStage(nn.Module):
    """Features, a choice that depends on the data, and a head on what was chosen."""

    PARTS = ("features", "head")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))

    def part_examples(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": images, "head": torch.zeros(2, 8, 1, 1, device=images.device)}


def run(model: nn.Module, images: Tensor) -> Tensor:
    maps = model.features(images)
    brightest = [maps[i, :, int(m.sum(0).argmax()) // 8, int(m.sum(0).argmax()) % 8] for i, m in enumerate(maps)]
    return model.head(torch.stack(brightest)[:, :, None, None])


def pictures(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trained() -> nn.Module:
    return parts.calibrate(TwoStage(), [pictures()], QuantConfig(), "minmax", run)


def test_every_part_gets_quantizers_and_keeps_its_parameters():
    model = TwoStage()
    graph = parts.attach(model, pictures(), QuantConfig())
    assert isinstance(graph, TwoStage) and graph is not model and isinstance(model.features, nn.Sequential)
    assert {id(p) for p in graph.parameters()} == {id(p) for p in model.parameters()}
    rows = parts.plan(model, pictures(), QuantConfig())
    assert sum(bool(row.weight) for row in rows) == 2
    names = set(quant.quantizers_of(graph))
    assert any(name.startswith("features.") for name in names) and any(name.startswith("head.") for name in names)


def test_the_inputs_of_the_parts_are_what_running_the_model_gives_them():
    model = TwoStage().eval()
    inputs = parts.inputs_of(model, pictures(), run)
    assert torch.equal(inputs["features"], pictures()) and inputs["head"].shape == (6, 8, 1, 1)
    assert torch.equal(model.head(inputs["head"]), run(model, pictures()))
    assert not model.features._forward_pre_hooks and not model.head._forward_pre_hooks


@pytest.mark.parametrize("engine", ("reference", "fbgemm"))
def test_integers_compute_what_fake_quant_does_in_every_part(engine):
    graph = trained()
    converted = parts.convert(graph, engine)
    assert torch.allclose(run(converted, pictures()), run(graph, pictures()), atol=0.05)
    reports = parts.parity(graph, converted, parts.inputs_of(graph, pictures(), run))
    assert set(reports) == {"features", "head"} and all(report.check().layer_steps <= 1 for report in reports.values())
    assert parts.float_ops(converted) == [] and run(graph, pictures()).std() > 0.05


def test_frozen_parts_compute_what_their_modules_do():
    graph = trained()
    frozen = parts.freeze(parts.convert(graph, "fbgemm"), pictures(1))
    maps, scores = frozen(pictures(1))
    assert torch.allclose(maps, graph.features(pictures(1)), atol=0.05) and scores.shape == (2, 4)
    floating = parts.freeze_float(TwoStage(), pictures(1), "fbgemm")
    assert torch.allclose(floating(pictures(1))[0], TwoStage().eval().features(pictures(1)), atol=1e-5)


def test_calibration_of_a_later_part_sees_what_the_earlier_ones_give():
    graph = trained()
    seen = parts.inputs_of(TwoStage().eval(), pictures(), run)["head"]
    quantizer = next(q for name, q in quant.quantizers_of(graph.head).items() if "input" in name)
    assert quantizer.qparams().highest == pytest.approx(float(seen.max()), rel=0.01)


def test_a_model_that_is_its_own_part_goes_straight_to_quant():
    model = TwoStage().features
    graph = parts.attach(model, pictures(), QuantConfig())
    assert isinstance(graph, torch.fx.GraphModule) and parts.parts_of(graph) == {"": graph}
    assert parts.examples_of(model, pictures()).keys() == {""} and parts.with_parts(model, {"": graph}) is graph


def test_biases_of_every_part_are_snapped():
    graph = trained()
    bias = graph.head.get_submodule("1").bias
    with torch.no_grad():
        bias.add_(0.01234)
    before = bias.clone()
    parts.snap_biases(graph)
    assert not torch.equal(before, bias) and torch.allclose(before, bias, atol=0.01)
