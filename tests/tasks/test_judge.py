"""Judges: what they see against known answers, and folders and palettes that are not what they should be."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.files import write_json
from common.runs import Run
from tasks import judge as module
from tasks.judge import FcnScore, Judge, Palette, judge, read_palette
from tasks.masks import IGNORE
from tasks.trained import Network
from tests.tasks.test_export_cli import frostnet, make_run

CLASSES = ("sky", "road", "car")
COLOURS = torch.tensor([[128, 128, 128], [128, 64, 128], [64, 0, 128]], dtype=torch.int16)
PALETTE = Palette(torch.arange(3, dtype=torch.uint8), COLOURS, 8)


class ByColour(nn.Module):
    """A segmenter that is always right about what it sees: the class whose colour is nearest."""

    def forward(self, x):
        return -(255 * x[:, None] - COLOURS.view(1, 3, 3, 1, 1)).square().sum(2)


def fake(size=8, **changes):
    return Judge("fake", ByColour(), "segmentation", CLASSES, size, (0, 0, 0), (1, 1, 1), "", 0, PALETTE, **changes)


def painted(ids):
    """A picture (1, 3, H, W) in [-1, 1] of the classes' colours; black where an id is no class."""
    colours = torch.cat([COLOURS, torch.zeros(IGNORE + 1 - len(COLOURS), 3, dtype=torch.int16)])
    return colours[ids].permute(2, 0, 1)[None].float() / 127.5 - 1


def ids():
    """8 x 8: four rows of sky, two of road, two of car."""
    return torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]).repeat_interleave(8).view(8, 8)


def scored(made, labels, of=None):
    score = FcnScore(of or fake())
    score.update(painted(made), painted(labels))
    return score.compute()


# ---- the FCN-score -----------------------------------------------------------------------------------------


def test_perfect_photos_score_one():
    assert scored(ids(), ids()) == {"fcn_miou": 1.0, "fcn_pixel_accuracy": 1.0, "fcn_counted": 1.0}


def test_one_class_taken_for_another():
    """Cars look like road: sky 1, road 16 of 32, car 0; 48 of 64 pixels."""
    assert scored(ids().clamp(max=1), ids()) == {
        "fcn_miou": pytest.approx((1 + 0.5 + 0) / 3, abs=1e-6),
        "fcn_pixel_accuracy": 0.75,
        "fcn_counted": 1.0,
    }


def test_what_the_labels_do_not_show_is_not_averaged():
    """Labels of sky alone, half of it looks like a car."""
    made = torch.where(torch.arange(64).view(8, 8) % 2 == 0, 0, 2)
    assert scored(made, torch.zeros(8, 8, dtype=torch.long)) == {
        "fcn_miou": 0.5,
        "fcn_pixel_accuracy": 0.5,
        "fcn_counted": 1.0,
    }


def test_other_colours_do_not_count():
    labels = ids()
    labels[:2] = IGNORE  # black
    made = ids()
    made[:2] = 2
    assert scored(made, labels) == {"fcn_miou": 1.0, "fcn_pixel_accuracy": 1.0, "fcn_counted": 0.75}
    with pytest.raises(UserError, match=r"palette: only 0\.0% of the pixels"):
        scored(ids(), torch.full((8, 8), IGNORE))


def test_pixels_of_all_pictures_count_alike():
    """Of 64 pixels of sky all are right, of 64 of road none: the mean is over classes, not over images."""
    score, sky = FcnScore(fake()), torch.zeros(8, 8, dtype=torch.long)
    score.update(torch.cat([painted(sky), painted(sky)]), torch.cat([painted(sky), painted(sky + 1)]))
    assert score.compute() == {"fcn_miou": 0.25, "fcn_pixel_accuracy": 0.5, "fcn_counted": 1.0}


def test_the_judge_looks_at_its_own_size_and_is_judged_at_that_of_the_labels():
    large = ids().repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert scored(large, large)["fcn_pixel_accuracy"] > 0.9  # but for borders
    score = FcnScore(fake())
    score.update(painted(ids()), painted(large))
    assert score._counts.sum() == 32 * 32 and score.compute()["fcn_pixel_accuracy"] > 0.9


def test_the_judge_sees_pictures_as_it_was_trained_to():
    seen = []
    eyes = nn.Identity()
    eyes.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    watching = Judge("fake", eyes, "segmentation", ("a", "b", "c"), 8, (0.5, 0.25, 0), (0.5, 0.5, 2), "", 0, PALETTE)
    watching.fcn(torch.full((1, 3, 16, 32), 1.0), painted(ids()))
    assert seen[0].shape == (1, 3, 8, 16)  # the shorter side
    assert torch.allclose(seen[0].mean((0, 2, 3)), torch.tensor([1.0, 1.5, 0.5]))


def test_ranks_divide_the_pictures(monkeypatch):
    first, second = FcnScore(fake()), FcnScore(fake())
    first.update(painted(ids()), painted(ids()))
    second.update(painted(ids().clamp(max=1)), painted(ids()))
    monkeypatch.setattr(
        module.distributed, "sum_", lambda mine: mine.add_(second._counts if mine.dim() == 2 else second._pixels)
    )
    for _ in range(2):  # what was counted is not counted again
        assert first.compute()["fcn_pixel_accuracy"] == 0.875


def test_a_judge_without_a_palette_cannot_score():
    with pytest.raises(UserError, match="palette: fake"):
        FcnScore(replace(fake(), palette=None))


# ---- palettes ----------------------------------------------------------------------------------------------


def test_colours_that_are_off_by_a_little():
    labels = painted(ids())
    noise = torch.randint(-8, 9, labels.shape, generator=torch.Generator().manual_seed(0)) / 127.5
    assert torch.equal(PALETTE.classes_of(labels + noise)[0].long(), ids())
    assert (PALETTE.classes_of(labels + 9 / 127.5) == IGNORE).all()
    between = (labels[:, :, 0] + labels[:, :, 7]) / 2  # of sky and car
    assert (PALETTE.classes_of(between[..., None]) == IGNORE).all()


def test_neighbouring_colours_stay_apart(tmp_path):
    write_json(tmp_path / "palette.json", {"car": [7, 7, 7], "sky": [5, 7, 7]})
    palette = read_palette(tmp_path / "palette.json", CLASSES)
    greys = torch.tensor([[4, 7, 7], [5, 7, 7], [6, 7, 7], [7, 7, 7]]).T.reshape(1, 3, 1, 4) / 127.5 - 1
    assert palette.classes_of(greys).tolist() == [[[IGNORE, 0, IGNORE, 2]]]


@pytest.mark.parametrize(
    "content, words",
    [
        ([[1, 2, 3]], "no palette"),
        ({}, "no palette"),
        ({"sky": [1, 2, 3], "boat": [1, 2, 4]}, "'boat': no class of the judge; these are sky, road, car"),
        ({"sky": [1, 2]}, "sky: .*three whole numbers"),
        ({"sky": [1, 2, 256]}, "sky: .*from 0 to 255"),
        ({"sky": [1, 2, -1]}, "sky: .*from 0 to 255"),
        ({"sky": [1, 2, 0.5]}, "sky: .*whole numbers"),
        ({"sky": [1, 2, True]}, "sky: .*whole numbers"),
        ({"sky": "#010203"}, "sky: .*three whole numbers"),
        ({"sky": [1, 2, 3], "road": [9, 9, 9], "car": [1, 2, 3]}, r"sky and car have the same colour \[1, 2, 3\]"),
    ],
)
def test_a_palette_that_is_none(tmp_path, content, words):
    path = tmp_path / "palette.json"
    write_json(path, content)
    with pytest.raises(UserError, match=words) as caught:
        read_palette(path, CLASSES)
    assert str(path) in str(caught.value)


def test_a_palette_that_is_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_palette(tmp_path / "nothing.json", CLASSES)
    (tmp_path / "half.json").write_text('{"sky": [1, 2')
    with pytest.raises(UserError, match="not a whole JSON file"):
        read_palette(tmp_path / "half.json", CLASSES)


# ---- runs --------------------------------------------------------------------------------------------------


def save_run(path, network, **settings):
    """The folder that retrain.py --float-only leaves; returns the network. Nothing is trained."""
    torch.manual_seed(0)
    model, run = network.build().eval(), Run(path)
    run.write_json("config.json", {"program": "retrain", **settings})
    known = {"classes": CLASSES, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3), "weight_qmax": 63}
    header = {
        "format": "network",
        "version": 1,
        "task": network.task,
        "name": network.name,
        "input_size": network.input_size,
    }
    run.write_json("network.json", header | known)
    if network.arch is not None:
        network.arch.save(path / "arch.json")
    run.save_checkpoint({"attached": False, "model": model.state_dict()})
    run.write_json("metrics.json", {})
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of runs: a classifier, a segmenter and a detector in float, and a classifier with quantizers."""
    path = tmp_path_factory.mktemp("runs")
    networks = {
        "classifier": save_run(path / "classifier", Network("tiny", 16, 3, frostnet())),
        "segmenter": save_run(path / "segmenter", Network("espnetv2_x0_5", 64, 3, task="segmentation")),
        "quantized": make_run(path / "quantized", Network("tiny", 16, 3, frostnet())).eval(),
    }
    save_run(path / "detector", Network("tdsod", 300, 3, task="detection"))
    return path, networks


@pytest.fixture
def run(made, tmp_path):
    """A copy of the segmenter's folder to spoil."""
    return shutil.copytree(made[0] / "segmenter", tmp_path / "segmenter")


def photos(size, count=2):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def normalised(x):
    return ((x + 1) / 2 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.2, 0.3]).view(3, 1, 1)


def test_features_of_a_classifier_are_its_pooled_last_map(made):
    net, x = made[1]["classifier"], photos(16)
    with torch.no_grad():
        expected = net.head.conv(net.blocks(net.stem(normalised(x)))).mean((2, 3))
    found = judge("classifier", made[0])
    assert (found.name, found.task, found.num_features) == ("classifier", "classification", 32)
    assert torch.allclose(found.features(x), expected, atol=1e-5)
    assert not found.network.get_submodule(found.layer)._forward_pre_hooks and found.features(photos(40)).shape == (
        2,
        32,
    )  # other sizes are resized


def test_features_of_a_quantized_run_are_those_of_its_quantized_network(made):
    graph, x, seen = made[1]["quantized"], photos(16), []
    hook = graph.get_submodule("head.classifier").register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(1))
    )
    with torch.no_grad():
        graph(normalised(x))
    hook.remove()
    found = judge(made[0] / "quantized", palette=None)
    assert torch.allclose(found.features(x), seen[0], atol=1e-6)
    assert len(seen[0].unique()) <= 256  # codes of one grid


def test_features_of_a_segmenter_are_what_it_classifies(made):
    net, x, seen = made[1]["segmenter"], photos(64), []
    hook = net.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0].mean((2, 3))))
    with torch.no_grad():
        net(normalised(x))
    hook.remove()
    assert torch.allclose(judge("segmenter", made[0]).features(x), seen[0], atol=1e-5)


def test_a_segmenter_with_a_palette_scores(made, tmp_path):
    # of some classes, in any order
    write_json(tmp_path / "palette.json", {"car": COLOURS[2].tolist(), "sky": COLOURS[0].tolist()})
    found = judge("segmenter", made[0], tmp_path / "palette.json")
    x, labels = photos(64, 1), painted(ids().repeat_interleave(8, 0).repeat_interleave(8, 1))
    with torch.no_grad():
        logits = made[1]["segmenter"](normalised(x))
    seen = nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False).argmax(1)[0]
    expected = torch.zeros(3, 3)
    for truth, rows in ((0, slice(0, 32)), (2, slice(48, 64))):
        expected[truth] = torch.bincount(seen[rows].flatten(), minlength=3)
    assert torch.equal(found.fcn(x, labels), expected.double())


def test_a_palette_is_for_segmenters(made, tmp_path):
    write_json(tmp_path / "palette.json", {"sky": [1, 2, 3]})
    with pytest.raises(UserError, match="palette: .*run of classification"):
        judge("classifier", made[0], tmp_path / "palette.json")


def test_runs_that_are_no_judges(made, tmp_path):
    for name, words in (("nothing", "not the folder of a run"), ("detector", "run of detection, must be one of")):
        with pytest.raises(UserError, match=f"judge: .*{name}.*{words}"):
            judge(name, made[0])
    with pytest.raises(UserError, match="judge: .*not the folder of a run"):
        judge(tmp_path, made[0])


def spoil_config(**changes):
    return lambda run: run.write_json("config.json", {"program": "retrain"} | changes)


def spoil_network(**changes):
    return lambda run: run.write_json("network.json", json.loads((run.path / "network.json").read_text()) | changes)


def spoil_state(change):
    return lambda run: run.save_checkpoint(change(run.load_checkpoint()))


def spoil_weights(change):
    return spoil_state(lambda state: state | {"model": change(state["model"])})


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda run: (run.path / "metrics.json").unlink(), "has not ended"),
        (lambda run: (run.path / "network.json").unlink(), "has not ended"),
        (lambda run: (run.path / "checkpoint.pt").unlink(), "checkpoint.pt: no such file"),
        (lambda run: (run.path / "checkpoint.pt").write_bytes(b"junk"), "not a whole checkpoint"),
        (spoil_config(program="search"), "not a run of retrain.py"),
        (spoil_network(std=[0, 1, 1]), r"std\[0\]: 0, must be a number above 0"),
        (spoil_network(classes=["sky"]), "weights of another network"),
        (spoil_network(classes=[str(i) for i in range(256)]), "256 classes, must be at most 255"),
        (spoil_network(name="espnet"), "weights of another network"),
        (spoil_network(name="nonsense"), "no network for segmentation"),
        (spoil_state(lambda state: {"weights": state["model"]}), "no checkpoint of retrain.py"),
        (spoil_state(lambda state: [1]), "no checkpoint of retrain.py"),
        (spoil_state(lambda state: state | {"attached": "no"}), "no checkpoint of retrain.py"),
        (spoil_weights(lambda weights: {name: value * torch.nan for name, value in weights.items()}), "not finite"),
        (spoil_weights(lambda weights: {"classifier.weight": 3}), "weights of another network"),
    ],
)
def test_a_folder_that_is_not_what_it_should_be(run, spoil, words):
    spoil(Run(run))
    with pytest.raises(UserError, match=f"judge: .*{words}") as caught:
        judge(run)
    assert str(run) in str(caught.value)
