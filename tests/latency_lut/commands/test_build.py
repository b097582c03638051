"""build: the command line, restarts, and the commands that errors advise."""

import shlex
from dataclasses import replace

import pytest

from common.cli import parse
from common.files import read_json
from latency_lut import LatencyTable
from latency_lut.__main__ import main
from latency_lut.build import build_section
from latency_lut.commands.build import BuildConfig, without
from latency_lut.sections import CALL
from nas import SPACES
from tests.latency_lut.small import ENGINE, small_space
from tests.latency_lut.tables import SECTION, made_up


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch):
    """Several threads may be asked for, whatever the machine."""
    monkeypatch.setattr("latency_lut.commands.build.cpu_count", lambda: 4)


@pytest.fixture
def small(monkeypatch):
    """The command line on the small space, with few rounds."""
    monkeypatch.setitem(SPACES, "frostnet", lambda width, size, num_classes: small_space(size, num_classes))
    monkeypatch.setattr("latency_lut.commands.build.build_section", lambda *a: build_section(*a, rounds=3))


def run(tmp_path, *words):
    return main(["--engine", ENGINE, "--output", str(tmp_path / "lut.json"), "--networks", "24", *words])


def test_the_command_measures_several_sizes_with_their_heads(tmp_path, fakes, small, capsys):
    table = run(tmp_path, "--input-size", "16", "72")
    assert (
        table.sections["frostnet_0.35_16"].num_classes == 10 and table.sections["frostnet_0.35_72"].num_classes == 1000
    )
    assert "held" not in capsys.readouterr().err
    assert LatencyTable.load(tmp_path / "lut.json") == table


def test_restart_forgets_the_sections_that_it_names_and_no_others(tmp_path, fakes, small):
    before = run(tmp_path, "--input-size", "16", "24", "--num-classes", "10", "100")
    fakes.clear()
    after = run(tmp_path, "--input-size", "24", "--restart")
    assert set(after.sections) == {"frostnet_0.35_16", "frostnet_0.35_24"} and not any(
        name.endswith("@16") for name in fakes
    )
    kept, anew = after.sections["frostnet_0.35_16"], after.sections["frostnet_0.35_24"]
    assert (kept.networks, kept.parts) == (
        before.sections["frostnet_0.35_16"].networks,
        before.sections["frostnet_0.35_16"].parts,
    )
    shared = {CALL, *kept.needed()}
    assert all(after.entries[key].rounds[:3] == before.entries[key].rounds[:3] for key in shared)
    own = anew.needed() - shared
    assert own and all(after.entries[key].rounds != before.entries[key].rounds for key in own)
    assert "head_relu_24-32-100@4" in after.entries and "head_relu_24-32-100@6" not in after.entries


@pytest.mark.parametrize(
    "words, message",
    [
        (["--space", "no_module:make"], "no_module"),
        (["--input-size", "24", "--width", "9"], "width: 9"),
        (["--input-size", "24", "--num-classes", "0"], "num_classes"),
    ],
)
def test_a_restart_that_cannot_be_leaves_the_table_as_it_is(tmp_path, fakes, words, message, capsys):
    made_up(tmp_path / "lut.json").save()
    before = (tmp_path / "lut.json").read_bytes()
    with pytest.raises(SystemExit) as refused:
        run(tmp_path, *words, "--restart")
    assert refused.value.code == 2 and message in capsys.readouterr().err
    assert (tmp_path / "lut.json").read_bytes() == before


@pytest.mark.parametrize(
    "text", ['{"format": "architecture", "version": 1}', "[]", "dear notes", '{"format": "latency_lut", "version": 1}']
)
def test_a_restart_does_not_write_over_another_file(tmp_path, fakes, small, text, capsys):
    (tmp_path / "lut.json").write_text(text)
    with pytest.raises(SystemExit) as refused:
        run(tmp_path, "--input-size", "16", "--restart")
    assert refused.value.code == 2 and "lut.json: " in capsys.readouterr().err
    assert (tmp_path / "lut.json").read_text() == text


def test_a_restart_on_another_machine_must_name_all_sections(tmp_path, fakes, small, capsys):
    table = run(tmp_path, "--input-size", "16", "24")
    replace(table, meta={**table.meta, "cpu": "Other"}).save()
    with pytest.raises(SystemExit):
        run(tmp_path, "--input-size", "24", "--restart")
    said = capsys.readouterr().err
    assert (
        "cpu: the table was measured with Other" in said
        and "forget frostnet_0.35_16, too; measure into another file" in said
    )
    assert LatencyTable.load(tmp_path / "lut.json").meta["cpu"] == "Other"
    again = run(tmp_path, "--input-size", "16", "24", "--restart")
    assert again.meta["cpu"] == table.meta["cpu"] and set(again.sections) == set(table.sections)
    assert "--restart" not in again.meta["command"]


def test_ctrl_c_exits_with_130_and_the_command_that_goes_on(tmp_path, fakes, small, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("latency_lut.commands.build.build_section", stop)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--restart")
    said = capsys.readouterr().err
    assert stopped.value.code == 130 and "stopped; resume with:" in said and "--restart" not in said


@pytest.mark.parametrize(
    "words, message",
    [
        (["--networks", "5"], "networks: 5, must be a number from 24 to 1000"),
        (["--threads", "0"], "threads: 0, must be a number from 1"),
        (["--threads", "5"], "threads: 5, but this process may use 4 CPUs"),
        (["--input-size", "8"], "input_size: 8, must be a number from 16 to 1024"),
        (["--num-classes", "0"], "num_classes: 0"),
        (["--width", "9"], "width: 9.0"),
    ],
)
def test_impossible_wishes_exit_with_2_and_name_the_field(tmp_path, words, message, capsys):
    with pytest.raises(SystemExit) as refused:
        run(tmp_path, *words)
    assert refused.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "lut.json").exists()


def test_a_table_of_another_thread_count_is_not_added_to(tmp_path, fakes, small, capsys):
    run(tmp_path, "--input-size", "16")
    before = read_json(tmp_path / "lut.json")
    with pytest.raises(SystemExit):
        run(tmp_path, "--input-size", "24", "--threads", "2")
    assert "threads: the table was measured with 1, wanted is 2" in capsys.readouterr().err
    assert read_json(tmp_path / "lut.json") == before


def test_a_broken_table_is_refused_and_left_as_it_is(tmp_path, small, capsys):
    (tmp_path / "lut.json").write_text('{"format": "latency_lut"')
    with pytest.raises(SystemExit):
        run(tmp_path, "--input-size", "16")
    assert "lut.json: not a whole JSON file" in capsys.readouterr().err
    assert (tmp_path / "lut.json").read_text() == '{"format": "latency_lut"'


def test_what_a_section_shares_with_one_that_stays_is_kept(tables):
    """A second space of fewer blocks: of the first only what it alone rests on is forgotten."""
    table, section = tables[0], tables[0].sections[SECTION]
    some = dict(list(section.networks.items())[:1])
    other = replace(section, space="other", networks=some, parts=some["random_00"].parts[:-1], validated=None)
    both = table.with_section(other)
    left = without(both, [SECTION], replace(table, entries={}, sections={}))
    assert left.sections == {other.key: other} and left.entries.keys() == {CALL, *other.needed()}
    assert left.entries.keys() < both.entries.keys()
    assert without(both, [other.key], table).entries == both.entries  # the first needs all of it


def test_the_command_that_is_advised_can_be_typed(tables):
    """The command in an error parses to the very space, engine, threads and batch that were missing."""
    other = replace(tables[0], meta={**tables[0].meta, "threads": 2, "batch": 4})
    words = shlex.split(other.advice.measure("frostnet", 0.75, 96, 7))
    assert words[:3] == ["python", "-m", "latency_lut"]
    config = parse(BuildConfig, words[3:], "latency_lut", "")
    assert (config.width, config.input_size, config.class_counts(96), config.threads, config.batch) == (
        0.75,
        (96,),
        (7,),
        2,
        4,
    )
    assert config.output == str(tables[0].path)
