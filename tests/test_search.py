"""search.py end to end through main(argv), on a tiny space, a made-up table and small pictures."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import search
import supernet
from common.runs import Run
from nas import SPACES, Architecture, Bottleneck
from nas.derive import latency_range
from supernet.finalists import FILLED, Finalist
from supernet.judge import slowest_of_the_best
from tests import ROOT
from tests.latency_lut.tables import made_up
from tests.spaces import tiny_space

SMALL = [
    "--base-steps",
    "3",
    "--float-steps",
    "3",
    "--quant-steps",
    "3",
    "--joint-steps",
    "6",
    "--batch-size",
    "8",
    "--rescored",
    "2",
    "--controls",
    "2",
    "--score-images",
    "8",
    "--tune-steps",
    "2",
    "--input-size",
    "16",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four classes that differ in brightness."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 4)):
        for c in range(4):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 60, (16, 16, 3)) + 60 * c
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"class{c}" / f"{i}.png")
    return root


@pytest.fixture
def world(tmp_path, pictures, monkeypatch):
    """argv of a small search; the space is tiny, whole networks 'take' 90 % of what the table says, the report is not
    drawn.
    """
    monkeypatch.setitem(SPACES, "frostnet", lambda width, size, num_classes: tiny_space(size, num_classes))
    monkeypatch.setattr(search, "write_report", lambda path: (path / "report.html").touch())
    space = tiny_space(16, 4)
    table = made_up(tmp_path / "table.json", space)
    table.save()
    fastest, slowest = latency_range(space, table.for_space(space))
    target = (fastest + slowest) / 2
    monkeypatch.setattr(search, "measure", lambda networks, *_: dict.fromkeys(networks, 0.9 * target))
    argv = [
        "--latency-lut",
        str(tmp_path / "table.json"),
        "--data",
        "imagefolder",
        "--data-root",
        str(pictures),
        "--runs",
        str(tmp_path / "runs"),
    ]
    return [*argv, "--target-ms", str(target), *SMALL]


def refused(capsys, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        search.main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def log(path):
    return (path / "log.jsonl").read_text()


def arch_without_provenance(path):
    return {k: v for k, v in json.loads((path / "arch.json").read_text()).items() if k != "provenance"}


def test_a_search_writes_an_architecture_that_meets_the_target(world, tmp_path):
    path = search.main(world)
    assert path == tmp_path / "runs" / "frostnet_a"
    arch = Architecture.load(path / "arch.json")
    tiny_space(16, 4).choice_of(arch)  # raises where the space does not hold it
    assert arch.name == "frostnet_a"
    assert arch.provenance["measured_ms"] <= arch.provenance["target_ms"]
    assert set(arch.provenance) >= {"command", "seed", "table_hash", "predicted_ms", "engine"}
    front = json.loads((path / "front.json").read_text())
    kinds = [n["kind"] for n in front["networks"]]
    assert kinds[0] == "derived" and kinds.count("derived") <= 2 and kinds.count("random") == 2
    assert front["chosen"] == front["networks"][0]["name"]
    assert all(n["latency_ms"] <= front["target_ms"] for n in front["networks"])
    assert len(front["points"]) >= 3
    for network in front["networks"]:
        tried = Architecture.load(path / "tried" / f"{network['name']}.json")
        assert (
            tried.provenance["supernet_top1"] == network["accuracy"]
            and tried.provenance["inherited_top1"] == network["inherited"]
        )
    metrics = json.loads((path / "metrics.json").read_text())
    assert metrics["predicted_ms"] == pytest.approx(
        sum(json.loads((path / "latency.json").read_text())["parts"].values())
    )
    assert len(log(path).splitlines()) == 15


@pytest.mark.parametrize("stop", [2, 4, 8, 12])
def test_a_stopped_search_goes_on_to_the_same_end(world, tmp_path, stop, monkeypatch, capsys):
    expected = search.main(world)
    step = supernet.Search.step

    def stops(self):
        if self.step_index == stop:
            raise KeyboardInterrupt
        return step(self)

    again = [*world, "--name", "again", "--checkpoint-seconds", "0"]
    monkeypatch.setattr(supernet.Search, "step", stops)
    with pytest.raises(SystemExit) as stopped:
        search.main(again)
    assert stopped.value.code == 130
    assert "resume with" in capsys.readouterr().err
    monkeypatch.setattr(supernet.Search, "step", step)
    path = search.main(again)
    assert log(path) == log(expected)
    assert arch_without_provenance(path) | {"name": ""} == arch_without_provenance(expected) | {"name": ""}


PROGRAM = """
import sys, search
# no two timings are alike
search.measure = lambda archs, *_: {name: 1e-3 * len(arch.blocks) for name, arch in archs.items()}
search.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_search_killed_in_every_phase_goes_on_to_the_same_end(tmp_path, pictures):
    """kill -9 in each phase and while networks are judged, then the same command to the end: everything is as if it had
    not been killed.
    """
    space = SPACES["frostnet"](0.35, 32, 4)
    made_up(tmp_path / "table.json", space).save()
    words = [
        "--latency-lut",
        str(tmp_path / "table.json"),
        "--width",
        "0.35",
        "--data",
        "imagefolder",
        "--data-root",
        str(pictures),
        "--target-ms",
        "30",
        *SMALL,
        "--input-size",
        "32",
        "--checkpoint-seconds",
        "0",
        "--name",
        "found",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def command(runs):
        return [sys.executable, "-c", PROGRAM, *words, "--runs", str(tmp_path / runs)]

    def reached(path, lines):
        if lines is None:
            return (path / "rescored.json").is_file()
        return (path / "log.jsonl").is_file() and log(path).count("\n") >= lines

    subprocess.run(command("whole"), check=True, env=environment, capture_output=True)
    killed = tmp_path / "killed" / "found"
    for lines in (2, 5, 8, 11, 13, None):
        process = subprocess.Popen(
            command("killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not reached(killed, lines):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    subprocess.run(command("killed"), check=True, env=environment, capture_output=True)
    whole = tmp_path / "whole" / "found"
    for name in ("log.jsonl", "alphas.jsonl", "rescored.json", "front.json", "metrics.json", "space.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert arch_without_provenance(killed) == arch_without_provenance(whole)


def test_one_search_gives_networks_for_many_targets(world, tmp_path):
    path = search.main([*world, "--pareto", "4"])
    archs = [Architecture.load(path / "pareto" / f"frostnet_a_{i}.json") for i in range(1, 5)]
    predicted = [arch.provenance["predicted_ms"] for arch in archs]
    assert predicted == sorted(predicted)
    space = tiny_space(16, 4)
    fastest, slowest = latency_range(space, made_up(tmp_path / "again.json", space).for_space(space))
    assert predicted[0] == pytest.approx(fastest) and FILLED * slowest <= predicted[-1] <= slowest * (1 + 1e-6)
    rows = [n for n in json.loads((path / "front.json").read_text())["networks"] if n["kind"] == "pareto"]
    assert [n["latency_ms"] for n in rows] == predicted
    assert all(0 <= n["accuracy"] <= 1 and n["measured_ms"] > 0 for n in rows)


def test_more_targets_can_be_asked_for_when_a_search_has_ended(world, tmp_path, capsys):
    path = search.main(world)
    before = {name: (path / name).read_bytes() for name in ("arch.json", "log.jsonl", "checkpoint.pt")}
    search.main([*world, "--pareto", "3"])
    assert len(list((path / "pareto").iterdir())) == 3
    assert before == {name: (path / name).read_bytes() for name in before}, "the chosen network stays"
    kinds = [n["kind"] for n in json.loads((path / "front.json").read_text())["networks"]]
    assert kinds.count("pareto") == 3 and "derived" in kinds
    capsys.readouterr()
    search.main([*world, "--pareto", "3"])
    assert "has ended" in capsys.readouterr().out
    search.main([*world, "--pareto", "2"])
    assert len(list((path / "pareto").iterdir())) == 2


def test_a_tied_search_writes_the_block_and_the_next_search_places_it(world, tmp_path, monkeypatch):
    def tied(width, size, num_classes):
        space = tiny_space(size, num_classes)

        def swish(slot):
            return (
                slot
                if len(slot.candidates) == 1
                else replace(
                    slot,
                    candidates=tuple(replace(c, activation="hard_swish") for c in slot.candidates),
                )
            )

        stages = tuple(replace(stage, slots=tuple(map(swish, stage.slots))) for stage in space.stages)
        return replace(space, name="bottleneck", stages=stages, tied=True)

    monkeypatch.setitem(SPACES, "bottleneck", tied)
    space = tied(0, 16, 4)
    made_up(tmp_path / "tied.json", space).save()
    path = search.main(
        [
            *world,
            "--latency-lut",
            str(tmp_path / "tied.json"),
            "--space",
            "bottleneck",
            "--name",
            "block",
            "--target-ms",
            "5",
        ]
    )
    block = Bottleneck.load(path / "bottleneck.json")
    assert block == Bottleneck("mb", "hard_swish")
    rows = json.loads((path / "front.json").read_text())["networks"]
    blocks = sorted(n["block"] for n in rows if n["kind"] == "derived")
    assert blocks == [f"mb {kind} hard_swish" for kind in ("k3 e2", "k3 e4", "k5 e2")]
    monkeypatch.setitem(SPACES, "frostnet_mb_hard_swish", SPACES["frostnet"])
    assert search.main([*world, "--bottleneck", str(path / "bottleneck.json")]).name == "frostnet_a"


def test_what_the_alphas_say_is_kept_with_the_space(world, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "ALPHA_ROWS", 1)
    path = search.main(world)
    rows = [json.loads(line) for line in (path / "alphas.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 14], "the first and the last of the three that move alphas"
    described = json.loads((path / "space.json").read_text())
    for row in rows:
        for stage, ops, depths in zip(described["stages"], row["ops"], row["depths"], strict=True):
            assert sum(depths) == pytest.approx(1) and len(depths) == len(stage["slots"]) - stage["min_depth"] + 1
            assert [len(slot) for slot in stage["slots"]] == [len(p) for p in ops]
            assert all(sum(p) == pytest.approx(1) for p in ops)


def test_the_result_says_how_healthy_the_search_was(world):
    metrics = json.loads((search.main(world) / "metrics.json").read_text())
    assert set(metrics["health"]) == {"entropy", "cheapest_share", "mixed_top1", "derived_top1", "warnings"}
    assert "hardly moved" in metrics["health"]["warnings"][0], "six steps move no alpha"


def test_a_search_stopped_while_networks_are_judged_does_not_judge_them_again(world, monkeypatch):
    expected = search.main(world)
    judged, top1 = [], supernet.judge.Judge.top1

    def stops(self, network):
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append(network.name)
        return top1(self, network)

    again = [*world, "--name", "again"]
    monkeypatch.setattr(supernet.judge.Judge, "top1", stops)
    with pytest.raises(SystemExit):
        search.main(again)
    monkeypatch.setattr(
        supernet.judge.Judge, "top1", lambda self, network: judged.append(network.name) or top1(self, network)
    )
    path = search.main(again)
    assert len(judged) == len(set(judged)) == 4
    assert (path / "front.json").read_text() == (expected / "front.json").read_text()


def test_only_one_space_is_asked_for(world, capsys):
    assert "bottleneck: is placed by" in refused(capsys, [*world, "--space", "bottleneck", "--bottleneck", "b.json"])
    assert "space: 'nonsense'" in refused(capsys, [*world, "--space", "nonsense"])


def test_an_impossible_target_fails_at_once_with_the_feasible_range(world, capsys):
    started = time.monotonic()
    message = refused(capsys, [*world, "--target-ms", "0.0001"])
    assert time.monotonic() - started < 1.0
    assert "target_ms: 0.0001" in message and " to " in message and "ms" in message


@pytest.mark.parametrize(
    "words",
    [
        ["--batch-size", "0"],
        ["--rescored", "0"],
        ["--seed", "-1"],
        ["--joint-steps", "0"],
        ["--lr", "0"],
        ["--train-images", "3"],
    ],
)
def test_impossible_settings_are_named(world, words, capsys):
    assert words[0][2:].replace("-", "_") + ": " + words[1] in refused(capsys, [*world, *words]).replace("0.0", "0")


def test_a_checkpoint_of_something_else_is_refused_in_words(world, tmp_path, capsys):
    path = search.main(world)
    (path / "metrics.json").unlink()
    Run(path).save_checkpoint({"model": {}})
    assert "not of this search" in refused(capsys, world)


def test_a_folder_of_another_program_is_left_alone(world, tmp_path, capsys):
    run = Run(tmp_path / "runs" / "frostnet_a")
    run.claim({"program": "retrain"})
    run.save_checkpoint({"model": {}})
    assert "another program" in refused(capsys, [*world, "--restart"])
    assert run.has("checkpoint.pt")


def test_pictures_that_move_alphas_judge_networks_and_train_weights_are_disjoint(pictures):
    data = search.training_pictures("imagefolder", pictures, 16, 0)
    parts = search.split(data, 0)
    seen = [
        {tuple(image.flatten().tolist()) for image in part.images}
        for part in (parts.weights, parts.alphas, parts.judge)
    ]
    assert [len(s) for s in seen] == [64, 8, 8]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_a_search_that_has_ended_is_left_as_it_is(world, capsys):
    path = search.main(world)
    before = {file.name: file.stat().st_mtime_ns for file in path.glob("*.pt")} | {
        "arch": (path / "arch.json").read_bytes()
    }
    capsys.readouterr()
    assert search.main(world) == path
    assert "has ended" in capsys.readouterr().out
    assert before == {file.name: file.stat().st_mtime_ns for file in path.glob("*.pt")} | {
        "arch": (path / "arch.json").read_bytes()
    }


def test_of_equally_accurate_networks_the_slowest_is_chosen():
    networks = [
        Finalist(n, "derived", None, ms, 0.0, None, accuracy, ms)
        for n, ms, accuracy in (("a", 1.0, 0.52), ("b", 1.3, 0.51), ("c", 1.5, 0.40))
    ]
    assert slowest_of_the_best(networks, pictures=400).name == "b"  # one standard error is 0.025
    assert slowest_of_the_best(networks, pictures=10**6).name == "a"


def test_a_missing_table_names_the_command_that_makes_it(world, tmp_path, capsys):
    message = refused(capsys, ["--latency-lut", str(tmp_path / "none.json"), *world[2:]])
    assert "none.json" in message and "latency_lut" in message


def test_an_input_size_that_was_not_measured_names_the_command_that_adds_it(world, capsys):
    message = refused(capsys, [*world, "--input-size", "48"])
    assert "48" in message and "python -m latency_lut" in message


def test_a_missing_data_folder_is_named(world, tmp_path, capsys):
    assert "no_such_folder" in refused(capsys, [*world, "--data-root", str(tmp_path / "no_such_folder")])


def test_other_settings_are_not_mixed_into_a_run(world, capsys):
    search.main(world)
    message = refused(capsys, [*world, "--lr", "0.01"])
    assert "lr" in message and "--restart" in message
    assert search.main([*world, "--lr", "0.01", "--restart"]).name == "frostnet_a"


def test_a_broken_checkpoint_is_named_and_left_alone(world, tmp_path, capsys):
    path = search.main(world)
    (path / "metrics.json").unlink()
    (path / "checkpoint.pt").write_bytes((path / "checkpoint.pt").read_bytes()[:1000])
    assert "checkpoint.pt" in refused(capsys, world)


def test_a_loss_that_is_not_a_number_ends_in_words(world, monkeypatch, capsys):
    monkeypatch.setattr(search.F, "cross_entropy", lambda out, y: out.sum() * float("nan"))
    assert "loss: nan at step 0" in refused(capsys, world)


def test_networks_that_miss_the_target_as_measured_are_not_chosen(world, monkeypatch, capsys):
    target = float(world[world.index("--target-ms") + 1])
    calls = []

    def slow_at_first(networks, *_):
        calls.append(list(networks))
        return dict.fromkeys(networks, 1.1 * target if len(calls) == 1 else 0.99 * target)

    monkeypatch.setattr(search, "measure", slow_at_first)
    path = search.main(world)
    assert len(calls) == 2
    assert "deriving again" in capsys.readouterr().out
    assert json.loads((path / "metrics.json").read_text())["predicted_ms"] <= target / 1.05
    monkeypatch.setattr(search, "measure", lambda networks, *_: dict.fromkeys(networks, 5 * target))
    assert "and miss it" in refused(capsys, [*world, "--restart"])


def test_another_engine_or_torch_is_refused(world, capsys):
    path = Path(world[1])
    data = json.loads(path.read_text())
    data["meta"]["torch"] = "1.0"
    path.write_text(json.dumps(data))
    message = refused(capsys, world)
    assert "torch" in message and torch.__version__ in message and "python -m latency_lut" in message
