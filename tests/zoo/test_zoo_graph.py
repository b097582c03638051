"""python -m zoo graph and list: what they print and write, and which flags they refuse."""

import json

import pytest
import torch

import quant
from tests.zoo.graphs import CHOSEN, DEMO, SIZE, plan
from zoo.__main__ import GraphConfig, main, table
from zoo.generators import build


def _run(*argv):
    main(["graph", "--input-size", str(SIZE), "--classes", "10", *map(str, argv)])


@pytest.fixture
def demo_file(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"op_types": list(CHOSEN), "skip_first": {"conv": 1}, "ignore": ["fc"]}))
    return path


def test_a_dry_run_prints_every_node_with_its_quantizer_or_the_reason_and_writes_nothing(demo_file, tmp_path, capsys):
    _run("--model", "preact_resnet18", "--settings", demo_file, "--dry-run")
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["node", "op", "weight", "gradient", "reads", "makes", "reason"]
    assert len(lines) == 1 + len(plan(DEMO))
    words = {line.split()[0]: line for line in lines}
    assert words["conv0"].endswith("skip_first conv: 1") and words["fc"].endswith("ignored by 'fc'")
    assert words["stage1.0.conv2"].split() == ["stage1.0.conv2", "conv", "int8:8", ".", "stage1.0.relu2_quant", "."]
    assert last == "20 weight quantizers, 16 activation quantizers, 4 of them shared by several layers"
    assert list(tmp_path.iterdir()) == [demo_file]


def test_without_a_dry_run_the_same_is_printed_and_files_are_written(demo_file, tmp_path, capsys):
    arguments = ("--model", "resnet20", "--settings", demo_file)
    _run(*arguments, "--dry-run")
    dry = capsys.readouterr().out
    files = [tmp_path / f"g.{kind}" for kind in ("png", "dot", "json")]
    _run(*arguments, "--picture", files[0], "--nodes", 12, "--dot", files[1], "--json", files[2])
    assert capsys.readouterr().out == dry
    assert files[0].read_bytes().startswith(b"\x89PNG") and files[1].read_text().startswith("digraph")
    data = json.loads(files[2].read_text())
    assert data["settings"]["skip_first"] == {"conv": 1} and data["model"] == "resnet20"
    assert [row["name"] for row in data["rows"]] == [row.name for row in plan(DEMO, "resnet20")]


def test_a_dry_run_can_be_pictured(tmp_path):
    _run("--model", "resnet20", "--dry-run", "--picture", tmp_path / "g.png", "--from", "stage1.0.conv1", "--nodes", 6)
    assert [path.name for path in tmp_path.iterdir()] == ["g.png"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "resnet19"], "arch: 'resnet19'"),
        (["--model", "resnet20", "--settings", "none.json"], "none.json: cannot be read"),
        (["--model", "resnet20", "--dry-run", "--dot", "g.dot"], "--dry-run: nothing is attached"),
        (["--model", "resnet20", "--from", "conv"], "add --picture"),
        (["--model", "resnet20", "--picture", "g.svg"], "must end in .png"),
        (
            ["--model", "resnet20", "--picture", "g.png", "--from", "stage9", "--input-size", "32"],
            "no node is called 'stage9'",
        ),
        (["--model", "resnet20", "--input-size", "0"], "input_size: 0, must be a whole number from 1 to 100000"),
        (["--model", "resnet20", "--classes", "x"], "invalid int value: 'x'"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["graph", *argv])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_list_names_what_can_be_built(capsys):
    main(["list"])
    names = capsys.readouterr().out.split()
    assert {"resnet20", "preact_resnet18", "mobilenet_v2", "frostnet_small_0_5"} <= set(names)


def test_the_table_keeps_its_columns_apart():
    rows = [
        quant.PlanRow("a" * 30, "conv", "int8", "", "", "", "", ""),
        quant.PlanRow("b", "add", "", "", "", "", "", "because"),
    ]
    assert [len(line.split()) for line in table(rows).splitlines()] == [7, 6, 7]


# ---- generators --------------------------------------------------------------------------------------------


def test_the_list_names_generators_and_discriminators_with_their_norms(capsys):
    main(["list"])
    *_, generators, discriminators = capsys.readouterr().out.splitlines()
    assert (
        "resnet_6blocks, resnet_9blocks, unet_128, unet_256, frost_generator; each with batch norm, also with "
        ":instance and :none" in generators
    )
    assert discriminators == "discriminators: patch, pixel; each with batch norm, also with :instance and :none"


@pytest.mark.parametrize("name", ["resnet_6blocks:instance", "frost_generator"])
def test_a_generator_is_attached_and_drawn(name, tmp_path, capsys):
    files = [tmp_path / f"g.{kind}" for kind in ("png", "json")]
    main(
        [
            "graph",
            "--model",
            name,
            "--input-size",
            "32",
            "--picture",
            str(files[0]),
            "--nodes",
            "12",
            "--json",
            str(files[1]),
        ]
    )
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in zoo_generator(name).modules())
    assert f"{convolutions} weight quantizers" in capsys.readouterr().out.splitlines()[-1]
    data = json.loads(files[1].read_text())
    assert (data["model"], data["input_size"], data["classes"]) == (name, 32, None) and files[
        0
    ].read_bytes().startswith(b"\x89PNG")


def zoo_generator(name):
    with torch.device("meta"):
        return build(name)


def test_sizes_left_out_are_what_networks_are_made_for():
    configs = [GraphConfig(name).with_defaults() for name in ("unet_256", "resnet18")]
    assert [(config.input_size, config.classes) for config in configs] == [(256, None), (224, 1000)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "unet_256", "--input-size", "224"], "input_size: 224, must be a multiple of 256"),
        (["--model", "frost_generator", "--input-size", "4"], "input_size: 4, must be a multiple of 8 from 8"),
        (
            ["--model", "resnet_6blocks:instance", "--classes", "10"],
            "--classes: 10, but resnet_6blocks:instance makes images",
        ),
    ],
)
def test_what_a_generator_does_not_take_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["graph", *argv])
    assert stop.value.code == 2 and message in capsys.readouterr().err
