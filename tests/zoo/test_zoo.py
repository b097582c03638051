"""zoo.build: comparison networks and FrostNets by name: cost, quantizers, conversion."""

import re
from functools import cache

import pytest
import torch
import torchvision
from torch import nn
from torchvision import models

import quant
import zoo
from common.errors import UserError
from frostnet import FrostNet, architecture
from nas import count
from quant.attach.layers import QUANTIZED
from tests import ROOT
from zoo.__main__ import main
from zoo.classifiers import from_timm, from_torchvision
from zoo.classifiers.resnet_cifar import CifarResNet

DOC = ROOT / "docs" / "zoo.md"

# What FrostNet's authors count (parameters, MACs as far as printed) where theirs is the same network, at 224 px and
# 1000 classes ..
SAME = {
    "alexnet": (61_100_840, "714 M"),
    "vgg16_bn": (138_361_768 + 4_224, "15.47 G"),  # torchvision's has biases
    "resnet18": (11_689_512, "1.814 G"),
    "resnet50": (25_557_032, "4.089 G"),
    "resnext101_32x8d": (88_791_336, "16.41 G"),
    "shufflenet_v2_x0_5": (1_366_792, "40.5 M"),
    "shufflenet_v2_x1_0": (2_278_604, "144.9 M"),
    "shufflenet_v2_x1_5": (3_503_624, "295.8 M"),
    "shufflenet_v2_x2_0": (7_393_996, "583.3 M"),
    "mobilenet_v2": (3_504_872, "300.8 M"),
    "mobilenet_v2_relu": (3_504_872, "300.8 M"),
}
# .. and at 32 px and 100 classes.
SAME_SMALL = {
    "alexnet": (57_392_036, "852 M"),
    "vgg16_bn": (134_674_468 + 4_224, "433 M"),
    "resnet18": (11_220_132, "555 M"),
    "resnet50": (23_705_252, "1.298 G"),
}
# Millions of parameters and MACs printed by the networks' authors, with the resolution.
PRINTED = {
    "ghostnet_0_5": (2.6, 42, 224),
    "ghostnet_1_0": (5.2, 141, 224),
    "ghostnet_1_3": (7.3, 226, 224),
    "efficientnet_lite0": (4.7, 407, 224),
    "efficientnet_lite1": (5.4, 631, 240),
    "efficientnet_lite2": (6.1, 899, 260),
}
KNOWN = {"input", "conv", "linear", "batch_norm", "add", "mul", "cat", "pool", "relu", "Hardswish", "Hardsigmoid"}
LIGHT = (
    "shufflenet_v2_x0_5",
    "mobilenet_v2_relu",
    "mobilenet_v3_small",
    "mobilenet_v3_small_relu",
    "ghostnet_0_5",
    "efficientnet_lite0",
    "resnet20",
    "preact_resnet18",
)


@cache
def documented():
    """name -> (parameters, MACs, parameters at 32 px, MACs at 32 px) in docs/zoo.md."""
    rows = re.findall(
        r"^\| `(\w+)` \| \w+ \| ([\d ]+) \| ([\d ]+) \| ([\d ]+) \| ([\d ]+) \|", DOC.read_text(), re.MULTILINE
    )
    return {name: tuple(int(number.replace(" ", "")) for number in numbers) for name, *numbers in rows}


def measured(name, classes, size, pixels=None):
    """(parameters, MACs), counted while shapes alone run through the network."""
    with torch.device("meta"):
        return count(zoo.build(name, classes, size), torch.zeros(1, 3, pixels or size, pixels or size))


def digits(macs, text):
    """`macs` with as many digits as `text` ("1.814 G")."""
    number, unit = text.split()
    places = len(number.partition(".")[2])
    return f"{macs / {'M': 1e6, 'G': 1e9}[unit]:.{places}f} {unit}"


# ---- what they cost ----------------------------------------------------------------------------------------


def test_the_documentation_has_every_network():
    assert set(documented()) == set(zoo.NAMES)
    assert len(set(zoo.NAMES)) == len(zoo.NAMES)


@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize(("classes", "size", "column"), [(1000, 224, 0), (10, 32, 2)])
def test_pictures_become_logits_at_the_documented_costs(name, classes, size, column):
    with torch.device("meta"):  # shapes, no numbers
        model, images = zoo.build(name, classes, size).eval(), torch.zeros(2, 3, size, size)
        assert count(model, images) == documented()[name][column : column + 2]
        assert column == 0 or model(images).shape == (2, classes)


@pytest.mark.parametrize("name", SAME)
def test_costs_are_those_of_frostnets_authors(name):
    params, macs = measured(name, 1000, 224)
    assert (params, digits(macs, SAME[name][1])) == SAME[name]


@pytest.mark.parametrize("name", SAME_SMALL)
def test_costs_at_32_px_are_those_of_frostnets_authors(name):
    params, macs = measured(name, 100, 32)
    assert (params, digits(macs, SAME_SMALL[name][1])) == SAME_SMALL[name]


def test_the_documented_costs_for_cifar_100_are_measured_ones():
    rows = re.findall(r"^\| (\w+) \| ([\d ]+) / ([\d ]+) \|", DOC.read_text(), re.MULTILINE)
    assert len(rows) == 7
    for name, *numbers in rows:
        assert measured(name, 100, 32) == tuple(int(number.replace(" ", "")) for number in numbers)


@pytest.mark.parametrize("name", sorted(set(from_torchvision.NAMES) & set(models.list_models())))
def test_costs_are_those_of_torchvisions_weights(name):
    about = models.get_model_weights(name).DEFAULT.meta
    params, macs = measured(name, 1000, 224, pixels=about["_metrics"].get("size"))
    assert params == about["num_params"]
    assert macs / 1e9 == pytest.approx(about["_ops"], rel=0.02, abs=0.001)  # theirs, in billions, has three decimals


def squeeze_excitation(channels, squeezed, biases):
    return 2 * channels * squeezed + (squeezed + channels if biases else 0)


# (parameters, MACs as printed) by FrostNet's authors; then channels and torchvision's inner channels of each
# squeeze-and-excitation.
V3 = {
    "large": (
        5_476_416,
        "219.8 M",
        ((72, 24), (120, 32), (120, 32), (480, 120), (672, 168), (672, 168), (960, 240), (960, 240)),
        0,
    ),
    "small": (
        2_700_544,
        "59.9 M",
        ((16, 8), (96, 24), (240, 64), (240, 64), (120, 32), (144, 40), (288, 72), (576, 144), (576, 144)),
        576,
    ),
}


@pytest.mark.parametrize("size", V3)
def test_mobilenet_v3_differs_from_the_authors_in_three_places_and_no_more(size):
    """The 16 -> 16 convolution at 112 px, width and biases of squeeze-and-excitation, one more of it at the end."""
    authors, authors_macs, blocks, last = V3[size]
    params, macs = measured(f"mobilenet_v3_{size}", 1000, 224)
    ours = [squeeze_excitation(channels, inner, biases=True) for channels, inner in blocks]
    theirs = [squeeze_excitation(channels, channels // 4, biases=False) for channels in [c for c, _ in blocks] + [last]]
    assert params - sum(ours) + sum(theirs) + 16 * 16 + 2 * 16 == authors
    layers = sum(2 * channels * inner for channels, inner in blocks)
    assert digits(macs - layers + sum(theirs) + 16 * 16 * 112**2, authors_macs) == authors_macs


@pytest.mark.parametrize("name", PRINTED)
def test_ghostnets_and_efficientnets_cost_what_their_authors_print(name):
    """EfficientNet-Lite's numbers include some 5 % that are no convolutions (docs/zoo.md, note 5)."""
    params, macs, size = PRINTED[name]
    ours = measured(name, 1000, 224, pixels=size)
    assert ours[0] / 1e6 == pytest.approx(params, abs=0.1)
    assert ours[1] / 1e6 == pytest.approx(macs * (0.951 if "lite" in name else 1), rel=0.01)


# ---- small pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "vgg11",
        "shufflenet_v2_x0_5",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "ghostnet_0_5",
        "efficientnet_lite0",
        "preact_resnet18",
    ],
)
def test_small_pictures_keep_their_resolution_in_the_first_convolution(name):
    """The same kernel, its stride alone is another; for AlexNet and ResNets see below."""
    with torch.device("meta"):
        small, large = (
            next(m for m in zoo.build(name, 10, size).modules() if isinstance(m, nn.Conv2d)) for size in (64, 65)
        )
        assert small(torch.zeros(1, 3, 64, 64)).shape[2:] == (64, 64)
    assert small.kernel_size == large.kernel_size
    assert large.stride == ((1, 1) if name == "vgg11" else (2, 2))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "alexnet"])
def test_large_stems_become_3x3_and_lose_their_pool(name):
    with torch.device("meta"):
        small, large = zoo.build(name, 10, 32), zoo.build(name, 10, 65)
    pools = [sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) for model in (small, large)]
    first = next(m for m in small.modules() if isinstance(m, nn.Conv2d))
    assert (first.kernel_size, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1))
    assert pools[0] == pools[1] - 1


def test_the_new_stem_of_a_resnet_starts_like_torchvisions():
    torch.manual_seed(0)
    assert zoo.build("resnet18", 10, 32).conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


# ---- what they are made of ---------------------------------------------------------------------------------


# made of the same layers as another one of their family
ALIKE = (
    *("vgg13", "vgg16", "vgg19", "vgg13_bn", "vgg16_bn", "vgg19_bn", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("ghostnet_1_0", "ghostnet_1_3", "efficientnet_lite1", "efficientnet_lite2", "resnet32", "resnet44", "resnet56"),
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in zoo.NAMES])
def test_attached_every_convolution_and_linear_layer_has_its_quantizer(name):
    """And the trace shows no layer as a bare function, which would have none."""
    with torch.device("meta" if documented()[name][2] > 50e6 else "cpu"):
        model = zoo.build(name, 10, 32)
        graph = quant.attach(model, torch.zeros(2, 3, 32, 32))
        assert graph.train()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    wanted = [key for key, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert {key for key, m in graph.named_modules() if type(m) in QUANTIZED.values()} == set(wanted)
    layers = [row for row in graph.plan_rows if row.op in ("conv", "linear")]
    assert len(layers) == len(wanted)
    assert all(row.weight and row.reads for row in layers)
    norms = [row for row in graph.plan_rows if row.op == "batch_norm"]
    assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    functions = {row.op for row in graph.plan_rows if row.output} - {
        "input",
        "conv",
        "linear",
        "batch_norm",
        "add",
        "mul",
        "cat",
        "pool",
        "relu",
    }
    assert functions <= {"Hardswish", "Hardsigmoid"}


@pytest.mark.parametrize("name", from_torchvision.RELU_ONLY)
def test_relu_variants_have_no_other_activation_but_the_gates(name):
    with torch.device("meta"):
        plain, relu = zoo.build(name.removesuffix("_relu"), 10), zoo.build(name, 10)
    kinds = {type(m) for m in relu.modules()}
    assert kinds & {nn.ReLU6, nn.Hardswish} == set()
    activations = [
        sum(isinstance(m, (nn.ReLU, nn.ReLU6, nn.Hardswish)) for m in model.modules()) for model in (plain, relu)
    ]
    assert activations[0] == activations[1]
    assert sum(isinstance(m, nn.Hardsigmoid) for m in relu.modules()) == {"mobilenet_v2_relu": 0}.get(
        name, 8 + ("small" in name)
    )


@pytest.mark.parametrize("name", from_timm.NETWORKS)
def test_timms_networks_compute_the_same_taken_apart(name):
    import timm

    torch.manual_seed(0)
    ours = zoo.build(name, 10).eval()
    theirs = timm.create_model(from_timm.NETWORKS[name][0], pretrained=False, num_classes=10).eval()
    values = ours.state_dict().values()
    assert len(values) == len(theirs.state_dict())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), (torch.rand_like(v) if v.dim() == 1 else v for v in values))))
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values())))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", LIGHT)
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    model = zoo.build(name, 10, 32).train()
    nn.functional.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", LIGHT)
def test_networks_convert_to_integers(name):
    """Slices, chunks and concatenations of GhostNet and ShuffleNet included: they stay on codes."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    graph = quant.attach(zoo.build(name, 10, 32), x, quant.QuantConfig(engine="reference")).train()
    with torch.no_grad():
        for _ in range(3):
            graph(x + 0.1 * torch.randn_like(x))
    executor = quant.convert(graph, "reference")
    report = quant.parity(graph, executor, x)
    assert report.layer_steps <= 1, report.worst
    assert report.output_steps <= 20  # untrained networks amplify single steps
    assert not [op.name for op in executor.graph.ops if op.kind == "float" and op.attrs["computes"]]
    kinds = {op.kind for op in executor.graph.ops}
    assert "cat" in kinds if name.startswith(("ghost", "shuffle")) else "add" in kinds


# ---- the ResNets for CIFAR and the pre-activation one ------------------------------------------------------


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_cifar_resnets_have_the_papers_parameters_and_two_shortcuts_more(depth, millions):
    """arXiv:1512.03385, table 6, counts shortcuts without parameters; ours are two 1x1 convolutions with batch norm."""
    model = zoo.build(f"resnet{depth}", 10, 32)
    shortcuts = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert round((sum(p.numel() for p in model.parameters()) - shortcuts) / 1e6, 2) == millions
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth - 1 + 2


def test_cifar_resnets_compute_what_the_paper_counts():
    """41 million MACs in ResNet-20 at 32 px, 64 channels at 8 px; images of any size."""
    model = zoo.build("resnet20", 10).eval()
    assert count(model, torch.zeros(1, 3, 32, 32))[1] == pytest.approx(41e6, rel=0.01)
    assert model.stage3(model.stage2(model.stage1(torch.zeros(1, 16, 32, 32)))).shape == (1, 64, 8, 8)
    assert model(torch.zeros(2, 3, 40, 48)).shape == (2, 10)


def test_cifar_resnets_start_as_he_et_al_say():
    """Deviation sqrt(2 / fan-out), arXiv:1502.01852."""
    torch.manual_seed(0)
    for module in zoo.build("resnet56", 10).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_a_depth_that_no_cifar_resnet_has_is_refused(depth):
    with pytest.raises(UserError, match=f"depth: {depth}, must be 6 n"):
        CifarResNet(depth)


def test_the_pre_activation_network_adds_what_its_first_relu_does_not_see():
    """With all convolutions of a later unit at zero the unit is the identity (arXiv:1603.05027)."""
    unit, x = zoo.build("preact_resnet18", 10, 32).stage1[1].eval(), torch.randn(1, 64, 4, 4)
    nn.init.zeros_(unit.conv2.weight)
    assert torch.equal(unit(x), x)


# ---- names -------------------------------------------------------------------------------------------------


def test_a_published_frostnet_comes_at_the_size_and_classes_asked_for():
    model = zoo.build("frostnet_small_0_5", num_classes=7, input_size=32)
    assert isinstance(model, FrostNet)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_run_is_a_name_too(tmp_path):
    architecture("small", 0.35).save(tmp_path / "mine" / "arch.json")
    assert zoo.build("mine", 3, 32, tmp_path).arch == architecture("small", 0.35, 3, 32)


def test_the_list_has_all_names(capsys):
    main(["list"])
    *lines, detectors, segmenters, generators, discriminators = capsys.readouterr().out.splitlines()
    assert "ssdlite:<backbone>" in detectors and "lraspp:<backbone>" in segmenters
    assert "resnet_6blocks" in generators and "patch" in discriminators
    names = " ".join(lines).split()
    assert len(names) == len(set(names)) == len(zoo.NAMES) + 15
    assert {"vgg19_bn", "resnext101_32x8d", "ghostnet_1_3", "efficientnet_lite2", "frostnet_large_1_25"} <= set(names)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet19", "resnet18"), ("ghostnet", "ghostnet_"), ("frostnet_bas", "frostnet_base_1_0")]
)
def test_an_unknown_name_shows_those_near_it(name, near, tmp_path):
    with pytest.raises(UserError, match=f"arch: '{name}' is neither .*; near it: .*{near}.*python -m zoo list"):
        zoo.build(name, runs=tmp_path)


def test_a_broken_file_is_not_mistaken_for_an_unknown_name(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"a\.json: format"):
        zoo.build(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("classes", "size", "words"),
    [(0, 32, "num_classes: 0, must"), (10, 4, "input_size: 4, must"), (10, 32.0, r"input_size: 32\.0")],
)
def test_classes_and_sizes_that_cannot_be_are_refused(classes, size, words):
    with pytest.raises(UserError, match=words):
        zoo.build("resnet18", classes, size)


def test_a_mobilenet_at_another_width_is_torchvisions_own():
    for name, width in (("mobilenet_v2", 0.75), ("mobilenet_v3_small", 0.5)):
        ours = zoo.build(f"{name}_x{width}".replace(".", "_"), num_classes=10, input_size=224)
        theirs = getattr(torchvision.models, name)(num_classes=10, width_mult=width)
        assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert (
        zoo.knows("mobilenet_v3_large_relu_x1_25")
        and not zoo.knows("resnet18_x0_5")
        and not zoo.knows("mobilenet_v2_x0_0")
    )
    assert not any(isinstance(m, torch.nn.Hardswish) for m in zoo.build("mobilenet_v3_small_relu_x0_5").modules())
