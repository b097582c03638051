"""zoo.backbones: maps of a classifier at strides 4, 8, 16, 32, by name; dilated, the same function on a finer grid."""

import pytest
import torch
from torch import nn

import frostnet
import quant
import zoo
from common.errors import UserError
from quant.attach.graph_pass import trace
from quant.attach.layers import QUANTIZED
from zoo.backbones import MOBILENETS, backbone, find, knows

CHANNELS = {
    "frostnet_large_1_0": [24, 40, 96, 320],
    "frostnet_base_1_25": [32, 48, 120, 400],
    "frostnet_small_0_5": [16, 24, 48, 160],
    "mobilenet_v2": [24, 32, 96, 1280],
    "mobilenet_v3_large": [24, 40, 112, 960],
    "mobilenet_v3_small": [16, 24, 48, 576],
}
SMALL = ("frostnet_small_0_35", "mobilenet_v2_x0_35", "mobilenet_v3_small_relu_x0_35")


def calibrated(model, x):
    """In evaluation mode, batch norms set so that signals keep their size."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


@pytest.mark.parametrize("name", dict.fromkeys((*CHANNELS, "frostnet_a", *MOBILENETS)))
def test_maps_have_the_channels_and_strides_they_say(name):
    for output_stride in (8, 16, 32):
        with torch.device("meta"):
            model = backbone(name, output_stride)
            features = model(torch.zeros(2, 3, 64, 96))
        assert model.feature_channels == CHANNELS.get(name, model.feature_channels)
        assert model.feature_strides == [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        wanted = [(2, c, 64 // s, 96 // s) for c, s in zip(model.feature_channels, model.feature_strides)]
        assert [tuple(f.shape) for f in features] == wanted


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    "name, pixels", [(SMALL[0], 66), (SMALL[1], 64), (SMALL[1], 75), (SMALL[2], 70), ("mobilenet_v3_large_x0_35", 64)]
)
def test_the_dilated_network_equals_the_strided_one_where_both_are_defined(name, pixels, output_stride):
    torch.manual_seed(0)
    x = torch.randn(2, 3, pixels, pixels)
    strided, dilated = backbone(name), backbone(name, output_stride).eval()
    with torch.no_grad():
        for key, weight in strided.named_parameters():
            if key.endswith("fc2.weight"):  # squeeze-and-excitation averages over the grid; without it
                weight.zero_()
        calibrated(strided, x)
        dilated.load_state_dict(strided.state_dict())
        pairs = list(zip(strided(x), dilated(x), strided.feature_strides, dilated.feature_strides))
    assert [coarse.shape == fine.shape for coarse, fine, *_ in pairs] == [s == d for *_, s, d in pairs]
    for coarse, fine, stride, kept in pairs:
        step = stride // kept
        torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=1e-4, atol=1e-4)
        assert coarse.std() > 0.2  # the signal did not die on the way


@pytest.mark.parametrize("name", ["mobilenet_v2_x0_35", "mobilenet_v3_small_x0_35"])
def test_undilated_maps_are_those_of_the_classifier(name):
    torch.manual_seed(0)
    classifier, model = zoo.build(name, 10).eval(), backbone(name).eval()
    assert len(model.state_dict()) == len(classifier.features.state_dict())
    model.load_state_dict(dict(zip(model.state_dict(), classifier.features.state_dict().values())))
    x = torch.randn(1, 3, 96, 64)
    assert torch.equal(model(x)[-1], classifier.features(x))


def test_a_frostnets_weights_load_by_name():
    torch.manual_seed(0)
    classifier, model = frostnet.frostnet("small", 0.35).eval(), backbone("frostnet_small_0_35").eval()
    missing, unexpected = model.load_state_dict(classifier.state_dict(), strict=False)
    assert not missing and {key.split(".")[0] for key in unexpected} == {"head"}
    x = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(model(x), classifier.forward_features(x), strict=True))


def test_the_stem_strides_however_small_a_files_pictures_are(tmp_path):
    frostnet.architecture("small", 0.35, input_size=32).save(tmp_path / "arch.json")
    with torch.device("meta"):
        for name in (str(tmp_path), str(tmp_path / "arch.json"), "frostnet_a", find("frostnet_a")):
            assert [f.shape[-1] for f in backbone(name)(torch.zeros(2, 3, 32, 32))] == [8, 4, 2, 1]


def test_runs_are_looked_for_where_they_are(tmp_path):
    (tmp_path / "mine").mkdir()
    frostnet.architecture("small", 0.75).save(tmp_path / "mine" / "arch.json")
    with torch.device("meta"):
        assert backbone("mine", runs=tmp_path).feature_channels == [24, 32, 72, 240]
    assert knows("mine", tmp_path) and not knows("mine")


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_used_and_every_convolution_quantized(name):
    torch.manual_seed(0)
    model, x = backbone(name, 16).train(), torch.randn(2, 3, 64, 64)
    sum((f * torch.randn_like(f)).sum() for f in model(x)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.eval()
    assert all(torch.equal(a, b) for a, b in zip(trace(model)(x), model(x), strict=True))
    graph = quant.attach(model, x)
    assert len(graph(x)) == 4
    wanted = {key for key, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert {key for key, m in graph.named_modules() if type(m) in QUANTIZED.values()} == wanted


@pytest.mark.parametrize(
    "name, near", [("mobilenet_v2_x9_0", "mobilenet_v2"), ("frostnet_smal_1_0", "frostnet_small_1_0"), ("resnet18", "")]
)
def test_other_names_are_refused_with_near_ones(name, near):
    assert not knows(name)
    with pytest.raises(UserError, match=f"arch: '{name}' is no backbone.*near it: .*{near}"):
        backbone(name)


@pytest.mark.parametrize("output_stride", [4, 12, 64])
@pytest.mark.parametrize("name", ["mobilenet_v2", "frostnet_a"])
def test_other_output_strides_are_refused(name, output_stride):
    with pytest.raises(UserError, match=f"output_stride: {output_stride}, must be 8, 16 or 32"):
        backbone(name, output_stride)


def test_an_architecture_without_a_stride_is_refused(tmp_path):
    arch = frostnet.architecture("small", 0.35)
    at_8 = next(i for i, b in enumerate(arch.blocks) if b.stride == 2) + 2  # the first block past stride 4
    blocks = arch.blocks[:at_8]
    frostnet.Architecture("short", 224, arch.stem, blocks, frostnet.frostnet_head(blocks[-1].out_channels, 10)).save(
        tmp_path / "arch.json"
    )
    with pytest.raises(
        UserError, match=r"has blocks at strides \[2, 4\], must have some at each of 4, 8, 16, 32 and none"
    ):
        backbone(str(tmp_path))
