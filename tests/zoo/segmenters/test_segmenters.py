"""zoo.segmenters:

LR-ASPP, R-ASPP, ESPNet and ESPNetv2 by name: what they cost and compute, and that quantizers and integers take them.
"""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation.lraspp import LRASPPHead

import frostnet
import quant
from common.errors import UserError
from nas import count
from quant.attach.graph_pass import trace
from quant.attach.layers import QUANTIZED
from zoo.segmenters import NAMES, build, knows
from zoo.segmenters.espnet import ESP, ESPNet
from zoo.segmenters.espnetv2 import EESP, NARROW, WIDE, ESPNetv2
from zoo.segmenters.lraspp import LRASPP, RASPP

# What StatAssist's authors count (millions of parameters, G of MACs): at 512 x 512 with 21 classes ..
VOC = {
    "espnet": ("0.604", "3.83"),
    "espnetv2_x0_5": ("0.233", "0.486"),
    "espnetv2_x1_0": ("0.881", "1.64"),
    "espnetv2_x1_5": ("1.946", "3.49"),
    "espnetv2_x2_0": ("3.429", "6.08"),
}
# .. and MACs at other sizes, with 20.
CITYSCAPES = [("espnet", 1024, 2048, "30.2"), ("espnetv2_x2_0", 1024, 2048, "48.6"), ("espnet", 768, 768, "8.50")]
STRIDE = {"lraspp": 8, "raspp": 16, "espnet": 1, "espnetv2": 2}
SMALL = ("lraspp:frostnet_small_0_35", "raspp:frostnet_small_0_35", "espnet", "espnetv2_x0_5")


def stride_of(name):
    return STRIDE[name.partition(":")[0].partition("_")[0]]


def digits(number, like):
    return f"{number:.{len(like.partition('.')[2])}f}"


@cache
def trained(name):
    """A network whose batch norms know their inputs, in training mode, and a batch that is not square."""
    torch.manual_seed(0)
    model, x = build(name, 5), torch.randn(2, 3, 64, 96)
    for classifier in [m for key, m in model.named_modules() if key.endswith("classifier")]:
        nn.init.normal_(classifier.weight)  # logits of some size
    with torch.no_grad():
        for _ in range(40):
            model.train()(x)
    return model, x


# ---- what they cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VOC)
def test_espnets_cost_what_the_authors_count(name):
    with torch.device("meta"):
        params, macs = count(build(name, 21), torch.zeros(1, 3, 512, 512))
    assert (digits(params / 1e6, VOC[name][0]), digits(macs / 1e9, VOC[name][1])) == VOC[name]


@pytest.mark.parametrize("name, height, width, macs", CITYSCAPES)
def test_espnets_cost_what_the_authors_count_on_streets(name, height, width, macs):
    with torch.device("meta"):
        assert digits(count(build(name, 20), torch.zeros(1, 3, height, width))[1] / 1e9, macs) == macs


@pytest.mark.parametrize("channels, classes", [(960, 21), (320, 11)])
def test_the_lr_aspp_head_is_torchvisions_with_a_hard_sigmoid(channels, classes):
    torch.manual_seed(0)
    theirs = LRASPPHead(40, channels, classes, 128).eval()
    theirs.scale[2] = nn.Hardsigmoid()
    ours = LRASPP(Maps([24, 40, 96, channels]), classes).eval()
    assert count_of(ours) == count_of(theirs)
    order = ["cbr.0", "cbr.1", "scale.1", "low_classifier", "high_classifier"]
    for name, part in zip(
        order, [ours.project.conv, ours.project.bn, ours.gate[1], ours.low_classifier, ours.high_classifier]
    ):
        part.load_state_dict(theirs.get_submodule(name).state_dict())
    low, high = torch.randn(2, 40, 9, 13), torch.randn(2, channels, 5, 7)
    torch.testing.assert_close(ours([None, low, None, high]), theirs({"low": low, "high": high}))


class Maps(nn.Module):
    """A backbone whose maps are given."""

    def __init__(self, channels):
        super().__init__()
        self.feature_channels = channels

    def forward(self, maps):
        return maps


def count_of(model):
    return sum(p.numel() for p in model.parameters())


def test_r_aspp_lays_the_mean_beside_every_pixel():
    torch.manual_seed(0)
    model, high = RASPP(Maps([8, 8, 8, 48]), 3).eval(), torch.randn(2, 48, 5, 7)
    seen = []
    model.join.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert model([None, None, None, high]).shape == (2, 3, 5, 7)
    context = F.relu(F.linear(high.mean((2, 3)), model.context[1].weight[:, :, 0, 0], model.context[1].bias))
    torch.testing.assert_close(seen[0][:, :256], model.project(high))
    torch.testing.assert_close(seen[0][:, 256:], context[:, :, None, None].expand(2, 256, 5, 7))


# ---- what they compute -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*SMALL, "espnetv2", "lraspp:mobilenet_v3_large", "raspp:mobilenet_v2_relu_x0_5", "lraspp:frostnet_a"]
)
def test_pictures_of_any_size_become_logits_at_the_finest_stride(name):
    stride = stride_of(name)
    with torch.device("meta"):
        model = build(name, 7)
        for height, width in [(64, 64), (67, 131), (96, 65)]:
            logits = model(torch.zeros(2, 3, height, width))
            assert logits.shape == (2, 7, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("name", SMALL)
def test_they_train_on_one_picture_and_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    model = build(name, 11).train()
    logits = model(torch.randn(1, 3, 64, 96))
    F.cross_entropy(logits, torch.zeros(1, *logits.shape[2:], dtype=torch.long)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", SMALL)
def test_fresh_networks_are_undecided(name):
    torch.manual_seed(0)
    logits = build(name, 21).train()(torch.randn(2, 3, 64, 64))
    loss = F.cross_entropy(logits, torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.long))
    assert loss.item() == pytest.approx(torch.tensor(21.0).log().item(), rel=0.1)


@pytest.mark.parametrize("dilations", [WIDE, NARROW])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_branches_of_an_eesp_are_fused_one_into_the_next(dilations, stride):
    torch.manual_seed(0)
    module, x = EESP(16, 32, dilations, stride).eval(), torch.randn(2, 16, 13, 18)
    before = joined(module, x)
    weights = [branch.weight for branch in module.branches]
    reduced = module.reduce(x)
    alone = [F.conv2d(reduced, w, None, stride, padding=d, dilation=d, groups=8) for w, d in zip(weights, dilations)]
    torch.testing.assert_close(before, torch.cat([sum(alone[: i + 1]) for i in range(4)], 1))
    assert not torch.allclose(before, torch.cat(alone, 1))  # what the sums make
    for changed in range(4):
        with torch.no_grad():
            weights[changed].mul_(2)
        after = joined(module, x)
        unlike = [not torch.equal(a, b) for a, b in zip(before.chunk(4, 1), after.chunk(4, 1))]
        assert unlike == [i >= changed for i in range(4)]
        before = after


@pytest.mark.parametrize("out_channels, stride", [(64, 2), (128, 1), (21, 1)])
def test_the_branches_of_an_esp_are_summed_but_for_the_first(out_channels, stride):
    torch.manual_seed(0)
    module, x = ESP(19, out_channels, stride).eval(), torch.randn(2, 19, 37, 41)
    reduced = module.reduce(x)
    dilated = [
        F.conv2d(reduced, b.weight, None, padding=d, dilation=d) for b, d in zip(module.branches, (1, 2, 4, 8, 16))
    ]
    sums = [sum(dilated[1 : i + 1]) for i in range(1, 5)]
    torch.testing.assert_close(joined(module, x), torch.cat([dilated[0], *sums], 1))


def test_an_esps_residual_comes_before_its_last_convolution():
    torch.manual_seed(0)
    module, x = ESP(20, 20, residual=True).eval(), torch.randn(1, 20, 9, 9)
    with_input = joined(module, x)
    module.residual = False
    torch.testing.assert_close(with_input, joined(module, x) + x)


def joined(module, x):
    """What the convolution behind the concatenation reads."""
    seen = []
    hook = module.join.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    module(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["espnet", "espnetv2_x0_5"])
def test_dropping_the_sums_changes_the_logits(name):
    model, x = trained(name)
    model.eval()
    graph = trace(model)
    wanted = graph(x)
    for node in [n for n in graph.graph.nodes if "add" in n.name]:
        node.replace_all_uses_with(node.args[1])
        graph.graph.erase_node(node)
    graph.recompile()
    assert (graph(x) - wanted).abs().max() > 0.1 * wanted.abs().max()


# ---- quantizers and integers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_the_trace_computes_the_same_and_every_convolution_gets_its_quantizer(name):
    model, x = trained(name)
    model.eval()
    assert torch.equal(trace(model)(x), model(x))
    graph = quant.attach(model, x)
    wanted = {key for key, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert {key for key, m in graph.named_modules() if type(m) in QUANTIZED.values()} == wanted
    rows = [row for row in graph.plan_rows if row.op == "conv"]
    assert len(rows) == len(wanted) and all(row.weight and row.reads for row in rows)


@pytest.mark.parametrize("name", SMALL)
def test_integers_compute_what_was_trained(name):
    model, x = trained(name)
    graph = quant.attach(model.train(), x)
    with torch.no_grad():
        for _ in range(20):
            graph(x)
        expected = graph.eval()(x)
    for engine in ("reference", "fbgemm"):
        network = quant.convert(graph, engine)
        logits = network(x)
        assert logits.shape == expected.shape
        assert (logits - expected).abs().mean() < 0.02 * expected.abs().max()
    quant.parity(graph, network, x).check()
    assert torch.equal(quant.freeze(network, x)(x), logits)


# ---- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, kind", [("espnet", ESPNet), ("espnetv2", ESPNetv2), ("raspp:mobilenet_v2", RASPP), (SMALL[0], LRASPP)]
)
def test_names_build_what_they_say(name, kind):
    with torch.device("meta"):
        assert knows(name) and type(build(name, 3)) is kind
        assert count_of(build("espnetv2", 3)) == count_of(build("espnetv2_x1_0", 3))
    assert all(any(name == n or n.startswith(name.partition(":")[0]) for n in NAMES) for name in SMALL)


def test_a_runs_architecture_becomes_a_segmenter(tmp_path):
    (tmp_path / "mine").mkdir()
    frostnet.architecture("small", 0.35, input_size=32).save(tmp_path / "mine" / "arch.json")
    with torch.device("meta"):
        assert build("lraspp:mine", 2, tmp_path)(torch.zeros(2, 3, 64, 64)).shape == (2, 2, 8, 8)
        given = build("lraspp:gone", 2, arch=frostnet.architecture("small", 0.75))  # without a look for files
    assert given.backbone.feature_channels == [24, 32, 72, 240]


@pytest.mark.parametrize("name", ["espnet", "espnetv2_x0_5"])
def test_few_classes_leave_the_decoder_some_channels(name):
    with torch.device("meta"):
        for classes in (1, 4):
            assert build(name, classes)(torch.zeros(2, 3, 64, 64)).shape[1] == classes


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "espnetv3",
            "'espnetv3' is no segmenter; the forms are lraspp:<backbone>, .*espnetv2_x2_0",
        ),
        ("frostnet_a", "'frostnet_a' is no segmenter.*the forms are"),
        ("lraspp", "'lraspp' is no segmenter"),
        ("lraspp:resnet18", "'resnet18' is no backbone.*near it"),
        ("raspp:", "'raspp:' is no segmenter"),
    ],
)
def test_other_names_are_refused_with_near_ones(name, message):
    with pytest.raises(UserError, match=message):
        build(name, 21)


def test_numbers_that_make_no_network_are_refused():
    for classes in (0, -1, 2.5, True):
        with pytest.raises(UserError, match=f"num_classes: {classes}, must be a whole number"):
            build("espnet", classes)
    for scale in (0.25, 3):
        with pytest.raises(UserError, match=f"scale: {scale}, must be from 0.5 to 2"):
            ESPNetv2(21, scale)
