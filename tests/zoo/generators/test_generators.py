"""zoo.generators: residual, U-shaped and light ones by name: cost, outputs, quantizers, conversion."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from common.errors import UserError
from nas import count
from nas.blocks import Block
from quant.attach.graph_pass import trace
from quant.attach.layers import QUANTIZED
from tasks import parts
from zoo.generators import NAMES, NORMS, Cycle, build, check_size, knows
from zoo.generators.frost_generator import FrostGenerator
from zoo.generators.norms import NoNorm, init_weights, with_norm
from zoo.generators.resnet_generator import ResNetGenerator
from zoo.generators.unet import UNet

# Parameters with batch norm and G of MACs at 256 x 256, as published: the residual ones by StatAssist's authors, the
# U-Nets by pix2pix's.
PUBLISHED = {
    "resnet_6blocks": (7_841_411, "42.3"),
    "resnet_9blocks": (11_383_427, "56.8"),
    "unet_256": (54_413_955, None),
    "unet_128": (41_828_995, None),
}
NARROW = {
    "resnet": (lambda dropout: ResNetGenerator(2, dropout, channels=8), (2, 3, 16, 24)),
    "unet": (lambda dropout: UNet(4, dropout, channels=8), (2, 3, 32, 48)),
    "frost": (FrostGenerator, (2, 3, 32, 48)),
}
FORMS = [(kind, norm) for kind in NARROW for norm in NORMS]
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def narrow(kind, norm="batch", dropout=0.0):
    """A generator of a kind, narrow where its published width would cost time, and pictures that are not square."""
    torch.manual_seed(0)
    make, shape = NARROW[kind]
    return init_weights(with_norm(make(dropout), norm)), torch.rand(shape) * 2 - 1


@cache
def settled(kind, norm):
    """The same with pictures of some contrast, its batch norms knowing their inputs."""
    model, x = narrow(kind, norm)
    for module in convolutions(model).values():
        nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        for _ in range(15):
            model.train()(x)
        model.eval()
        spread = of_last_convolution(model, x).std()
        [*convolutions(model).values()][-1].weight.mul_(0.5 / spread)
    return model, x


def of_last_convolution(model, x):
    """What tanh makes a picture of."""
    seen = []
    hook = [*convolutions(model).values()][-1].register_forward_hook(lambda _, args, y: seen.append(y))
    model(x)
    hook.remove()
    return seen[0]


def convolutions(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, CONVOLUTIONS)}


# ---- what they cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_they_cost_what_was_published(name):
    with torch.device("meta"):
        params, macs = count(build(name), torch.zeros(1, 3, 256, 256))
    assert params == PUBLISHED[name][0]
    assert PUBLISHED[name][1] in (None, f"{macs / 1e9:.1f}")


def test_the_light_one_costs_a_small_part_of_the_residual_one():
    with torch.device("meta"):
        model, x = build("frost_generator"), torch.zeros(1, 3, 256, 256)
        params, macs = count(model, x)
        heavy_params, heavy_macs = count(build("resnet_6blocks"), x)
    assert macs < heavy_macs / 8
    assert 1e6 < params < 3e6 < heavy_params
    assert all(
        m.in_channels % 8 == m.out_channels % 8 == 0
        for m in convolutions(model).values()
        if 3 not in (m.in_channels, m.out_channels)
    )
    assert sum(isinstance(m, Block) and m.squeeze is not None for m in model.modules()) >= 8


def test_nothing_of_the_light_one_but_its_last_convolution_runs_at_full_resolution():
    model, x = narrow("frost")
    full = []
    for name, module in convolutions(model).items():
        module.register_forward_hook(
            lambda _, args, y, name=name: full.append(name) if y.shape[2:] == x.shape[2:] else None
        )
    model(x)
    assert full == [[*convolutions(model)][-1]]


@pytest.mark.parametrize("kind", NARROW)
def test_a_norm_costs_two_numbers_a_channel_none_one_and_instance_norm_nothing(kind):
    counts = {norm: sum(p.numel() for p in narrow(kind, norm)[0].parameters()) for norm in NORMS}
    model = narrow(kind)[0]
    normed = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    biased = sum(m.out_channels for m in convolutions(model).values() if m.bias is None)
    assert counts["batch"] - counts["instance"] == 2 * normed
    assert counts["none"] - counts["instance"] == biased
    assert biased - normed == (8 + 64 if kind == "unet" else 0)  # its first and its innermost convolution have no norm


# ---- what they compute -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, norm", FORMS)
def test_pictures_become_pictures_of_their_size_within_bounds(kind, norm):
    model, x = settled(kind, norm)
    y = model(x)
    assert y.shape == x.shape
    assert y.abs().max() <= 1 and y.std() > 0.05
    assert torch.equal(trace(model)(x), y)


@pytest.mark.parametrize("kind, norm", FORMS)
def test_gradients_reach_every_parameter(kind, norm):
    model, x = narrow(kind, norm, dropout=0.5)
    F.l1_loss(model.train()(x), x.flip(1)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_plain_pictures_stay_plain():
    """Reflection has no border: zeros beside the picture would be one."""
    model, _ = settled("resnet", "batch")
    y = model(torch.tensor([0.5, -0.2, 0.8]).view(1, 3, 1, 1).expand(1, 3, 16, 16))
    torch.testing.assert_close(y, y[:, :, :1, :1].expand_as(y))


@pytest.mark.parametrize("kind", NARROW)
def test_instance_norm_looks_at_each_picture_alone_in_training_too(kind):
    for norm, alone in (("instance", True), ("none", True), ("batch", False)):
        model, x = settled(kind, norm)
        with torch.no_grad():
            both, first = model.train()(x), model(x[:1])
        model.eval()
        assert torch.allclose(both[:1], first, atol=1e-4) == alone


def test_the_u_net_is_the_published_recursion():
    """There, a step lays what it was given beside what it makes of it, and each way begins with its activation."""
    model, x = settled("unet", "batch")

    def block(depth, y):
        if depth == len(model.downs):
            return model.bottom[0](F.leaky_relu(y, 0.2))
        conv, *norm, _ = model.downs[depth]
        down = nn.Sequential(conv, *norm)(F.leaky_relu(y, 0.2) if depth else y)
        deconv, norm, _ = model.ups[len(model.downs) - 1 - depth]
        return torch.cat([down, norm(deconv(F.relu(block(depth + 1, down))))], 1)

    torch.testing.assert_close(model(x), torch.tanh(model.to_picture[0](F.relu(block(0, x)))))


def test_the_light_one_adds_what_the_way_down_had():
    model, x = settled("frost", "batch")
    seen = {}
    for name in ("stem", "down4", "coarse", "up4", "fine", "up2"):
        model.get_submodule(name).register_forward_hook(lambda _, args, y, name=name: seen.update({name: y}))
    model(x)
    for up, below, skip in (("up4", "coarse", "down4"), ("up2", "fine", "stem")):
        made = model.get_submodule(up).project(seen[below])
        torch.testing.assert_close(
            seen[up] - seen[skip], F.interpolate(made, scale_factor=2.0, mode="bilinear"), atol=1e-4, rtol=1e-4
        )


def test_weights_begin_as_published():
    torch.manual_seed(0)
    model = build("resnet_6blocks")
    weights = torch.cat([m.weight.flatten() for m in convolutions(model).values()])
    gammas = torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert (weights.mean().item(), weights.std().item()) == pytest.approx((0, 0.02), abs=1e-4)
    assert (gammas.mean().item(), gammas.std().item()) == pytest.approx((1, 0.02), abs=1e-3)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_values_keep_their_size_in_the_light_one_without_norms():
    torch.manual_seed(0)
    model, x, spreads = build("frost_generator:none"), torch.rand(1, 3, 64, 64) * 2 - 1, {}
    for name in ("stem", "down4", "down8", "coarse", "fine", "mix"):
        model.get_submodule(name).register_forward_hook(
            lambda _, args, y, name=name: spreads.update({name: y.std().item()})
        )
    with torch.no_grad():
        y = model(x)
    assert all(0.2 < spread < 5 for spread in spreads.values()), spreads
    assert 0.05 < y.std() < 0.9  # not flat, and not all black or white


# ---- dropout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, places", [("resnet_6blocks", 6), ("resnet_9blocks", 9), ("unet_128", 3), ("unet_256", 3)]
)
def test_dropout_is_where_it_was_published(name, places):
    with torch.device("meta"):
        model = build(name, dropout=0.3)
        assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3] * places
        assert not any(isinstance(m, nn.Dropout) for m in build(name).modules())
        if name in ("unet_128", "unet_256"):
            assert [len(up) > 3 for up in model.ups] == [True] * 3 + [False] * (len(model.ups) - 3)


@pytest.mark.parametrize("kind", NARROW)
def test_dropout_is_noise_in_training_only(kind):
    model, x = narrow(kind, "none", dropout=0.5)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    without = narrow(kind, "none")[0]
    without.load_state_dict(model.state_dict())
    assert torch.equal(model(x), without(x))


# ---- norms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, norm", FORMS)
def test_a_norm_leaves_nothing_of_another_behind(kind, norm):
    kinds = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d, "none": NoNorm}
    modules = [*narrow(kind, norm)[0].modules()]
    found = {word: sum(isinstance(m, cls) for m in modules) for word, cls in kinds.items()}
    wanted = sum(isinstance(m, nn.BatchNorm2d) for m in narrow(kind)[0].modules())
    assert found == dict.fromkeys(NORMS, 0) | {norm: wanted} and wanted > 0
    biased = [m.bias is not None for m in modules if isinstance(m, CONVOLUTIONS)]
    assert all(biased) if norm == "none" else sum(biased) == 1


# ---- quantizers and integers -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, norm", FORMS)
def test_every_convolution_gets_its_quantizer_and_groups_stay_whole(kind, norm):
    model, x = narrow(kind, norm)
    graph = quant.attach(model, x)
    assert {name for name, m in graph.named_modules() if type(m) in QUANTIZED.values()} == set(convolutions(model))
    if norm == "none":
        assert len(quant.quantizers_of(graph)) == len(quant.quantizers_of(quant.attach(narrow(kind)[0], x)))


@pytest.mark.parametrize("kind, norm", [(kind, norm) for kind, norm in FORMS if norm != "instance" or kind == "resnet"])
def test_integers_compute_what_was_trained(kind, norm):
    model, x = settled(kind, norm)
    graph = quant.calibrate(model, [x])
    with torch.no_grad():
        expected = graph(x)
    for engine in ("reference", "fbgemm"):
        network = quant.convert(graph, engine)
        pictures = network(x)
        assert pictures.shape == x.shape
        assert 10 * torch.log10(4 / F.mse_loss(pictures, expected)) > 40  # dB
    quant.parity(graph, network, x).check()
    assert torch.equal(quant.freeze(network, x)(x), pictures)


def test_each_of_two_generators_is_quantized_by_itself():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    model = Cycle(lambda: build("frost_generator")).eval()
    assert not torch.equal(model.a_to_b(x), model.b_to_a(x))
    graph = parts.attach(model, x, quant.QuantConfig())
    with torch.no_grad():
        wanted = {name: part(x) for name, part in parts.parts_of(graph.train()).items()}
        wanted = {name: part(x) for name, part in parts.parts_of(graph.eval()).items()}
    network = parts.convert(graph, "reference")
    assert set(wanted) == set(Cycle.PARTS)
    for name, part in parts.parts_of(network).items():
        torch.testing.assert_close(part(x), wanted[name], atol=0.02, rtol=0)
        assert [*parts.parity(graph, network, {name: x for name in Cycle.PARTS})] == [*Cycle.PARTS]


# ---- names and sizes ---------------------------------------------------------------------------------------


def test_names_carry_their_norm():
    with torch.device("meta"):
        for name in NAMES:
            assert knows(name) and all(knows(f"{name}:{norm}") for norm in NORMS)
        assert (
            [*build("unet_128").state_dict()]
            == [*build("unet_128:batch").state_dict()]
            != [*build("unet_128:none").state_dict()]
        )
        assert isinstance(build("frost_generator:instance").stem.bn, nn.InstanceNorm2d)
    assert not any(
        map(knows, ("resnet_6blocks:", "resnet_6blocks:layer", "resnet18", "", "frost_generator:batch:none"))
    )


@pytest.mark.parametrize(
    "name, near", [("resnet_8blocks", "resnet_9blocks"), ("unet_256:instanc", "unet_256:instance"), ("x", "unet_128")]
)
def test_slips_of_the_pen_are_told(name, near):
    with pytest.raises(UserError, match=f"arch: '{name}' is no generator; near it: .*{near}"):
        build(name)


@pytest.mark.parametrize("dropout", [1, -0.1, True, "0.5", float("nan")])
def test_dropout_is_a_share(dropout):
    with pytest.raises(UserError, match="dropout: .*must be a number from 0"):
        build("resnet_6blocks", dropout)


@pytest.mark.parametrize(
    "name, unit", [("resnet_6blocks", 4), ("frost_generator:none", 8), ("unet_128", 128), ("unet_256:none", 256)]
)
def test_sizes_that_a_generator_cannot_halve_are_refused(name, unit):
    check_size(name, unit * max(1, 8 // unit))
    check_size(name, 3 * unit)
    for size in (0, -unit, unit + 1, 2 * unit - unit // 2):
        with pytest.raises(UserError, match=rf"input_size: {size}, must be a multiple of {unit} from"):
            check_size(name, size)


LEAST = {"resnet_6blocks": 8, "frost_generator": 8, "frost_generator:instance": 16, "unet_128": 128, "unet_256": 256}


@pytest.mark.parametrize("name, least", LEAST.items())
def test_the_least_size_is_the_least_that_works(name, least):
    check_size(name, least)
    with torch.device("meta"):
        model = build(name).eval()
        assert model(torch.zeros(1, 3, least, least)).shape == (1, 3, least, least)
        with pytest.raises((RuntimeError, ValueError, AssertionError)):
            y = model(torch.zeros(1, 3, least // 2, least // 2))
            assert y.shape[-1] == least // 2


def test_the_two_of_a_cycle_take_the_same_pictures():
    x = torch.zeros(1, 3, 8, 8)
    examples = Cycle(nn.Identity).part_examples(x)
    assert examples.keys() == parts.parts_of(Cycle(nn.Identity)).keys() and all(v is x for v in examples.values())
