"""quant.training.backprop and quant.training.train_8bit:

8-bit forward and backward (arXiv:1805.11046), and that a network trains by them.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import distributed
from quant import QuantError
from quant.quantizers.gradients import NoiseStream, minmax_gradient
from quant.training.backprop import Bifurcation, QBPConv2d, QBPLinear, QBPRangeBN2d, SampleRange, _Linear, round_affine
from quant.training.train_8bit import train_8bit


class HalfNoise(NoiseStream):
    """Rounds every gradient to the nearest."""

    def uniform_like(self, x):
        return torch.full_like(x, 0.5)


def bifurcation(weight_bits, bits=8, seed=0, zero_point=False):
    return Bifurcation(bits, weight_bits, zero_point, seed)


# --- roundings


def test_activation_range_is_the_mean_over_the_samples():
    x = torch.tensor([[0.0, 1.0, 0.4], [0.0, 3.0, 2.2]])
    quantizer = SampleRange(bits=2)
    torch.testing.assert_close(quantizer(x), torch.tensor([[0.0, 4 / 3, 2 / 3], [0.0, 2.0, 2.0]]))  # 3 is clipped
    assert (quantizer.lo.item(), quantizer.span.item()) == (0.0, 2.0)


def test_clipped_activations_keep_their_gradient():
    x = torch.tensor([[0.0, 1.0, 0.4], [0.0, 3.0, 2.2]], requires_grad=True)
    g = torch.randn(2, 3)
    assert torch.equal(torch.autograd.grad(SampleRange(2)(x), x, g)[0], g)


def test_running_range_in_torchs_sense():
    x = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    quantizer, seen = SampleRange(momentum=0.9), []
    quantizer.batches.fill_(1)
    for _ in range(3):
        quantizer(x)
        seen.append(quantizer.span.item())
    assert seen == pytest.approx([1.8, 1.98, 1.998])
    first = SampleRange(momentum=0.1)
    first(x)
    assert first.span.item() == 2.0  # the first batch sets the range


def test_evaluation_uses_the_running_range():
    quantizer = SampleRange(bits=2)
    quantizer(torch.tensor([[0.0, 3.0]]))
    before = copy.deepcopy(quantizer.state_dict())
    x = torch.tensor([[0.4, 1.4, 9.0]])
    torch.testing.assert_close(quantizer.eval()(x), torch.tensor([[0.0, 1.0, 3.0]]))
    assert all(torch.equal(before[k], v) for k, v in quantizer.state_dict().items())
    assert torch.equal(SampleRange().eval()(x), x)  # never trained: no range, no rounding


def test_weights_have_a_grid_for_each_output_channel():
    w = torch.tensor([[0.0, 1.0, 3.0], [-6.0, 0.0, 0.4], [2.0, 2.0, 2.0]], requires_grad=True)
    y = round_affine(w, 2, per_slice=True)
    # steps 1, 6.4 / 3, none
    torch.testing.assert_close(y, torch.tensor([[0.0, 1.0, 3.0], [-6.0, 0.4, 0.4], [2.0, 2.0, 2.0]]))
    assert torch.equal(torch.autograd.grad(y, w, torch.ones_like(w))[0], torch.ones_like(w))


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_constant_tensor_is_left_alone(value):
    b = torch.full((5,), value)
    assert torch.equal(round_affine(b, 16), b)
    x = torch.tensor([[[1.0, 1.0]], [[value, value]]])  # constant samples, each its own
    assert torch.equal(SampleRange()(x), x)


# --- gradient bifurcation


def test_bifurcation_worked_numbers():
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    w = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0], [-1.0, 0.25]], requires_grad=True)
    b = torch.zeros(4, requires_grad=True)
    g = torch.tensor([[0.9, -0.3, 0.12, -0.6]])
    split = bifurcation(32, bits=2)
    split.noise = HalfNoise()
    dx, dw, db = torch.autograd.grad(_Linear.apply(x, w, b, split), (x, w, b), g)
    torch.testing.assert_close(dx, torch.tensor([[1.45, -1.35]]))  # in float it would be 1.35, -1.53
    torch.testing.assert_close(dw, torch.tensor([[0.9, 1.8], [-0.3, -0.6], [0.12, 0.24], [-0.6, -1.2]]))
    assert torch.equal(db, g[0])


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bits, seed):
        ctx.bits, ctx.seed = bits, seed
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return minmax_gradient(grad, ctx.bits, NoiseStream(ctx.seed).uniform_like(grad)), None, None


def two_forwards(operation, x, w, b, seed, weight_bits):
    """The published trick: one forward for the weights, one for the input, the value of one of them taken out."""
    for_weight = operation(x.detach(), w, b)
    for_weight = for_weight if weight_bits == 32 else _Rounded.apply(for_weight, weight_bits, seed)
    for_input = operation(x, w.detach(), None if b is None else b.detach())
    return for_weight + _Rounded.apply(for_input, 8, seed) - for_weight.detach()


LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (3, 4, 7, 7)),
    "strided": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
        (3, 4, 8, 7),
    ),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (3, 4, 7, 7)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 7, 7)),
    "same": (lambda: nn.Conv2d(4, 6, 2, padding="same"), (3, 4, 7, 7)),
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "tokens": (lambda: nn.Linear(5, 3, bias=False), (4, 6, 5)),
}
CLASSES = {nn.Conv2d: QBPConv2d, nn.Linear: QBPLinear}


@pytest.mark.parametrize("weight_bits", [16, 32])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_one_forward_gives_the_gradients_of_two(name, weight_bits):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double()
    new = CLASSES[type(layer)].from_float(layer, grad_weight_bits=weight_bits, seed=11)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = new(x)
    g = torch.randn_like(y)
    inputs = [x, *layer.parameters()]
    got = torch.autograd.grad(y, inputs, g)

    def plain(a, w, b):
        return layer._conv_forward(a, w, b) if isinstance(layer, nn.Conv2d) else F.linear(a, w, b)

    bias = None if layer.bias is None else round_affine(layer.bias, 16)
    expected = two_forwards(
        plain, SampleRange()(x), round_affine(layer.weight, 8, per_slice=True), bias, 11, weight_bits
    )
    torch.testing.assert_close(y, expected)
    for a, b in zip(got, torch.autograd.grad(expected, inputs, g)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("zero_point", [False, True])
def test_both_copies_are_unbiased_and_16_bits_are_finer(zero_point):
    torch.manual_seed(0)
    g, split = torch.randn(500), bifurcation(16, zero_point=zero_point)
    means = [torch.stack(copies).mean(0) for copies in zip(*(split(g) for _ in range(300)))]
    step = (g.max() - g.min()) / 254
    assert (means[0] - g).abs().max() < 5 * 0.5 * step / 300**0.5
    assert (means[1] - g).abs().max() < step / 256
    assert all(split(torch.zeros(3))[i].tolist() == [0, 0, 0] for i in (0, 1))


def test_zero_point_keeps_masked_gradients_out_of_the_layers_below():
    torch.manual_seed(0)
    layer = QBPConv2d.from_float(nn.Conv2d(2, 2, 1), zero_point=True)
    x = torch.randn(2, 2, 6, 6, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    g[:, :, :3] = 0.0
    assert (torch.autograd.grad(y, x, g)[0][:, :, :3] == 0).all()


# --- degenerate tensors, types, layouts


def test_zero_bias_zero_gradient_and_constant_input_stay_finite():
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 16, 4)
    )
    nn.init.zeros_(body[0].bias)
    nn.init.zeros_(body[4].bias)
    nn.init.zeros_(body[1].weight)  # so everything below gets zero gradients
    for x in (torch.zeros(2, 3, 6, 6), torch.full((2, 3, 6, 6), 2.5), torch.randn(2, 3, 6, 6)):
        model = train_8bit(copy.deepcopy(body))
        y = model(x)
        F.cross_entropy(y, torch.tensor([0, 1])).backward()
        assert torch.isfinite(y).all()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        assert not model[0].weight.grad.any()


@pytest.mark.parametrize("name", ["conv", "depthwise", "linear"])
def test_bfloat16_autocast_within_a_step(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    new = CLASSES[type(layer)].from_float(layer)
    x = torch.randn(shape, requires_grad=True)
    full = new(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = new(x)
    assert y.dtype == torch.bfloat16
    step = (full.max() - full.min()) / 255
    assert (y - full).abs().mean() < step
    g = torch.randn_like(full)
    half, exact = (
        torch.autograd.grad(y, [x, layer.weight], g.bfloat16()),
        torch.autograd.grad(full, [x, layer.weight], g),
    )
    for a, b in zip(half, exact):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.02 * b.norm()


def test_channels_last_is_kept():
    model = train_8bit(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    y = model(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.square().sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


# --- the exchange of modules


def small():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10), nn.BatchNorm1d(10)
    )


def test_layers_are_exchanged_and_parameters_stay():
    model = small().eval()
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert train_8bit(model, bits=6) is model
    assert [type(m).__name__ for m in model] == [
        "QBPConv2d",
        "QBPRangeBN2d",
        "ReLU",
        "Flatten",
        "QBPLinear",
        "QBPRangeBN1d",
    ]
    assert all(after is before[name] for name, after in model.named_parameters())
    assert not model[0].training and not model[1].gradient_quant.training
    x, old = torch.randn(4, 3, 8, 8), model[0].weight.clone()
    model.train()(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, old)
    assert isinstance(small()[0], nn.Conv2d) and type(small()[1]) is nn.BatchNorm2d  # models built later are float


def test_one_module_in_two_places_stays_one():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU()), "c": shared})
    train_8bit(model)
    assert isinstance(model["a"], QBPLinear) and model["a"] is model["b"][0] is model["c"]


def test_a_bare_layer_is_returned_exchanged_and_subclasses_stay():
    assert isinstance(train_8bit(nn.Linear(3, 3)), QBPLinear)
    mine = type("Mine", (nn.Linear,), {})(3, 3)
    model = train_8bit(nn.Sequential(nn.Linear(3, 3), mine))
    assert model[1] is mine
    again = model[0]
    with pytest.raises(QuantError, match="holds no Conv2d"):
        train_8bit(model)
    assert model[0] is again


def test_ignored_layers_stay_float():
    model = train_8bit(small(), ignore=("0", "5"))
    assert type(model[0]) is nn.Conv2d and type(model[5]) is nn.BatchNorm1d and isinstance(model[4], QBPLinear)


def test_mistakes_are_named():
    with pytest.raises(QuantError, match="bits: 9, takes 2 to 8"):
        train_8bit(small(), bits=9)
    with pytest.raises(QuantError, match="grad_weight_bits: 8, takes 16 or 32"):
        train_8bit(small(), grad_weight_bits=8)
    with pytest.raises(QuantError, match="constant: 'x'"):
        train_8bit(small(), constant="x")
    with pytest.raises(QuantError, match="holds no Conv2d"):
        train_8bit(nn.Sequential(nn.ReLU()))
    hooked = small()
    hooked[4].register_forward_hook(lambda *a: None)
    with pytest.raises(QuantError, match="hooks"):
        train_8bit(hooked)
    assert type(hooked[0]) is nn.Conv2d  # all or nothing
    with pytest.raises(QuantError, match="needs a batch"):
        train_8bit(small())[0](torch.randn(3, 8, 8))


# --- training


class Residual(nn.Module):
    """Where the published implementation was NaN from the first epoch: blocks whose last batch norm starts at 0, biases
    that start at 0.
    """

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        y += x
        return F.relu(y, inplace=True)


def residual_net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        Residual(12),
        nn.MaxPool2d(2),
        Residual(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )
    nn.init.zeros_(model[-1].bias)
    return model


def pictures(step, n=32):
    """Stripes in one of four directions, under noise."""
    generator = torch.Generator().manual_seed(1000 + step)
    labels = torch.randint(4, (n,), generator=generator)
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    waves = torch.stack([torch.sin(1.6 * w) for w in (row, column, (row + column) / 1.4, (row - column) / 1.4)])
    return waves[labels].unsqueeze(1) + torch.randn(n, 3, 12, 12, generator=generator), labels


def train(model, steps, optimizer=None, after=lambda: None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in steps:
        x, labels = pictures(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        after()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


@pytest.mark.parametrize("options", [{}, {"zero_point": True, "grad_weight_bits": 32}])
def test_a_residual_network_trains_as_in_float(options):
    model = train_8bit(residual_net(), **options)
    losses, _ = train(model, range(40))
    assert all(torch.isfinite(p.grad).all() and torch.isfinite(p).all() for p in model.parameters())
    in_float, _ = train(residual_net(), range(40))
    late, late_float = sum(losses[-8:]) / 8, sum(in_float[-8:]) / 8
    assert losses[0] == pytest.approx(in_float[0], abs=0.1)
    assert late < 0.3 * losses[0]
    assert late < late_float + 0.15


def test_a_trained_model_goes_on_where_it_was():
    model = residual_net()
    losses, optimizer = train(model, range(40))
    x = pictures(100)[0]
    expected = model.eval()(x)
    train_8bit(model)
    assert (model(x) - expected).norm() / expected.norm() < 0.03  # in evaluation: Range BN computes what batch norm did
    # the optimizer's momentum is still that of these Parameters
    more, _ = train(model.train(), range(40, 48), optimizer)
    assert max(more) < 0.3 * losses[0]


def test_training_resumes_bit_for_bit(tmp_path):
    model = train_8bit(residual_net(), seed=3)
    _, optimizer = train(model, range(2))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    expected, _ = train(model, range(2, 5), optimizer)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    fresh = train_8bit(residual_net(seed=1))
    fresh.load_state_dict(state["model"])
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    optimizer.load_state_dict(state["optimizer"])
    got, _ = train(fresh, range(2, 5), optimizer)
    assert got == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters()))


def test_the_seed_decides_the_noise():
    losses = [train(train_8bit(residual_net(), seed=seed), range(4))[0] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_evaluation_changes_nothing():
    model = train_8bit(residual_net())
    train(model, range(2))
    before = copy.deepcopy(model.state_dict())
    model.eval()
    x = pictures(0)[0]
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) if isinstance(v, torch.Tensor) else v == after[k] for k, v in before.items())


def test_range_bn_rounds_its_input_and_its_gradient():
    bn = QBPRangeBN2d(3, bits=2, seed=5)
    y = bn(torch.randn(4, 3, 8, 8))
    assert y[:, 0].unique().numel() <= 4
    g = torch.randn_like(y)
    (dbias,) = torch.autograd.grad(y, bn.bias, g)
    torch.testing.assert_close(dbias, minmax_gradient(g, 2, NoiseStream(5).uniform_like(g)).sum((0, 2, 3)))


def _one_rank(rank, address, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    model = train_8bit(residual_net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (rank, 2 + rank):
        train(model, [step], optimizer, after=lambda: distributed.average([model]))
    stream = model[0].bifurcation.noise
    torch.save({"state": model.state_dict(), "noise": stream.uniform_like(torch.empty(8))}, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_end_with_equal_state_and_unlike_noise(tmp_path):
    torch.multiprocessing.spawn(_one_rank, (tmp_path / "address", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first["state"].items():
        other = second["state"][name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert not torch.equal(first["noise"], second["noise"])
