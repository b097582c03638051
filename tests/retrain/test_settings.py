"""Flags and settings files of retrain.py: what they mean, and which are refused."""

import json

import pytest

import quant
from common.cli import parse
from common.errors import UserError
from common.runs import Run
from retrain import RetrainConfig, main
from tasks.kinds import KINDS
from tasks.trained import find_network
from tests.retrain.runs import arguments, metrics, refused, tiny


def test_a_settings_file_chooses_methods_and_bits_may_fall(folder, tmp_path, quick, capsys):
    settings = {
        "weight": "qil:4",
        "activation": "pact:4",
        "skip_first": {"conv": 1},
        "overrides": [{"match": "head.*", "weight": "int8:8"}],
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    given = [
        "--settings",
        str(tmp_path / "settings.json"),
        "--bits",
        "4",
        "3",
        "--engine",
        "reference",
        "--name",
        "mixed",
    ]
    path = main(arguments(folder, tmp_path, *given, epochs=4))
    assert metrics(path)["parity"]["refused"] is None
    model = Run(path).load_checkpoint()["model"]
    widths = {value["bits"] for name, value in model.items() if "_extra_state" in name and value}
    assert widths == {3, 8}
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"weight": "lsq:4"}))
    message = refused(capsys, arguments(folder, tmp_path, *given, epochs=4))  # the same file name, other contents
    assert "(quantizers.weight: 'qil:4' then, 'lsq:4' now)" in message
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"engine": "qnnpack"}))
    with pytest.raises(SystemExit):
        main(arguments(folder, tmp_path, *given, epochs=4))
    assert "is for qnnpack, --engine is reference" in capsys.readouterr().err


def test_a_bad_settings_file_is_named(folder, tmp_path, quick, capsys):
    (tmp_path / "settings.json").write_text('{"weight": "pact:4"}')
    with pytest.raises(SystemExit):
        main(arguments(folder, tmp_path, "--settings", str(tmp_path / "settings.json")))
    assert "settings.json: weight: 'pact:4': 'pact' does not quantize weights" in capsys.readouterr().err


def test_the_switches_of_the_ablation_mean_what_they_say():
    def built(*flags):
        return parse(RetrainConfig, ["--arch", "x", "--epochs", "9", *flags], "retrain", "")

    def phases(config):
        return [quant.phase_at(config.schedule(), e).name for e in (0, 2, 3, 8)]

    assert phases(built()) == ["float", "float", "qat", "freeze_bn"] and built().recipe().boost == "paper"
    assert phases(built("--no-statassist")) == ["qat", "qat", "qat", "freeze_bn"]
    assert phases(built("--from-float", "y")) == ["qat", "qat", "qat", "freeze_bn"]
    assert phases(built("--float-only")) == ["float"] * 4 and built("--float-only").recipe().boost == "off"
    assert phases(built("--float-epochs", "1"))[1] == "qat"
    assert (
        built("--no-gradboost").recipe().boost == "off"
        and built("--boost-mode", "released").recipe().boost == "released"
    )
    assert (
        built("--optimizer", "adamw").recipe().lr == 0.003
        and built("--optimizer", "adamw", "--lr", "0.1").recipe().lr == 0.1
    )
    assert built("--epochs", "1").schedule() == quant.Schedule(1, 0)
    assert built("--engine", "qnnpack").recipe().quant.engine == "qnnpack"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epochs", "0"], "epochs: 0, must be at least 1"),
        (["--lr", "-1"], "lr: -1.0, must be above 0"),
        (["--label-smoothing", "1"], "label_smoothing: 1.0, must be at least 0 and below 1"),
        (["--float-only", "--from-float", "a"], "float_only: excludes"),
        (["--no-statassist", "--float-epochs", "2"], "float_epochs: .* leave it out"),
        (["--float-only", "--calibrate", "mse"], "float_only: excludes --from-float and --calibrate"),
        (["--float-only", "--bits", "4"], "float_only: trains no quantized epochs"),
        (["--calibrate", "mse", "--bits", "4", "3"], "calibrate: trains no quantized epochs"),
        (["--calibrate", "mse", "--no-statassist"], "calibrate: trains no quantized epochs"),
        (["--calibrate", "mse", "--float-epochs", "2"], "float_epochs: .* leave it out"),
        (["--calibrate", "mse", "--boost-mode", "released"], "calibrate: trains no quantized epochs, .*--boost-mode"),
        (
            ["--calibrate", "mse", "--from-float", "a", "--epochs", "3"],
            "^epochs: --calibrate with --from-float trains nothing",
        ),
        (
            ["--calibrate", "mse", "--from-float", "a", "--lr", "1", "--optimizer", "adam"],
            "^lr, optimizer: --calibrate with --from-float",
        ),
        (["--threads", "500000"], r"threads: 500000, must be 1 to \d+ \(the CPUs that this process may use\)"),
        (["--threads", "0"], "threads: 0, must be 1 to"),
        (["--name", "../../zz"], "name: '../../zz', must be the plain name of a folder"),
        (["--name", ".."], r"name: '\.\.', must be"),
        (["--name", ""], "name: '', must be"),
        (["--name", "/elsewhere/zz"], "name: '/elsewhere/zz', must be"),
        (["--calibration-images", "64"], "calibration_images: are what --calibrate looks at"),
        (["--calibrate", "mse", "--calibration-images", "0"], "calibration_images: 0, must be at least 1"),
        (["--float-epochs", "12"], "float_epochs: 12, must be at least 1 and below epochs"),
    ],
)
def test_settings_that_make_no_sense_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        parse(RetrainConfig, ["--arch", "x", *flags], "retrain", "")


def test_an_unknown_name_and_a_size_too_small_are_refused(folder, tmp_path, capsys):
    message = refused(capsys, [*arguments(folder, tmp_path), "--arch", "resnet19"])
    assert "'resnet19'" in message and "near it: resnet18, " in message and "mobilenet_v2" not in message
    assert "vgg11 cannot run on 16 px" in refused(
        capsys, [*arguments(folder, tmp_path), "--arch", "vgg11", "--input-size", "16"]
    )
    (tmp_path / "resnet20").mkdir()
    (tmp_path / "resnet20" / "arch.json").write_text("{}")
    # not the zoo's silently
    assert "arch.json: format" in refused(capsys, [*arguments(folder, tmp_path), "--arch", "resnet20"])


def test_names_paths_and_sizes_resolve(folder, tmp_path):
    def size(name, data="scenes", input_size=None):
        return find_network(name, 10, KINDS["classification"].size(data), input_size, tmp_path).input_size

    assert size("frostnet_small") == 32 and size("frostnet_small_0_5", input_size=64) == 64
    assert (
        size("frostnet_small", "imagefolder") == 224
        and size("resnet20", "imagefolder") == 224
        and size("resnet20", "cifar100") == 32
    )
    assert size(str(folder / "tiny.json")) == 16
    network = find_network(str(folder / "tiny.json"), 10, 32)
    assert network.arch.head.num_classes == network.num_classes == 10  # of the data, whatever the file says
    tiny(16).with_name("other").save(tmp_path / "resnet20" / "arch.json")
    assert size("resnet20") == 16  # a run comes before the zoo
    tiny(16).save(tmp_path / "frostnet_mine" / "arch.json")
    with pytest.raises(
        UserError, match="'frostnet_mime' is neither a file, a run nor a known name; near it: frostnet_mine, "
    ) as refusal:
        size("frostnet_mime")
    assert "resnet20" not in str(refusal.value)  # those alone that are near
    with pytest.raises(UserError, match="near it: mobilenet_v2"):
        size("mobilnet_v2")
