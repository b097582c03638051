"""search.py end to end through main(argv): what a search writes."""

# ruff: noqa: F811 (fixtures that are imported)

import json
from dataclasses import replace

import pytest

import search
from nas import SPACES, Architecture, Bottleneck
from nas.derive import latency_range
from supernet.finalists import MIN_USED
from tests.latency_lut.tables import made_up
from tests.search_program import ended, log, once, pictures, refused, world  # noqa: F401
from tests.spaces import tiny_space

FEWEST = "--rescored 1 --controls 0 --tune-steps 0".split()


def test_a_search_writes_an_architecture_that_meets_the_target(once):
    path = once
    assert path.parts[-2:] == ("runs", "frostnet_a")
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


def test_one_search_gives_networks_for_many_targets(world, tmp_path):
    path = search.main([*world, *FEWEST, "--pareto", "4"])
    archs = [Architecture.load(path / "pareto" / f"frostnet_a_{i}.json") for i in range(1, 5)]
    predicted = [arch.provenance["predicted_ms"] for arch in archs]
    assert predicted == sorted(predicted)
    space = tiny_space(16, 4)
    fastest, slowest = latency_range(space, made_up(tmp_path / "again.json", space).for_space(space))
    assert predicted[0] == pytest.approx(fastest) and MIN_USED * slowest <= predicted[-1] <= slowest * (1 + 1e-6)
    rows = [n for n in json.loads((path / "front.json").read_text())["networks"] if n["kind"] == "pareto"]
    assert [n["latency_ms"] for n in rows] == predicted
    assert all(0 <= n["accuracy"] <= 1 and n["measured_ms"] > 0 for n in rows)


def test_more_targets_can_be_asked_for_when_a_search_has_ended(world, ended, capsys):
    path = ended
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
    assert search.main([*world, *FEWEST, "--bottleneck", str(path / "bottleneck.json")]).name == "frostnet_a"


def test_what_the_alphas_say_is_kept_with_the_space(world, tmp_path, monkeypatch):
    monkeypatch.setattr("supernet.training.ALPHA_ROWS", 1)
    path = search.main([*world, *FEWEST])
    rows = [json.loads(line) for line in (path / "alphas.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 14], "the first and the last of the three that move alphas"
    described = json.loads((path / "space.json").read_text())
    for row in rows:
        for stage, ops, depths in zip(described["stages"], row["ops"], row["depths"], strict=True):
            assert sum(depths) == pytest.approx(1) and len(depths) == len(stage["slots"]) - stage["min_depth"] + 1
            assert [len(slot) for slot in stage["slots"]] == [len(p) for p in ops]
            assert all(sum(p) == pytest.approx(1) for p in ops)


def test_the_result_says_how_healthy_the_search_was(once):
    metrics = json.loads((once / "metrics.json").read_text())
    assert set(metrics["health"]) == {"entropy", "cheapest_share", "mixed_top1", "derived_top1", "warnings"}
    assert "hardly moved" in metrics["health"]["warnings"][0], "six steps move no alpha"


def test_networks_that_miss_the_target_as_measured_are_not_chosen(world, ended, monkeypatch, capsys):
    (ended / "metrics.json").unlink()  # the search goes on where its networks are chosen
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
    (path / "metrics.json").unlink()
    assert "and miss it" in refused(capsys, world)
