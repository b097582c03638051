"""benchmarks/supernet_step.py: its count of bytes, what it compares, and its page."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import supernet_step
from benchmarks.supernet_step import Bench, StepConfig, bars, cut, peak_bytes
from common.files import read_json
from nas.space import Slot
from tests.spaces import tiny_space

CONFIG = StepConfig(rounds=1, paths=2, input_size=16, batch_size=8)


def tiny(count: int):
    stages = (
        replace(s, slots=tuple(Slot(slot.candidates[:count]) for slot in s.slots)) for s in tiny_space(16, 10).stages
    )
    return replace(tiny_space(16, 10), stages=tuple(stages))


def test_the_peak_is_what_is_alive_at_once():
    def step():
        first, second = torch.empty(1000), torch.empty(2000)
        del first
        third = torch.empty(500)
        del second, third

    assert peak_bytes(step) == 4 * 3000


def test_what_was_alive_before_does_not_count():
    before = torch.ones(1000)
    assert peak_bytes(lambda: before + before) == 4000


def test_a_step_on_a_path_needs_the_memory_of_its_network_however_many_candidates_there_are():
    peaks = {count: [Bench(tiny(count), CONFIG).peak_bytes(kind) for kind in ("path", "plain")] for count in (2, 3)}
    assert peaks[3][0] == pytest.approx(peaks[2][0], rel=0.01)
    assert peaks[3][0] == pytest.approx(peaks[3][1], rel=0.01)


def test_the_plain_network_is_that_of_the_path():
    bench = Bench(tiny(3), CONFIG)
    for path, plain in zip(bench.paths, bench.plain, strict=True):
        state = bench.search.supernet.path_state(path)
        assert [name for name, _ in plain.model.named_parameters()] == [
            k for k in state if k in dict(plain.model.named_parameters())
        ]
        assert all(state[k].shape == p.shape for k, p in plain.model.named_parameters())
    bench.kinds["path"](1)
    trained = [k for k, p in bench.search.supernet.named_parameters() if p.grad is not None]
    names = [f"stages.{i}.{j}.{op}." for i, row in enumerate(bench.paths[1].ops) for j, op in enumerate(row)]
    assert {next(n for n in ("stem.", "head.", *names) if k.startswith(n)) for k in trained} == {
        "stem.",
        "head.",
        *names,
    }


def test_the_spaces_differ_in_their_candidates_alone():
    two, eight = cut(2, CONFIG), cut(8, CONFIG)
    assert [len(slot.candidates) for stage in eight.stages[1:] for slot in stage.slots] == [8] * 23
    assert all(
        a.candidates == b.candidates[:2] for s, t in zip(two.stages, eight.stages) for a, b in zip(s.slots, t.slots)
    )


def row(path, proxyless, peak):
    return {"over_plain": {"path": path, "proxyless": proxyless}, "peak_mib": {"path": peak}}


def test_a_bar_is_judged_by_the_worst_space():
    found = bars([row(1.0, 2.0, 50.0), row(1.2, 2.4, 10.0), row(1.1, 1.0, 10.5)])
    assert (found["one_path_over_plain"], found["two_paths_over_plain"], found["peak_spread"]) == (1.2, 2.4, 0.05)
    assert found["met"] == {"one_path": True, "two_paths": False, "memory": False}


def test_the_benchmark_writes_its_figures_and_their_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(supernet_step, "find_space", lambda name: lambda *_: tiny(3))
    monkeypatch.setattr(supernet_step, "cut", lambda count, config: tiny(count))
    words = "--candidates 2 --rounds 1 --paths 1 --input-size 16 --batch-size 4"
    supernet_step.main([*words.split(), "--output", str(tmp_path / "a.json")])
    result = read_json(tmp_path / "a.json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result["bars"]
    assert [r["space"] for r in result["rows"]] == ["frostnet", "2 candidates"]
    for r in result["rows"]:
        assert set(r["ms"]) == {"plain", "path", "darts", "gumbel", "proxyless"} == set(r["peak_mib"])
        assert r["over_plain"]["plain"] == 1.0 and min(r["ms"].values()) > 0
    assert result["rows"][0]["weights_mib"] >= result["rows"][1]["weights_mib"]
    page = (tmp_path / "a.md").read_text()
    assert "| 2 candidates | 2 |" in page and "[a.json](a.json)" in page


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--candidates", "1"], ["--candidates", "21"]])
def test_impossible_settings_are_named(words, capsys):
    with pytest.raises(SystemExit):
        supernet_step.main(words)
    assert f"{words[0][2:]}: {words[1]}" in capsys.readouterr().err
