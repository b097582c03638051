"""Detection and segmentation through retrain.py: trained, converted, evaluated as INT8, shipped, resumed."""

import json
import shutil
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import quant
import quant.training.gradboost
import retrain
import tasks.engine
from common.errors import UserError
from common.runs import Run
from latency_lut import Timing
from nas import Architecture, BlockSpec, HeadSpec, StemSpec
from retrain import main
from tasks.__main__ import main as tasks_main
from tasks.trained import Network, find_network, load, load_backbone
from tests.retrain.runs import metrics, refused
from tests.tasks.test_engine import same

CLASSES = {"box": (250, 60, 60), "bar": (60, 60, 250)}
# a map at each of the four strides, and one residual block
BLOCKS = (
    BlockSpec("mb", 3, 8, 12, 2, 2, 0, "relu"),
    BlockSpec("mb", 3, 12, 16, 2, 3, 0, "relu"),
    BlockSpec("frost", 3, 16, 16, 1, 3, 2, "relu"),
    BlockSpec("frost", 3, 16, 24, 2, 3, 2, "relu"),
    BlockSpec("frost", 5, 24, 32, 2, 3, 2, "relu"),
)
TINY = Architecture("tiny", 64, StemSpec(3, 8, 3, 2, "relu"), BLOCKS, HeadSpec(32, 64, 2, 0.2, "relu"))
DETECTION = ("--task", "detection", "--data", "voc", "--batch-size", "4", "--workers", "0", "--input-size", "64")
SEGMENTATION = (
    "--task",
    "segmentation",
    "--data",
    "camvid",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--input-size",
    "64",
)


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    """Grey pictures with one or two coloured rectangles, as a VOC devkit."""
    root = tmp_path_factory.mktemp("voc")
    base, random = root / "VOCdevkit" / "VOC2007", np.random.default_rng(0)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    for split, count in (("train", 8), ("val", 3), ("test", 4)):
        names = [f"{split}{i}" for i in range(count)]
        (base / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            pixels, objects = random.integers(100, 140, (72, 96, 3)).astype(np.uint8), ""
            for label, colour in CLASSES.items():
                x, y, w, h = random.integers((2, 2, 20, 20), (40, 30, 50, 40))
                pixels[y : y + h, x : x + w] = colour
                box = "".join(
                    f"<{tag}>{value}</{tag}>"
                    for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h))
                )
                objects += (
                    f"<object><name>{escape(label)}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
                )
            Image.fromarray(pixels).save(base / "JPEGImages" / f"{name}.jpg", quality=95)
            size = "<size><width>96</width><height>72</height><depth>3</depth></size>"
            (base / "Annotations" / f"{name}.xml").write_text(
                f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
            )
    return root


@pytest.fixture(scope="module")
def camvid(tmp_path_factory) -> Path:
    """Pictures whose left part is dark and right part light, with the border anywhere, and their masks."""
    root, random = tmp_path_factory.mktemp("camvid"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((72, 96), np.uint8)
            mask[:, random.integers(20, 76) :] = 1
            pixels = (60 + 120 * mask[..., None] + random.integers(0, 40, (72, 96, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / split / "labels" / f"{i}.png")
    (root / "classes.txt").write_text("0 dark\n1 light\n")
    return root


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """The file of a small backbone."""
    path = tmp_path_factory.mktemp("backbone") / "tiny.json"
    TINY.save(path)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No timing and no report."""
    monkeypatch.setattr(
        retrain, "time_networks", lambda networks, *_, **__: {name: Timing((1.0, 1.0, 1.0)) for name in networks}
    )
    monkeypatch.setattr(retrain, "write_report", lambda path: path / "report.html")


def arguments(settings, root, runs, arch, *more, epochs=2) -> list[str]:
    return [*settings, "--data-root", str(root), "--arch", arch, "--runs", str(runs), "--epochs", str(epochs), *more]


def test_a_segmenter_is_trained_converted_and_shipped(camvid, backbone, tmp_path, capsys):
    path = main(arguments(SEGMENTATION, camvid, tmp_path, f"lraspp:{backbone}", "--lr", "0.2", epochs=12))
    found = metrics(path)
    assert path.name == "lraspp_tiny_int8" and (found["task"], found["score"], found["reported"]) == (
        "segmentation",
        "miou",
        "test",
    )
    rows = {row["network"]: row for row in found["networks"]}
    # one class everywhere: about 0.25
    assert list(rows) == ["float", "fake_quant", "int8"] and rows["int8"]["miou_test"] > 0.45
    assert (
        abs(rows["int8"]["miou_test"] - rows["fake_quant"]["miou_test"]) < 0.02
        and "pixel_accuracy_val" in rows["float"]
    )
    assert (
        found["parity"]["layer_steps"] <= 2
        and found["parity"]["refused"] is None
        and found["parity"]["agreement"] > 0.98
    )
    assert found["timed_on"] == [1, 3, 64, 85]  # the shorter side is 64
    assert {"int8.onnx", "int8.pt"} < set(found["file_bytes"]) and "miou_test" in capsys.readouterr().out
    trained, x = load(path), torch.randn(2, 3, 64, 85)
    assert trained.classes == ("dark", "light") and trained.task == "segmentation"
    frozen = quant.load_frozen(path / "int8.pt")
    assert torch.allclose(
        frozen(x[:1]), trained.graph(x[:1]), atol=5 * float(trained.graph(x).detach().abs().max()) / 255
    )
    about = {p.key: p.value for p in onnx.load(path / "int8.onnx").metadata_props}
    assert (about["task"], json.loads(about["classes"])) == ("segmentation", ["dark", "light"])


def test_a_detector_is_trained_converted_and_shipped(voc, backbone, tmp_path):
    path = main(arguments(DETECTION, voc, tmp_path, f"ssdlite:{backbone}"))
    found = metrics(path)
    rows = {row["network"]: row for row in found["networks"]}
    assert {f"{metric}_{split}" for metric in ("ap", "ap50", "voc_ap") for split in ("val", "test")} < set(rows["int8"])
    assert (
        found["parity"]["layer_steps"] <= 2 and found["parity"]["refused"] is None and found["onnx"]["layer_steps"] <= 2
    )
    trained = load(path)
    assert trained.classes == ("bar", "box") and len(trained.graph(torch.zeros(1, 3, 64, 64))) == 12
    assert len(quant.load_frozen(path / "int8.onnx")(torch.zeros(1, 3, 64, 64))) == 12


def test_a_network_of_two_parts_becomes_two_files(voc, backbone, tmp_path, capsys):
    path = main(arguments(DETECTION, voc, tmp_path, f"faster_rcnn:{backbone}", "--float-epochs", "1"))
    found = metrics(path)
    assert {"int8_box_head.onnx", "int8_box_head.pt", "int8_features.onnx", "int8_features.pt"} < set(
        found["file_bytes"]
    )
    assert found["parity"]["refused"] is None and found["onnx"]["integer_layers"] > 35
    features, box_head = (quant.load_frozen(path / f"int8_{name}.onnx") for name in ("features", "box_head"))
    assert len(features(torch.zeros(1, 3, 64, 64))) > 6 and box_head(torch.zeros(3, 64, 7, 7))[0].shape == (3, 3)
    tasks_main(["export", "--run", str(path), "--format", "onednn", "--output", str(tmp_path / "x.pt")])
    assert (tmp_path / "x_features.pt").is_file() and "x_box_head.pt: " in capsys.readouterr().out


@pytest.mark.parametrize("task", ("detection", "segmentation"))
def test_statassist_and_gradboost_act_in_every_task(task, voc, camvid, backbone, tmp_path, monkeypatch):
    """The optimizer is switched on with the quantizers, and gradients really are lengthened."""
    seen, make = [], tasks.engine.make_optimizer

    def watched(model, recipe):
        optimizer = make(model, recipe)
        step = optimizer.step

        def watching(*args, **kwargs):
            seen.append(optimizer.active)
            return step(*args, **kwargs)

        optimizer.step = watching
        return optimizer

    lengthened = []
    monkeypatch.setattr(tasks.engine, "make_optimizer", watched)
    boost = quant.training.gradboost.boost
    monkeypatch.setattr(
        quant.training.gradboost,
        "boost",
        lambda *args, **kwargs: lengthened.append(len(seen)) or boost(*args, **kwargs),
    )
    settings, root, form = (DETECTION, voc, "ssdlite") if task == "detection" else (SEGMENTATION, camvid, "lraspp")
    main(arguments(settings, root, tmp_path, f"{form}:{backbone}"))
    assert seen == [False, False, True, True]  # two steps in each of two epochs
    assert lengthened and min(lengthened) >= 2


@pytest.mark.parametrize("form", ["lraspp", "faster_rcnn"])
def test_a_stopped_training_ends_in_the_same_bits(form, voc, camvid, backbone, tmp_path, monkeypatch):
    """Faster R-CNN chooses regions at random in each step."""
    settings, root = (SEGMENTATION, camvid) if form == "lraspp" else (DETECTION, voc)
    argv = [settings, root, tmp_path / "whole", f"{form}:{backbone}", "--checkpoint-seconds", "0", "--float-only"]
    argv = argv[:-1] if form == "lraspp" else argv
    whole = main(arguments(*argv))
    batch = tasks.samples.Stream.batch

    def stopping(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return batch(self, step)

    argv[2] = tmp_path / "parts"
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(tasks.samples.Stream, "batch", stopping)
        main(arguments(*argv))
    parts = main(arguments(*argv))
    assert same(Run(parts).load_checkpoint(), Run(whole).load_checkpoint())
    rows = [
        [value for key, value in row.items() if "_test" in key]
        for path in (whole, parts)
        for row in metrics(path)["networks"]
    ]
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]


def test_pictures_of_unlike_sizes_are_trained_on_and_shipped(camvid, backbone, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(camvid, root)
    for split in ("train", "val", "test"):
        for folder in ("images", "labels"):
            path = root / split / folder / "1.png"
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    found = metrics(main(arguments(SEGMENTATION, root, tmp_path, f"lraspp:{backbone}", epochs=1)))
    assert found["parity"]["refused"] is None and 0 < found["onnx"]["pictures"] < 3 == found["val_images"]


def test_what_goes_on_from_a_float_run_sees_pictures_as_it_did(camvid, backbone, tmp_path):
    first = main(
        arguments(SEGMENTATION, camvid, tmp_path, f"lraspp:{backbone}", "--float-only", "--name", "f", epochs=1)
    )
    known = json.loads((first / "network.json").read_text())
    (first / "network.json").write_text(json.dumps(known | {"mean": [0.1, 0.2, 0.3]}))
    second = main(arguments(SEGMENTATION, camvid, tmp_path, f"lraspp:{backbone}", "--from-float", "f", epochs=1))
    assert json.loads((second / "network.json").read_text())["mean"] == pytest.approx([0.1, 0.2, 0.3])


def test_a_mobilenet_brings_its_weights_too(tmp_path):
    classifier = Network("mobilenet_v3_small_relu_x0_5", 64, 2)
    torch.manual_seed(3)
    model, run = classifier.build(), Run(tmp_path / "classifier")
    about = {
        "format": "network",
        "version": 1,
        "task": "classification",
        "name": classifier.name,
        "input_size": 64,
        "classes": ["a", "b"],
    }
    run.write_json("network.json", about | {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4], "weight_qmax": 63})
    run.save_checkpoint({"attached": False, "model": model.state_dict()})
    network = Network("lraspp:mobilenet_v3_small_relu_x0_5", 64, 2, None, "segmentation")
    segmenter = network.build()
    load_backbone(network, segmenter, "classifier", tmp_path)
    x = torch.randn(1, 3, 64, 64)
    stem = segmenter.backbone.eval().stem(x)
    with torch.no_grad():
        model.eval().features[0][0].stride = (2, 2)  # at 64 px a classifier keeps the resolution
    assert torch.equal(stem, model.features[0](x))


def test_a_backbone_brings_its_weights_and_its_normalisation(camvid, tmp_path, capsys):
    known = {"classes": ["a", "b"], "mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4], "weight_qmax": 63}
    network = find_network("frostnet_small_0_35", 2, 64, runs=tmp_path)
    torch.manual_seed(7)
    model, run = network.build(), Run(tmp_path / "classifier")
    run.write_json(
        "network.json",
        {"format": "network", "version": 1, "task": "classification", "name": network.name, "input_size": 64, **known},
    )
    network.arch.save(run.path / "arch.json")
    run.save_checkpoint({"attached": False, "model": model.state_dict()})
    argv = arguments(
        SEGMENTATION,
        camvid,
        tmp_path,
        "lraspp:frostnet_small_0_35",
        "--backbone",
        "classifier",
        "--lr",
        "1e-9",
        "--float-only",
        epochs=1,
    )
    path = main(argv)
    trained, state = Run(path).load_checkpoint()["model"], model.state_dict()
    first = next(name for name in state if name.endswith("conv.weight"))
    assert torch.allclose(trained[f"backbone.{first}"], state[first], atol=1e-6)
    written = json.loads((path / "network.json").read_text())
    assert np.allclose(written["mean"], known["mean"]) and np.allclose(written["std"], known["std"])
    wrong = arguments(SEGMENTATION, camvid, tmp_path, "lraspp:frostnet_small_0_5", "--backbone", "classifier")
    assert "trained frostnet_small_0_35, which has no such" in refused(capsys, wrong)


def test_what_a_task_does_not_have_is_refused(voc, backbone, tmp_path, capsys):
    def words(*argv):
        return refused(capsys, [*argv, "--runs", str(tmp_path)])

    assert "data: 'voc' is nothing that classification reads; choose one of scenes" in words(
        "--arch", "resnet20", "--data", "voc"
    )
    assert "'frostnet_small' is no network for segmentation; choose from lraspp:<backbone>" in words(
        "--task", "segmentation", "--arch", "frostnet_small"
    )
    assert "is no network for detection" in words("--task", "detection", "--arch", "lraspp:frostnet_small")
    assert "'frostnet_tiny' is no backbone" in words("--task", "detection", "--arch", "ssdlite:frostnet_tiny")
    argv = arguments(DETECTION, voc, tmp_path, f"ssdlite:{backbone}")
    assert "label_smoothing: only classification has it" in refused(capsys, [*argv, "--label-smoothing", "0.1"])
    assert "backbone: is for detection and segmentation" in words("--arch", "resnet20", "--backbone", "x")
    assert "'x' is no run with network.json" in refused(capsys, [*argv, "--backbone", "x"])
    assert "download: only CIFAR can be fetched" in refused(capsys, [*argv, "--download", "--name", "b"])
    assert "bad_data: pictures to classify" in words("--arch", "resnet20", "--bad-data", "skip")


def test_names_of_forms_resolve_and_are_written_by_their_blocks(tmp_path):
    network = find_network("ssdlite:frostnet_small", 3, 300, None, tmp_path, "detection")
    assert (network.name, network.input_size, network.folder_name) == (
        "ssdlite:frostnet_small_1_0",
        300,
        "ssdlite_frostnet_small_1_0",
    )
    network.arch.save(tmp_path / "mine" / "arch.json")
    assert find_network("lraspp:mine", 3, 300, None, tmp_path, "segmentation").arch == network.arch
    assert find_network("ssdlite:mobilenet_v2_x0_5", 3, 96, None, tmp_path, "detection").arch is None
    params, macs = find_network("faster_rcnn:frostnet_small_0_35", 3, 96, None, tmp_path, "detection").cost()
    assert params > 400_000 and macs > 10**7
    with pytest.raises(UserError, match="no network for detection"):
        Network("frostnet_small", 96, 3, None, "detection")
