"""Validation of a table on networks that it has not seen: which they are, the gates, what is kept.

Nothing is timed but counting.
"""

from dataclasses import replace

import pytest

import latency_lut.commands.validate as validating
from common.errors import UserError
from latency_lut import LatencyTable, build, prepare
from latency_lut.__main__ import main
from latency_lut.commands.validate import Gate, fresh_networks, gates, validate
from latency_lut.sections import parts
from latency_lut.timing import Timing
from nas import SPACES
from tests.latency_lut.tables import SPACE, made_up

KEY = "frostnet_0.5_32"


@pytest.fixture
def table(tmp_path):
    table = made_up(tmp_path / "lut.json")
    table = table.with_section(replace(table.sections[KEY], validated=None))
    table.save()
    return table


@pytest.fixture
def timed(monkeypatch):
    """A measurement without clocks: a network takes what the list says, in rounds; returns the calls."""
    calls = []

    def measure(table, section, specs, archs, rounds):
        calls.append(sorted(archs))
        factor = measure.factor
        networks = {
            name: replace(network, timing=Timing((factor * table.predict(archs[name]).latency_ms,) * 3))
            for name, network in section.validated.networks.items()
        }
        seen = {"date": "2026-01-01 00:00:00", "seconds": 1.0, "load": 0.5, "steal": None}
        return table.with_section(
            replace(section, validated=replace(section.validated, networks=networks, conditions=(seen,)))
        )

    measure.factor = 1.0
    monkeypatch.setattr(validating, "measure", measure)
    calls.append(measure)
    return calls


def test_fresh_networks_are_none_of_those_that_calibrated(table):
    section = table.sections[KEY]
    for seed in (section.seed, 7):  # with the table's own seed the same ones are drawn, and left out
        archs = fresh_networks(SPACE, section, 8, seed)
        assert len(archs) == 8 and len({arch.blocks for arch in archs.values()}) == 8
        assert not {tuple(parts(arch).values()) for arch in archs.values()} & {
            n.parts for n in section.networks.values()
        }


def test_perfect_predictions_are_said_to_be_perfect_and_kept(table, timed):
    figures = validate(table, KEY, 10).sections[KEY].validated.figures
    assert figures["networks"] == 10 and figures["mape"] == pytest.approx(0) and figures["spearman"] == pytest.approx(1)
    again = LatencyTable.load(table.path)
    assert again.sections[KEY].validated.figures == pytest.approx(figures)
    assert again.sections[KEY].validated.conditions[0]["load"] == 0.5 and again.sections[KEY].validated.seed == 1


def test_a_machine_that_is_a_tenth_slower_shows_as_bias(table, timed):
    timed[0].factor = 1.1
    figures = validate(table, KEY, 10).sections[KEY].validated.figures
    assert figures["bias"] == pytest.approx(1 / 1.1 - 1) and figures["mape"] == pytest.approx(1 - 1 / 1.1)
    assert figures["spearman"] == pytest.approx(1)


def test_what_was_validated_is_not_timed_again_unless_asked(table, timed):
    done = validate(table, KEY, 10)
    assert validate(done, KEY, 10) == done and len(timed) == 2
    validate(done, KEY, 12)
    assert len(timed) == 3
    words = ["validate", "--lut", str(table.path), "--networks", "10"]
    done.save()
    main(words)
    assert len(timed) == 3
    main([*words, "--restart"])
    assert len(timed) == 4


def test_a_restart_that_is_stopped_goes_on_and_does_not_start_over(table, timed, monkeypatch, capsys):
    validate(table, KEY, 10)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(validating, "measure", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["validate", "--lut", str(table.path), "--networks", "10", "--restart"])
    said = capsys.readouterr().err
    assert stopped.value.code == 130 and "stopped; resume with:" in said and "--restart" not in said
    # so that the command measures what was asked for
    assert LatencyTable.load(table.path).sections[KEY].validated is None


def test_the_tables_own_seed_is_refused(table, timed):
    with pytest.raises(UserError, match="seed: 0 is the table's own"):
        validate(table, KEY, 10, seed=0)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("mape>4", [Gate("mape", ">", 4.0)]),
        ("mape>4,spearman<0.97", [Gate("mape", ">", 4.0), Gate("spearman", "<", 0.97)]),
    ],
)
def test_gates_are_read(text, expected):
    assert gates(text) == expected


@pytest.mark.parametrize("text", ["mape", "mape=4", "speed>3", "mape>x", "mape>4;bias>1", "networks<3"])
def test_what_is_no_gate_is_refused(text):
    with pytest.raises(UserError, match="fail_if: .*must be FIGURE>NUMBER or FIGURE<NUMBER"):
        gates(text)


@pytest.mark.parametrize(
    "gate, figures, fails",
    [
        ("mape>4", {"mape": 0.041}, True),
        ("mape>4", {"mape": 0.039}, False),
        ("bias>4", {"bias": -0.05}, True),
        ("within_10<95", {"within_10": 0.94}, True),
        ("within_10<95", {"within_10": 0.96}, False),
        ("spearman<0.97", {"spearman": 0.96}, True),
        ("rmse_ms>0.5", {"rmse_ms": 0.4}, False),
    ],
)
def test_gates_compare_percent_with_percent(gate, figures, fails):
    assert gates(gate)[0].fails(figures) is fails


@pytest.mark.parametrize("factor, code", [(1.0, None), (1.1, 1)])
def test_the_command_exits_with_1_where_a_gate_fails(table, timed, capsys, factor, code):
    timed[0].factor = factor
    words = ["validate", "--lut", str(table.path), "--networks", "10", "--fail-if", "mape>4,spearman<0.97"]
    if code:
        with pytest.raises(SystemExit) as failed:
            main(words)
        assert failed.value.code == code and "failed: frostnet_0.5_32: mape>4, it is 9.09" in capsys.readouterr().out
    else:
        main(words)
    assert LatencyTable.load(table.path).sections[KEY].validated.figures["networks"] == 10


def test_a_size_that_was_not_measured_names_the_command(table, timed, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["validate", "--lut", str(table.path), "--input-size", "96"])
    assert refused.value.code == 2 and "--width 0.5 --input-size 96 --num-classes 10" in capsys.readouterr().err


def test_an_interrupted_validation_goes_on(table, monkeypatch):
    def stop(self, name, ms):
        add(self, name, ms)
        if sum(map(len, self.rounds.values())) == 5:
            raise KeyboardInterrupt

    add = build.Journal.add
    monkeypatch.setattr(prepare, "network", lambda arch, engine, batch: lambda: sum(range(3000 * len(arch.blocks))))
    monkeypatch.setattr(build.Journal, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        validate(table, KEY, 8, rounds=3)
    stopped = LatencyTable.load(table.path)
    fresh = stopped.sections[KEY].validated
    assert fresh.figures is None and sum(len(n.timing.rounds) for n in fresh.networks.values() if n.timing) == 5
    assert stopped.entries == table.entries

    monkeypatch.setattr(build.Journal, "add", add)
    done = validate(stopped, KEY, 8, rounds=3).sections[KEY].validated
    assert done.figures["networks"] == 8 and len(done.conditions) == 2
    for name, network in fresh.networks.items():
        kept = network.timing.rounds if network.timing else ()
        assert done.networks[name].timing.rounds[: len(kept)] == kept


def test_a_space_that_has_changed_is_refused(table, timed, monkeypatch):
    changed = replace(SPACE, stages=tuple(replace(s, min_depth=1, slots=s.slots[:1]) for s in SPACE.stages))
    monkeypatch.setitem(SPACES, "frostnet", lambda width, size, classes: changed)
    with pytest.raises(UserError, match="has changed since it was measured.*--restart"):
        validate(table, KEY, 8)
