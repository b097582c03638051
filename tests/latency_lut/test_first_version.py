"""Tables and benchmarks that the first published version wrote: they load, mean the same and are saved as they were.

tests/fixtures/first_version/ holds these files, and as .txt what that version printed of them.
"""

import json
import shutil

import pytest
import torch

from common.files import read_json, write_json
from latency_lut import LatencyTable
from latency_lut.__main__ import main
from latency_lut.bench import report
from latency_lut.bench.results import Results
from latency_lut.build import sample_networks
from latency_lut.commands.show import space_of
from latency_lut.commands.validate import validate
from latency_lut.fitting import refitted
from latency_lut.sections import parts
from tests import ROOT
from tests.spaces import searchable

FILES = ROOT / "tests" / "fixtures" / "first_version"
TABLES = ("table", "frostnet")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A copy of the files, as the current folder."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys) -> str:
    """What was printed, but for the note on another machine."""
    lines = capsys.readouterr().out.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("note: this is not the machine"))


def expected(name: str) -> str:
    return (FILES / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_saved_as_it_was(name):
    LatencyTable.load(f"{name}.json").save()
    with open(f"{name}.json", "rb") as file:
        assert file.read() == (FILES / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", TABLES)
def test_ratios_and_errors_follow_from_the_rounds(name):
    table = LatencyTable.load(f"{name}.json")
    for section in table.sections.values():
        again = refitted(table, section)
        assert (again.ratio, again.fitted_on) == (pytest.approx(section.ratio, rel=1e-12), section.fitted_on)
        assert again.validation == pytest.approx(section.validation, rel=1e-12)
        if section.validated:
            assert again.validated.figures == pytest.approx(section.validated.figures, rel=1e-12)


@pytest.mark.parametrize("name", TABLES)
def test_seeds_draw_the_networks_of_the_table(name):
    """So that an interrupted measurement goes on."""
    table = LatencyTable.load(f"{name}.json")
    for key, section in table.sections.items():
        archs = sample_networks(space_of(table, key), len(section.networks), section.seed)
        drawn = {name: tuple(parts(arch).values()) for name, arch in archs.items()}
        assert drawn == {name: network.parts for name, network in section.networks.items()}


def test_a_validated_table_is_not_timed_again():
    table = LatencyTable.load("table.json")
    (key,) = table.sections
    assert validate(table, key, len(table.sections[key].validated.networks)) == table


@pytest.mark.parametrize("name", TABLES)
def test_show_prints_what_it_printed(name, capsys):
    main(["show", "--lut", f"{name}.json"])
    assert printed(capsys) == expected(f"show_{name}")


def test_predict_prints_what_it_printed(capsys):
    space = searchable(1.0, 16, 10)
    space.architecture(space.random(torch.Generator().manual_seed(0)), "net").save("net.json")
    main(["predict", "--lut", "table.json", "--arch", "net.json"])
    assert printed(capsys) == expected("predict")


def test_diff_prints_what_it_printed(folder, capsys):
    data = read_json("table.json")
    for number, entry in enumerate(data["entries"].values()):
        entry["rounds"] = [ms * (1 + number / 8) for ms in entry["rounds"]]
        best, _, third = sorted(entry["rounds"])[:3]
        entry["ms"], entry["rel_spread"] = best, third / best - 1
    write_json("other.json", data)
    main(["diff", "--lut", "table.json", "other.json", "--top", "3"])
    assert printed(capsys) == expected("diff")


def test_a_benchmark_prints_what_it_printed_and_is_saved_as_it_was():
    results = Results.open("bench", any_machine=True)
    assert "".join(report.text(result) + "\n" for result in results.results) == expected("bench")
    results.save()
    with open("bench.json", "rb") as file:
        assert file.read() == (FILES / "bench.json").read_bytes()


def test_a_benchmark_that_knows_fewer_runtimes_is_read():
    """Engines were added since; their runtimes measured none of its results."""
    data = read_json("bench.json")
    del data["meta"]["openvino"]
    with open("bench.json", "w") as file:
        json.dump(data, file)
    assert Results.open("bench", any_machine=True).results == data["results"]
