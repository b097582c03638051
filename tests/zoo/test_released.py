"""zoo.released: the published networks by the names of the authors' checkpoints, rebuilt from the paper."""

import argparse
import hashlib
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.errors import UserError
from frostnet import PUBLISHED, TABLES, architecture, frostnet
from zoo.__main__ import main
from zoo.released import load_released, released_names

STAGES = {"large": (3, 2, 7, 5, 1), "base": (3, 2, 6, 4, 1), "small": (3, 1, 6, 3, 1)}  # blocks in layer1 .. layer5

# SHA-256 over the sorted lines "name shape" of the authors' networks (float, 1000 classes).
RELEASED = {
    "frostnet_large_1_0": "ecc0acdfb796f50a219d2b650957bd312b0eab94ffebf7d3387a1d4bf8d08062",
    "frostnet_base_1_0": "89fe0d2d1e54b8b85519fb150339123ab0dad6ff0ef0c1e738a18c0ea887d3f7",
    "frostnet_small_1_0": "502dfb33aeac52ffff8375a68ef810708d06a536fdc25433fa8897a552fc8f32",
}


def eighths(channels):
    rounded = max(8, (int(channels) + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * int(channels) else rounded


class ConvBNReLU(nn.Module):
    def __init__(self, before, after, kernel=1, stride=1, groups=1, relu=True):
        super().__init__()
        conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.conv = nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU() if relu else nn.Identity())

    def forward(self, x):
        return self.conv(x)


class Bottleneck(nn.Module):
    def __init__(self, before, after, kernel, expand, squeeze, stride):
        super().__init__()
        self.adds, self.expands, self.squeezes = (
            stride == 1 and before == after,
            expand > 1,
            expand > 1 and before // squeeze >= 8,
        )
        squeezed = eighths(before // squeeze) if self.squeezes else 0
        hidden = expand * (before + squeezed)
        if self.squeezes:
            self.squeeze_conv = ConvBNReLU(before, squeezed)
        if self.expands:
            self.conv1 = ConvBNReLU(before + squeezed, hidden)
        self.conv2 = ConvBNReLU(hidden, hidden, kernel, stride, hidden)
        self.reduce_conv = ConvBNReLU(hidden, after, relu=False)

    def forward(self, x):
        y = torch.cat([self.squeeze_conv(x), x], 1) if self.squeezes else x
        y = self.conv1(y) if self.expands else y
        y = self.reduce_conv(self.conv2(y))
        return x + y if self.adds else y


class Authors(nn.Module):
    """arXiv:2006.09679, with the names of the released checkpoints."""

    def __init__(self, size, width, classes=1000):
        super().__init__()
        rows, before = iter(TABLES[size]), eighths(32 * min(1, width))
        self.conv1 = ConvBNReLU(3, before, 3, 2)
        for stage, blocks in enumerate(STAGES[size], 1):
            layer = nn.Sequential()
            for kernel, channels, expand, squeeze, stride in (next(rows) for _ in range(blocks)):
                layer.append(Bottleneck(before, after := eighths(channels * width), kernel, expand, squeeze, stride))
                before = after
            setattr(self, f"layer{stage}", layer)
        self.last_layer = ConvBNReLU(before, 1280)
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Conv2d(1280, classes, 1))

    def forward(self, x):
        for layer in (
            self.conv1,
            self.layer1,
            self.layer2,
            self.layer3,
            self.layer4,
            self.layer5,
            self.last_layer,
            self.classifier,
        ):
            x = layer(x)
        return x.flatten(1)


@cache
def trained(name, classes=7):
    """The authors' network in evaluation mode; weights, gammas, betas and statistics differ per channel."""
    torch.manual_seed(0)
    model = Authors(*PUBLISHED[name], classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


def as_timm_saves(model):
    """What timm's training loop writes, with options; averaged weights are the model's, the others half of them."""
    average = {f"module.{key}": value for key, value in model.state_dict().items()}
    half = {key: value / 2 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    options = argparse.Namespace(model="frostnet", lr=0.048, opt="rmsproptf")
    return {
        "epoch": 449,
        "arch": "frostnet",
        "args": options,
        "metric": 74.6,
        "state_dict": half,
        "state_dict_ema": average,
    }


@pytest.mark.parametrize(
    "name", ["frostnet_small_1_0", "frostnet_base_1_0", "frostnet_large_1_0", "frostnet_large_0_35"]
)
def test_the_authors_weights_compute_the_same_here(name, tmp_path):
    model, x = trained(name), torch.randn(2, 3, 64, 64)
    torch.save(as_timm_saves(model), tmp_path / "model_best.pth.tar")
    loaded = load_released(tmp_path / "model_best.pth.tar")
    assert loaded.arch == architecture(*PUBLISHED[name], num_classes=7)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(loaded(x), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1  # the signal did not die on the way


@pytest.mark.parametrize("name", RELEASED)
def test_names_and_shapes_are_the_released_ones(name):
    with torch.device("meta"):
        state = Authors(*PUBLISHED[name]).state_dict()
    lines = sorted(f"{key} {list(value.shape)}" for key, value in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == RELEASED[name]
    assert len(lines) == {"small": 320, "base": 368, "large": 416}[PUBLISHED[name][0]]


def shapes(name):
    with torch.device("meta"):
        return {key: value.shape for key, value in Authors(*PUBLISHED[name], 3).state_dict().items()}


def test_no_file_can_be_two_of_the_published_networks():
    """They differ in their number of parameters already, by which the nearest one is chosen."""
    networks = [shapes(name) for name in PUBLISHED]
    params = [
        sum(shape.numel() for key, shape in network.items() if key.endswith(("weight", "bias"))) for network in networks
    ]
    assert len(set(params)) == len({frozenset(network.items()) for network in networks}) == 15


@pytest.mark.parametrize("name", ["frostnet_base_1_25", "frostnet_base_0_5", "frostnet_small_0_75"])
def test_which_network_it_is_follows_from_the_shapes(name, tmp_path):
    torch.save({key: torch.zeros(()).expand(shape) for key, shape in shapes(name).items()}, tmp_path / "a.pt")
    assert load_released(tmp_path / "a.pt").arch == architecture(*PUBLISHED[name], num_classes=3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {
            "state_dict": {key: torch.zeros_like(value) for key, value in state.items()},
            "state_dict_ema": state,
        },
    ],
)
def test_state_dicts_are_found_bare_nested_prefixed_and_averaged_ones_first(wrap, tmp_path):
    state = trained("frostnet_small_0_35").state_dict()
    torch.save(wrap(state), tmp_path / "a.pt")
    loaded = load_released(tmp_path / "a.pt", "frostnet_small_0_35")
    assert torch.equal(loaded.stem.conv.weight, state["conv1.conv.0.weight"])
    assert torch.equal(loaded.blocks[3].expand.bn.running_var, state["layer2.0.conv1.conv.1.running_var"])
    assert not loaded.training


def test_files_by_old_versions_of_torch_are_read(tmp_path):
    torch.save(as_timm_saves(trained("frostnet_small_0_35")), tmp_path / "a.tar", _use_new_zipfile_serialization=False)
    assert load_released(tmp_path / "a.tar").arch.name == "frostnet_small_0_35"


def renamed(state, old, new):
    return {new if key == old else key: value for key, value in state.items()}


def changed(**values):
    """A change of some entries of a state dict, dots in their names written as two underscores."""
    return lambda state: state | {key.replace("__", "."): value for key, value in values.items()}


@pytest.mark.filterwarnings("ignore:.*quantize", "ignore:TypedStorage")  # torch is giving its integer tensors up
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: renamed(s, "conv1.conv.0.weight", "conv0"),
            "frostnet_small_0_35: conv1.conv.0.weight: missing; conv0: unexpected; n",
        ),
        (
            changed(quant__scale=torch.ones(1)),
            "does not fit frostnet_small_0_35: quant.scale: unexpected; name another",
        ),
        (
            changed(conv1__conv__0__weight=torch.ones(16, 3, 5, 5)),
            r"conv1.conv.0.weight: \(16, 3, 5, 5\), must be \(16, 3, 3, 3\)",
        ),
        (changed(conv1__conv__1__weight=1.0), r"conv1.conv.1.weight: float, must be \(16,\)"),
        (changed(conv1__conv__1__weight="integers"), r"conv1.conv.1.weight: torch.qint8 .*, must be \(16,\)"),
        (
            lambda s: {key: value for key, value in s.items() if "layer1" not in key},
            r"missing; .*missing; .*missing; and \d+ more; name",
        ),
        (
            changed(classifier__2__weight=torch.ones(7, 12)),
            r"classifier.2.weight: \(7, 12\), must be \(classes, channels, 1, 1\)",
        ),
        (lambda s: renamed(s, "classifier.2.weight", "fc"), "classifier.2.weight: missing, must be"),
        (lambda s: {}, "classifier.2.weight: missing"),
        (changed(module__conv1__conv__0__weight=torch.ones(1)), "module.conv1.conv.0.weight: unexpected"),
        (lambda s: [1, 2], "holds a list, must be a checkpoint's dict of weights"),
        (changed(classifier__2__weight=torch.ones(0, 1280, 1, 1)), "num_classes: 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, words, tmp_path):
    saved = change(trained("frostnet_small_0_35").state_dict())
    if "qint8" in words:
        saved["conv1.conv.1.weight"] = torch.quantize_per_tensor(torch.ones(16), 0.1, 0, torch.qint8)
    torch.save(saved, tmp_path / "a.pt")
    with pytest.raises(UserError, match=words):
        load_released(tmp_path / "a.pt")


def test_another_network_than_the_one_asked_for_is_refused(tmp_path):
    torch.save(trained("frostnet_small_0_35").state_dict(), tmp_path / "a.pt")
    with pytest.raises(UserError, match="does not fit frostnet_base_0_35: .*missing"):
        load_released(tmp_path / "a.pt", "frostnet_base_0_35")
    with pytest.raises(UserError, match="name: 'frostnet', must be one of frostnet_large_0_35, "):
        load_released(tmp_path / "a.pt", "frostnet")


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save(
        {"state_dict": trained("frostnet_small_0_35").state_dict(), "args": SimpleNamespace()}, tmp_path / "a.pt"
    )
    with pytest.raises(
        UserError, match=r"a\.pt: not a checkpoint that can be read without running code .*get the file again"
    ):
        load_released(tmp_path / "a.pt")


def test_missing_and_broken_files_are_named(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"a\.pt: not a checkpoint"):
        load_released(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"b\.pt: no such file"):
        load_released(tmp_path / "b.pt")


def test_every_released_name_is_used_once():
    names = released_names(frostnet("small", 0.35, num_classes=7))
    assert sorted(names.values()) == sorted(trained("frostnet_small_0_35").state_dict())


def test_the_command_line_shows_which_network_a_file_holds(tmp_path, capsys):
    torch.save(trained("frostnet_small_0_35").state_dict(), tmp_path / "a.pt")
    main(["released", str(tmp_path / "a.pt")])
    assert capsys.readouterr().out.startswith("frostnet_small_0_35, 224 px, 7 classes")


def test_an_empty_average_beside_good_weights_is_passed_over(tmp_path):
    model = trained("frostnet_small_1_0")
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": {}}, tmp_path / "last.pth")
    assert torch.equal(
        load_released(tmp_path / "last.pth").head.classifier.weight, model.state_dict()["classifier.2.weight"]
    )


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = dict(trained("frostnet_small_1_0").state_dict())
    state["conv1.conv.0.weight"] = torch.full_like(state["conv1.conv.0.weight"], float("nan"))
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(UserError, match="conv1.conv.0.weight holds values that are not finite"):
        load_released(tmp_path / "broken.pth")
