"""quant.calibrate: ranges with known answers, the model that stays as it is, and the integer network that comes out."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import quant
from quant import Override, QuantConfig, QuantError
from quant.calibrate import METHODS, calibrate
from quant.quantizers import Int8Activation
from tests.quant.calibration import INF, calibrated, config, only, row
from tests.strategies import examples


class Net(nn.Module):
    """conv-bn-relu6, depthwise-bn-hardswish, projection, addition, pooling, dropout, linear."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.dw = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.Hardswish())
        self.project = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.dw(x))
        return self.fc(F.dropout(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), 0.2, training=self.training))


# ---- known answers -----------------------------------------------------------------------------------------


def test_minimum_and_maximum_of_all_batches_not_of_the_last_or_the_mean():
    batches = [row(0.5, -0.25), row(-3.0, 0.0), row(7.0, 1.0), row(0.0, 0.0)]
    quantizer = only(calibrate(nn.Identity(), batches))
    assert (quantizer.lo.item(), quantizer.hi.item()) == (-3.0, 7.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("activation", "highest"), [(nn.ReLU(), 50.0), (nn.ReLU6(), 6.0)])
def test_a_fused_activation_bounds_the_range(method, activation, highest):
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), activation)
    nn.init.ones_(model[0].weight)
    x = torch.linspace(-100, 50, 3001).view(1, 1, 1, -1)
    relu = list(quant.quantizers_of(calibrate(model, [x], method=method)).values())[-1]
    assert (relu.floor, relu.ceiling) == (0.0, INF if highest == 50 else 6.0)
    assert relu.lo.item() == 0.0
    assert relu.hi.item() == pytest.approx(highest, rel=0.02)


@pytest.mark.parametrize("values", [(2.0, 3.0, 5.0), (-2.0, -3.0, -5.0)])
@pytest.mark.parametrize("method", METHODS)
def test_every_range_contains_zero(method, values):
    lo, hi, _ = calibrated(row(*values), method)
    assert min(abs(lo), abs(hi)) == 0.0
    assert max(abs(lo), abs(hi)) == pytest.approx(5.0, rel=0.02)


def test_percentiles_of_known_distributions():
    uniform = torch.arange(200_000).add(0.5).div(200_000).view(1, 1, 400, 500)
    lo, hi, _ = calibrated(uniform, "percentile", percentile=99.0)
    assert (lo, hi) == (0.0, pytest.approx(0.99, rel=1e-3)), "all values on one side of zero: cut at that side alone"
    lo, hi, _ = calibrated(4 * uniform - 1, "percentile", percentile=90.0)
    assert (lo, hi) == (pytest.approx(-0.8, rel=2e-3), pytest.approx(2.8, rel=2e-3))
    normal = torch.special.ndtri(uniform.double()).float()
    lo, hi, _ = calibrated(normal, "percentile", percentile=99.9)
    assert (lo, hi) == (pytest.approx(-3.2905, rel=5e-3), pytest.approx(3.2905, rel=5e-3))


def test_zeros_count_as_values():
    half_zeros = torch.cat([torch.zeros(1000), torch.arange(1000) / 1000]).view(1, 1, 40, 50)
    assert calibrated(half_zeros, "percentile", percentile=75.0)[1] == pytest.approx(0.5, rel=0.02)


def test_the_percentile_is_of_all_data_not_a_mean_over_batches():
    calm, wild = torch.full((1, 1, 30, 30), 1.0), torch.full((1, 1, 10, 10), 100.0)
    graph = calibrate(nn.Identity(), [calm, wild], config(), "percentile", percentile=89.0)
    assert only(graph).hi.item() == pytest.approx(1.0, rel=0.02)
    graph = calibrate(nn.Identity(), [calm, wild], config(), "percentile", percentile=91.0)
    assert only(graph).hi.item() == pytest.approx(100.0, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_symmetric_grids_take_the_larger_side(method):
    quantizer = only(
        calibrate(nn.Identity(), [torch.linspace(-4, 1, 5000).view(1, 1, 50, 100)], config(scheme="symmetric"), method)
    )
    assert quantizer.hi.item() == pytest.approx(4.0, rel=0.02)
    assert quantizer.grid().zero_point == 127


@pytest.mark.parametrize("method", METHODS)
def test_constant_zero_and_constant_six_do_not_divide(method):
    assert calibrated(torch.zeros(1, 1, 4, 4), method) == (0.0, 0.0, 0.0)
    lo, hi, error = calibrated(torch.full((1, 1, 4, 4), 6.0), method)
    assert (lo, hi) == (0.0, 6.0)
    assert error < 1e-12


# ---- minmax against observing ------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [-INF, 0.0])
def test_minmax_is_the_extremes_of_what_observing_sees_batch_by_batch(floor):
    """A quantizer's first training batch sets its range exactly."""
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 8, 8) * scale for scale in (1.0, 4.0, 2.0)]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU() if floor == 0.0 else nn.Hardswish(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1)
    )
    seen = []
    for x in batches:
        graph = quant.attach(model, x).train()
        quant.set_mode(graph, observe=True, fake_quant=False)
        graph(x)
        seen.append(
            {
                name: (q.lo.item(), q.hi.item())
                for name, q in quant.quantizers_of(graph).items()
                if isinstance(q, Int8Activation)
            }
        )
    graph = calibrate(model, batches)
    for name in seen[0]:
        los, his = zip(*(ranges[name] for ranges in seen))
        assert (graph.get_submodule(name).lo.item(), graph.get_submodule(name).hi.item()) == (min(los), max(his)), name
    assert len(seen[0]) >= 3


# ---- invariance --------------------------------------------------------------------------------------------


@given(data=st.data())
@examples(15)
def test_order_and_split_of_the_batches_do_not_matter(data):
    torch.manual_seed(0)
    x = torch.randn(12, 2, 3, 3).exp() - 1
    order = torch.tensor(data.draw(st.permutations(range(12))))
    cuts = sorted(data.draw(st.sets(st.integers(1, 11), max_size=4)))
    parts = x[order].tensor_split(cuts)
    method = data.draw(st.sampled_from(METHODS))
    model = nn.Sequential(nn.ReLU(), nn.Hardswish(), nn.MaxPool2d(2))
    whole, split = (calibrate(model, batches, config(4), method).state_dict() for batches in ([x], parts))
    assert whole.keys() == split.keys()
    values = {name for name in whole if not name.endswith("extra_state")}
    assert len(values) >= 2
    assert all(torch.equal(whole[name], split[name]) for name in values)


def test_tensors_may_come_alone_or_with_labels_from_any_iterable():
    x = torch.randn(8, 3, 8, 8)
    forms = [[x], iter([x]), [(x, torch.zeros(8))], [[x]], x.split(4), DataLoader(TensorDataset(x, torch.zeros(8)), 4)]
    ranges = [only(calibrate(nn.Identity(), form)).hi for form in forms]
    assert all(torch.equal(hi, ranges[0]) for hi in ranges)


# ---- the model, the graph, and the integer network ---------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_float_model_is_left_alone(method):
    torch.manual_seed(0)
    model, x = Net().train(), torch.randn(8, 3, 8, 8)
    model(x)
    model.stem.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    graph = calibrate(model, [x, 2 * x], method=method)
    assert [m.training for m in model.modules()] == modes
    assert type(model.fc) is nn.Linear
    assert not any(m._forward_pre_hooks for m in itertools.chain(model.modules(), graph.modules()))
    assert not any(m.training for m in graph.modules())
    graph.train()(x).sum().backward()
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.add_(1.0)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())


def test_statistics_of_batch_norm_are_the_float_models():
    torch.manual_seed(0)
    model, x = Net().train(), torch.randn(8, 3, 8, 8)
    model(x)
    graph = calibrate(model, [3 * x + 1])
    for name in ("stem.1", "dw.1", "project.1"):
        assert torch.equal(graph.get_submodule(name).running_mean, model.get_submodule(name).running_mean)
    quant.set_mode(graph, observe=False, fake_quant=False)
    assert torch.allclose(graph(x), model.eval()(x), atol=2e-3)  # biases have moved onto their integer grids


def test_ranges_are_of_the_float_network():
    """Rounding of one tensor does not move the range of the next."""
    model, x = Net().eval(), torch.randn(8, 3, 8, 8)
    ranges = [calibrate(model, [x], config(bits)).get_buffer("fc_quant.hi") for bits in (2, 8)]
    assert torch.equal(*ranges)
    assert ranges[0] == model(x).max()


def test_training_goes_on_from_calibrated_ranges():
    """The next batch moves a range by the momentum instead of setting it anew."""
    x = torch.ones(1, 1, 2, 2)
    graph = calibrate(nn.Identity(), [x])
    graph.train()(11 * x)
    assert only(graph).hi.item() == pytest.approx(1 + 0.05 * 10)


def test_a_delay_is_over():
    graph = calibrate(nn.Identity(), [torch.randn(2, 3, 4, 4)], config(delay=100))
    assert only(graph).ready()
    assert only(graph).qparams().scale > 0


def test_a_quantizer_of_several_tensors_takes_in_all_of_them():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Hardswish()

        def forward(self, x):
            return self.act(x) + self.act(10 * x)

    x = torch.ones(1, 1, 2, 2)
    shared = QuantConfig(share=(("act", "act_1"),))
    names = [row.makes for row in quant.plan(Twice(), x, shared) if row.name.startswith("act")]
    assert len(names) == 2 and len(set(names)) == 1
    graph = calibrate(Twice(), [x], shared)
    assert graph.get_submodule(names[0]).hi.item() == 10.0
    graph = calibrate(Twice(), [x], shared, "percentile", percentile=75.0)
    assert graph.get_submodule(names[0]).hi.item() == pytest.approx(10.0, rel=0.02)


def prototypes(classes, count, seed):
    """A problem that a small network solves: a pattern for each class, in noise."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.randn(classes, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, classes, (count,), generator=draw)
    return patterns[labels] + 1.5 * torch.randn(count, 3, 8, 8, generator=draw), labels


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    x, y = prototypes(4, 1024, 0)
    for _ in range(8):
        for images, labels in zip(x.split(64), y.split(64)):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize("engine", ["reference", *quant.available()])
@pytest.mark.parametrize("method", METHODS)
def test_the_integer_network_computes_what_was_calibrated(trained, method, engine):
    x, y = prototypes(4, 512, 1)
    graph = calibrate(
        trained, [(a, None) for a in prototypes(4, 256, 0)[0].split(64)], QuantConfig(engine=engine), method
    )
    executor = quant.convert(graph, engine)
    report = quant.parity(graph, executor, x[:64]).check()
    assert report.agreement >= 0.98
    with torch.no_grad(), quant.use_engine(engine):
        correct = {
            name: (net(x).argmax(1) == y).double().mean().item()
            for name, net in (("float", trained), ("fake-quant", graph), ("int8", executor))
        }
    assert correct["float"] > 0.6, "far above a guess"
    assert correct["int8"] == pytest.approx(correct["fake-quant"], abs=0.01)
    assert correct["int8"] == pytest.approx(correct["float"], abs=0.03)


# ---- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "entropy"}, "method: 'entropy' is not one of minmax, percentile, mse"),
        ({"percentile": 0.9999}, "percentile: 0.9999, must be between 50 and 100"),
        ({"batches": []}, "batches: there are none"),
        ({"batches": iter(())}, "batches: there are none"),
        ({"batches": ["images"]}, "batches: need tensors.*not str"),
        ({"batches": [torch.zeros(0, 3, 8, 8)]}, "batches: .*empty"),
        ({"config": QuantConfig(activation="pact:4")}, "only int8.*dw.2_quant.*PactActivation"),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(QuantError, match=words):
        calibrate(**{"model": Net(), "batches": [torch.randn(2, 3, 8, 8)]} | changes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, INF])
def test_values_that_are_not_finite_name_the_quantizer(method, bad):
    model, x = Net(), torch.randn(2, 3, 8, 8)
    model.project[0].bias.data[3] = bad
    with pytest.raises(QuantError, match=f"project.1_quant: its values reach from .*{bad}"):
        calibrate(model, [x], method=method)


def test_an_attached_graph_is_refused():
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(QuantError, match="has quantizers already"):
        calibrate(quant.attach(Net(), x), [x])


def test_layers_may_stay_float_and_widths_may_differ():
    overrides = (Override(match="stem.0", activation="int8:8", weight="int8:8"),)
    mixed = QuantConfig(activation="int8:4", weight="int8:4", ignore=("fc",), overrides=overrides)
    graph = calibrate(Net(), [torch.randn(2, 3, 8, 8)], mixed)
    assert graph.x_quant.bits == 8
    assert graph.get_submodule("stem.2_read_quant").qparams().qmax == 15


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_too(method):
    model, x = Net().eval(), torch.randn(8, 3, 8, 8)
    here, there = calibrate(model, [x], method=method), calibrate(copy.deepcopy(model).cuda(), [x], method=method)
    assert all(p.is_cuda for p in there.parameters())
    assert there.x_quant.hi.item() == here.x_quant.hi.item()
