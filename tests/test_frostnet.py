# ruff: noqa: E501  (the published tables stay one row a network)
"""The published networks to the digit, their feature maps, dilation, and how names are found."""

import json
from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from frostnet import PUBLISHED, FrostNet, architecture, find, frostnet
from nas import Architecture, cost, count, find_space

# Parameters and multiply-accumulates (convolutions only, 224 px) of the released networks.
COSTS = {
    "frostnet_large_1_25": (8_221_080, 692_648_832),
    "frostnet_large_1_0": (5_807_056, 430_813_216),
    "frostnet_large_0_75": (4_038_328, 286_466_272),
    "frostnet_large_0_5": (2_603_056, 131_715_648),
    "frostnet_large_0_35": (1_959_048, 71_346_080),
    "frostnet_base_1_25": (6_938_936, 582_403_144),
    "frostnet_base_1_0": (5_001_712, 362_851_392),
    "frostnet_base_0_75": (3_530_400, 244_519_528),
    "frostnet_base_0_5": (2_380_256, 112_738_144),
    "frostnet_base_0_35": (1_851_048, 63_971_776),
    "frostnet_small_1_25": (6_749_376, 504_463_744),
    "frostnet_small_1_0": (4_858_776, 315_344_912),
    "frostnet_small_0_75": (3_477_424, 211_627_984),
    "frostnet_small_0_5": (2_351_896, 100_614_368),
    "frostnet_small_0_35": (1_838_400, 56_140_400),
}

# in/squeeze/hidden/out of every block; "x3" repeats.
CHANNELS = {
    "frostnet_large_1_0": "32/0/32/16 16/0/96/24 24/0/72/24 24/0/144/40 40/16/168/40 40/16/336/80 80/24/312/80 80/24/312/80 80/24/624/96 96/24/360/96 96/24/360/96 96/24/360/96 96/48/864/192 192/48/1440/192 192/48/1440/192 192/48/720/192 192/48/720/192 192/96/1728/320",
    "frostnet_base_1_0": "32/0/32/16 16/0/96/24 24/0/72/24 24/0/72/40 40/16/168/40 40/16/168/80 80/24/312/80 80/40/360/96 96/24/360/96 96/24/360/96 96/24/360/96 96/48/864/192 192/96/864/192 x3 192/96/1728/320",
    "frostnet_small_1_0": "32/0/32/16 16/0/48/24 24/0/72/24 24/0/72/40 40/16/168/80 80/24/312/80 80/24/312/80 80/40/360/96 96/24/360/96 96/24/360/96 96/24/720/192 192/48/1440/192 192/48/1440/192 192/96/1728/320",
    "frostnet_large_1_25": "32/0/32/24 24/0/144/32 32/8/120/32 32/8/240/48 48/16/192/48 48/16/384/104 104/24/384/104 x2 104/24/768/120 120/32/456/120 x3 120/64/1104/240 240/64/1824/240 x2 240/64/912/240 x2 240/120/2160/400",
    "frostnet_large_0_75": "24/0/24/16 16/0/96/24 24/0/72/24 24/0/144/32 32/8/120/32 32/8/240/64 64/16/240/64 x2 64/16/480/72 72/24/288/72 x3 72/40/672/144 144/40/1104/144 x2 144/40/552/144 x2 144/72/1296/240",
    "frostnet_large_0_5": "16/0/16/8 8/0/48/16 16/0/48/16 16/0/96/24 24/0/72/24 24/0/144/40 40/16/168/40 x2 40/16/336/48 48/16/192/48 x3 48/24/432/96 96/24/720/96 x2 96/24/360/96 x2 96/48/864/160",
    "frostnet_large_0_35": "16/0/16/8 8/0/48/8 8/0/24/8 8/0/48/16 16/0/48/16 16/0/96/32 32/8/120/32 x2 32/8/240/32 32/8/120/32 x3 32/16/288/64 64/16/480/64 x2 64/16/240/64 x2 64/32/576/112",
    "frostnet_base_1_25": "32/0/32/24 24/0/144/32 32/8/120/32 32/8/120/48 48/16/192/48 48/16/192/104 104/24/384/104 104/56/480/120 120/32/456/120 x3 120/64/1104/240 240/120/1080/240 x3 240/120/2160/400",
    "frostnet_base_0_75": "24/0/24/16 16/0/96/24 24/0/72/24 24/0/72/32 32/8/120/32 32/8/120/64 64/16/240/64 64/32/288/72 72/24/288/72 x3 72/40/672/144 144/72/648/144 x3 144/72/1296/240",
    "frostnet_base_0_5": "16/0/16/8 8/0/48/16 16/0/48/16 16/0/48/24 24/0/72/24 24/0/72/40 40/16/168/40 40/24/192/48 48/16/192/48 x3 48/24/432/96 96/48/432/96 x3 96/48/864/160",
    "frostnet_base_0_35": "16/0/16/8 8/0/48/8 8/0/24/8 8/0/24/16 16/0/48/16 16/0/48/32 32/8/120/32 32/16/144/32 32/8/120/32 x3 32/16/288/64 64/32/288/64 x3 64/32/576/112",
    "frostnet_small_1_25": "32/0/32/24 24/0/72/32 32/8/120/32 32/8/120/48 48/16/192/104 104/24/384/104 x2 104/56/480/120 120/32/456/120 x2 120/32/912/240 240/64/1824/240 x2 240/120/2160/400",
    "frostnet_small_0_75": "24/0/24/16 16/0/48/24 24/0/72/24 24/0/72/32 32/8/120/64 64/16/240/64 x2 64/32/288/72 72/24/288/72 x2 72/24/576/144 144/40/1104/144 x2 144/72/1296/240",
    "frostnet_small_0_5": "16/0/16/8 8/0/24/16 16/0/48/16 16/0/48/24 24/0/72/40 40/16/168/40 x2 40/24/192/48 48/16/192/48 x2 48/16/384/96 96/24/720/96 x2 96/48/864/160",
    "frostnet_small_0_35": "16/0/16/8 8/0/24/8 8/0/24/8 8/0/24/16 16/0/48/32 32/8/120/32 x2 32/16/144/32 32/8/120/32 x2 32/8/240/64 64/16/480/64 x2 64/32/576/112",
}


def _expand(table):
    rows = []
    for word in table.split():
        rows += [rows[-1]] * (int(word[1:]) - 1) if word.startswith("x") else [word]
    return rows


def _published(name, **options):
    size, width = PUBLISHED[name]
    return architecture(size, width, **options)


def _calibrated(model, x):
    """The model in eval mode with batch-norm statistics of `x`, so that every layer's signal has unit size."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def test_there_are_15_published_networks():
    assert set(PUBLISHED) == set(COSTS) == set(CHANNELS)


@pytest.mark.parametrize("name", COSTS)
def test_parameters_and_macs_equal_the_published_ones_to_the_digit(name):
    total = cost(_published(name))
    assert (total.params, total.macs) == COSTS[name]


@pytest.mark.parametrize("name", COSTS)
def test_the_module_really_has_and_spends_what_the_table_says(name):
    with torch.device("meta"):  # shapes only: counting needs no arithmetic
        assert count(FrostNet(_published(name)), torch.zeros(1, 3, 224, 224)) == COSTS[name]


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_equal_the_published_tables(name):
    rows = [
        f"{b.in_channels}/{b.squeeze_channels}/{b.hidden_channels}/{b.out_channels}" for b in _published(name).blocks
    ]
    assert rows == _expand(CHANNELS[name])


@pytest.mark.parametrize(
    "size, blocks, frost, residual, residual_narrow",
    [("large", 18, 14, 11, 12), ("base", 16, 12, 9, 10), ("small", 14, 10, 7, 8)],
)
def test_how_many_blocks_are_truly_frost_and_residual(size, blocks, frost, residual, residual_narrow):
    net = architecture(size)
    assert len(net.blocks) == blocks
    assert sum(b.op == "frost" for b in net.blocks) == frost
    assert sum(b.residual for b in net.blocks) == residual
    assert sum(b.residual for b in architecture(size, 0.35).blocks) == residual_narrow


@pytest.mark.parametrize(
    "width, channels",
    [
        (1.0, [24, 40, 96, 320]),
        (1.25, [32, 48, 120, 400]),
        (0.75, [24, 32, 72, 240]),
        (0.5, [16, 24, 48, 160]),
        (0.35, [8, 16, 32, 112]),
    ],
)
@pytest.mark.parametrize("size", ["large", "base", "small"])
def test_features_have_the_published_channels(size, width, channels):
    assert frostnet(size, width).feature_channels == channels


def test_features_lie_at_strides_4_8_16_32():
    model = frostnet("base", 0.35).eval()
    features = model.forward_features(torch.zeros(1, 3, 64, 96))
    assert [f.shape[1:] for f in features] == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (112, 2, 3)]
    assert model.feature_strides == [4, 8, 16, 32]


def test_a_stem_of_stride_1_still_counts_as_2_in_the_names_of_strides():
    model = frostnet("small", 0.35, input_size=32).eval()
    assert [f.shape[-1] for f in model.forward_features(torch.zeros(1, 3, 32, 32))] == [16, 8, 4, 2]
    assert model.feature_channels == [8, 16, 32, 112]


def test_the_last_feature_feeds_the_head():
    model, x = frostnet("small", 0.35, 10, input_size=32).eval(), torch.randn(2, 3, 32, 32)
    assert torch.equal(model.head(model.forward_features(x)[-1]), model(x))


@pytest.mark.parametrize("output_stride, sides", [(8, [16, 8, 8, 8]), (16, [16, 8, 4, 4])])
def test_output_stride_keeps_features_large(output_stride, sides):
    model = frostnet("base", 0.35, output_stride=output_stride).eval()
    assert [f.shape[-1] for f in model.forward_features(torch.zeros(1, 3, 64, 64))] == sides
    assert model.feature_strides == [min(s, output_stride) for s in (4, 8, 16, 32)]


def test_a_network_deeper_than_stride_32_has_the_strides_of_its_architecture():
    net = architecture("small", 0.35)
    deep = replace(net, blocks=tuple(replace(b, stride=2) if i == 13 else b for i, b in enumerate(net.blocks)))
    sides = {
        s: [f.shape[-1] for f in FrostNet(deep, s).forward_features(torch.zeros(2, 3, 128, 128))] for s in (None, 32)
    }
    assert sides == {None: [32, 16, 8, 4, 2], 32: [32, 16, 8, 4, 4]}
    assert FrostNet(deep).feature_strides == [4, 8, 16, 32, 64]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size, width, pixels", [("large", 0.35, 64), ("base", 0.5, 75), ("small", 0.35, 66)])
def test_the_dilated_network_equals_the_strided_one_where_both_are_defined(size, width, pixels, output_stride):
    torch.manual_seed(0)
    x = torch.randn(2, 3, pixels, pixels)
    strided = _calibrated(frostnet(size, width), x)
    dilated = frostnet(size, width, output_stride=output_stride).eval()
    dilated.load_state_dict(strided.state_dict())
    pairs = zip(
        strided.forward_features(x), dilated.forward_features(x), strided.feature_strides, dilated.feature_strides
    )
    for coarse, fine, stride, kept in pairs:
        step = stride // kept
        torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=1e-4, atol=1e-4)
        assert coarse.std() > 0.5  # the signal did not die on the way


def test_a_dilated_network_sees_as_far_as_the_strided_one():
    def reach(model):  # how many columns of the picture the centre of the last feature map depends on
        model = model.double().eval()
        x = torch.randn(1, 3, 32, 512, dtype=torch.double, requires_grad=True)
        feature = model.forward_features(x)[-1]
        feature[0, :, feature.shape[2] // 2, feature.shape[3] // 2].sum().backward()
        columns = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
        return int(columns[-1] - columns[0])

    torch.manual_seed(0)
    strided, dilated = frostnet("small", 0.35), frostnet("small", 0.35, output_stride=8)
    dilated.load_state_dict(strided.state_dict())
    assert reach(dilated) == reach(strided) > 150


@pytest.mark.parametrize("output_stride", [4, 12, 64])
def test_other_output_strides_are_refused(output_stride):
    with pytest.raises(UserError, match=f"output_stride: {output_stride}, must be 8, 16 or 32"):
        frostnet("small", output_stride=output_stride)


def test_the_classes_and_channels_asked_for_are_the_ones_built():
    model = frostnet("small", 0.35, num_classes=7, in_channels=1, input_size=32, drop_rate=0.0)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert model.head.dropout.p == 0


def test_the_network_traces_and_batches_do_not_mix():
    model, x = frostnet("base", 0.35, 10, input_size=32).eval(), torch.randn(3, 3, 32, 32)
    y = model(x)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), y)
    torch.testing.assert_close(model(x[1:2]), y[1:2])


def test_gradients_reach_every_weight():
    model = frostnet("small", 0.35, 10, input_size=32)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "weight" in n)


def test_a_saved_architecture_rebuilds_the_same_network(tmp_path):
    net = architecture("large", 0.35, 10, 32)
    net.save(tmp_path / "arch.json")
    first, again = FrostNet(net).eval(), FrostNet(Architecture.load(tmp_path / "arch.json")).eval()
    again.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(first(x), again(x))


@pytest.mark.parametrize(
    "size, width, words",
    [
        ("tiny", 1.0, "size: 'tiny', must be one of large, base, small"),
        ("small", 0, "width: 0"),
        ("small", float("nan"), "width: nan"),
    ],
)
def test_a_network_nobody_published_is_refused(size, width, words):
    with pytest.raises(UserError, match=words):
        architecture(size, width)


# ---- names -------------------------------------------------------------------------------------------------


def test_a_name_is_looked_up_as_file_run_shipped_then_published(tmp_path):
    runs = tmp_path / "runs"
    made = architecture("large", 0.5, 10, 32).with_name("mine")
    made.save(runs / "frostnet_small_1_0" / "arch.json")
    made.save(tmp_path / "there.json")
    assert find("frostnet_base_0_5", runs) == architecture("base", 0.5)
    assert find("frostnet_small_1_0", runs) == made  # a run hides a published name
    assert find(str(tmp_path / "there.json"), runs) == made
    assert find(str(runs / "frostnet_small_1_0"), runs) == made


def test_a_published_name_without_width_means_full_width(tmp_path):
    assert find("frostnet_small", tmp_path) == architecture("small")


def test_an_unknown_name_lists_what_there_is(tmp_path):
    architecture("small").save(tmp_path / "mine" / "arch.json")
    known = "known here: mine, frostnet_a, .*frostnet_large_1_0"
    with pytest.raises(UserError, match=f"'frostnet_z' is neither a file nor a known name; {known}"):
        find("frostnet_z", tmp_path)


@pytest.mark.parametrize("name", ["frostnet_a", "frostnet_b"])
def test_shipped_networks_are_of_the_space_that_they_name(name, tmp_path):
    arch = find(name, tmp_path)
    known = arch.provenance
    assert arch.name == name and known["measured_ms"] <= 1.03 * known["target_ms"]
    find_space(known["space"])(known["width"], arch.input_size, arch.head.num_classes).choice_of(arch)
    assert FrostNet(arch).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_a_broken_file_is_not_mistaken_for_an_unknown_name(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(UserError, match=r"a\.json: format: 'other'"):
        find(str(tmp_path / "a.json"))
