"""Studies: cells run once, in separate processes, through stops, kills and failures; hand-written text stays.

tests/benchmarks/toy_study.py is the study.
"""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.cells import Cell, Store
from benchmarks.harness import main
from benchmarks.workers import provenance
from common.errors import UserError
from common.files import read_json
from tests import ROOT
from tests.benchmarks.toy_study import PROVENANCE, Toy, started


@pytest.fixture
def flags(tmp_path):
    return ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out"), "--jobs", "2"]


@pytest.fixture
def toy(tmp_path):
    """The study that these flags make, to look at its cells."""
    return lambda **settings: Toy(runs=str(tmp_path / "runs"), output=str(tmp_path / "out"), **settings)


def record_of(study, number):
    return study.store.read(next(cell for cell in study.cells() if cell["number"] == number))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def alive(pid):
    """Whether a process still runs; one that nobody has waited for yet does not."""
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def program(flags):
    """Starts the study as a program; what still runs at the end of the test is killed."""
    begun = []

    def start(*more):
        command = [sys.executable, "-m", "tests.benchmarks.toy_study", *flags, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(command, cwd=ROOT, preexec_fn=_take_ctrl_c, **pipes))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def _take_ctrl_c() -> None:
    """Tests that run in the background of a shell inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# ---- cells and their records ----


def test_a_key_is_readable_stable_and_safe_in_file_names():
    cell = Cell("cifar10", {"network": "timm:resnet18/x", "seed": 0, "lr": 0.5, "recipe": {"epochs": 4}})
    assert cell.label == "timm:resnet18/x seed=0 lr=0.5"
    assert cell.key == "timm_resnet18_x_seed=0_lr=0.5-4d76f6b6"
    assert re.fullmatch(r"[\w.=-]+", Cell("s", {"name": "../é |\n", "note": "x" * 300}).key, re.ASCII)
    assert len(Cell("s", {"note": "x" * 300}).key) < 100


def test_a_key_tells_every_parameter_and_the_study_apart():
    same = [Cell("s", {"a": 1, "b": (2, 3)}), Cell("s", {"a": 1, "b": [2, 3]})]
    reordered = Cell("s", {"b": [2, 3], "a": 1})
    others = [Cell("s", {"a": 1, "b": [3, 2]}), Cell("t", {"a": 1, "b": [2, 3]}), Cell("s", {"a": 1})]
    assert same[0] == same[1] == reordered and same[0].key == same[1].key == reordered.key
    assert len({cell.key for cell in [same[0], *others]}) == len({same[0], *others}) == 4


def test_a_record_of_another_cell_under_the_same_name_is_refused(tmp_path):
    store, cell = Store(tmp_path), Cell("s", {"seed": 0})
    store.write(cell, {"row": {"top1": 0.5}})
    assert store.read(cell)["row"] == {"top1": 0.5}
    next((tmp_path / "cells").iterdir()).write_text('{"cell": {"study": "s", "parameters": {"seed": 1}}}')
    with pytest.raises(UserError, match="not the record of seed=0; delete it"):
        store.read(cell)


def test_the_provenance_of_a_real_study():
    found = provenance()
    assert found["machine"]["cpu"] and re.match(r"\d+\.\d+", found["machine"]["torch"])
    assert found["machine"]["threads"] == 1 and found["commit"]


# ---- end to end ----


def test_a_study_from_start_to_page(flags, toy, tmp_path, capsys):
    """Other settings are other cells in the same folder; what is done is not done again; hand-written text stays."""
    page = main(Toy, [*flags, "--numbers", "1", "2"])
    first = toy(numbers=(1, 2))
    record = record_of(first, 2)
    assert record["row"] == {"square": 4, "loss": None} and record["seconds"] >= 0
    assert {k: record[k] for k in PROVENANCE} == PROVENANCE
    assert record["cell"] == {"study": "toy", "parameters": {"number": 2, "recipe": {"offset": 0}}}
    assert "the row of number=2" in first.store.log(first.cells()[1]).read_text()
    pid, threads = started(first, 2)[0].split()
    assert threads == "1" and int(pid) != os.getpid()
    assert (first.store.folder / "prepared").exists() and (first.store.folder / "finished").exists()
    assert "| 2 | 4 |" in page.read_text()
    assert "2 of 2 cells are done\n" in capsys.readouterr().out

    page.write_text(page.read_text().replace("To be written.", "Squares grow."))
    main(Toy, [*flags, "--numbers", "2", "3", "--offset", "10"])
    assert "| 3 | 19 |" in page.read_text() and "| 2 | 4 |" not in page.read_text()
    assert page.read_text().endswith("Squares grow.\n")
    assert "2 records in" in (out := capsys.readouterr().out) and "belong to other settings and are ignored" in out

    main(Toy, [*flags, "--numbers", "1", "2"])
    assert len(started(first, 1)) == len(started(first, 2)) == 1
    assert "| 2 | 4 |" in page.read_text() and page.read_text().endswith("Squares grow.\n")


def test_list_runs_nothing(flags, toy, capsys):
    study = toy()
    study.store.write(study.cells()[0], {"row": {}, "seconds": 7.4})
    study.store.write(study.cells()[1], {"failed": {"type": "E", "message": ""}, "seconds": 1})
    assert main(Toy, [*flags, "--list"]) is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  number")[0].strip() for line in lines] == ["7 s", "failed", "not done"]
    assert lines[2].endswith(study.cells()[2].key)
    assert not (study.store.folder / "prepared").exists()


def test_page_only_reads_the_json_where_the_runs_are_gone(flags, toy, tmp_path):
    study = toy()
    study.store.write(study.cells()[2], {"row": {"square": 9}, "seconds": 1})
    page = main(Toy, [*flags, "--page-only", "--data-root", "secret"])
    before = page.read_text()
    assert "| 3 | 9 |" in before
    result = read_json(tmp_path / "out" / "toy.json")
    assert result["planned"] == 3
    assert result["command"] == "python -m benchmarks.studies.toy --data-root FOLDER"
    page.unlink()
    assert main(Toy, ["--runs", str(tmp_path / "gone"), *flags[2:], "--page-only"]).read_text() == before


def test_smoke_writes_to_a_separate_folder(flags, tmp_path):
    page = main(Toy, [*flags, "--smoke"])
    assert page == tmp_path / "runs" / "toy_smoke" / "toy.md" and "| 1 | 2 |" in page.read_text()
    assert not (tmp_path / "out").exists()


def test_jobs_are_checked(flags, capsys):
    with pytest.raises(SystemExit):
        main(Toy, [*flags, "--jobs", "0"])
    assert "jobs: 0, must be a whole number" in capsys.readouterr().err


# ---- failures ----


def test_a_failed_cell_is_a_record_that_retry_failed_runs_anew(flags, toy, capsys):
    study, four = toy(numbers=(1, 2, 3, 4)), ["--numbers", "1,2,3,4", "--behave"]
    page = main(Toy, [*flags, *four, "1:crash", "2:kill", "3:exit"])
    failures = [record_of(study, n)["failed"] for n in (1, 2, 3)]
    assert failures[0] == {"type": "ValueError", "message": "first line"}
    assert failures[1]["type"] == "Died" and failures[1]["message"].startswith("killed by SIGKILL, perhaps")
    assert failures[2] == {"type": "UserError", "message": "lr: 0, must be positive"}
    assert "ValueError: first line" in study.store.log(study.cells()[0]).read_text()
    assert page.read_text().count("\n| ") == 3  # header, rule, number 4
    out = capsys.readouterr().out
    assert "number=1: failed, ValueError: first line; see " in out
    assert "4 of 4 cells are done; 3 failed, --retry-failed runs them anew" in out

    main(Toy, [*flags, *four, "2:kill"])
    assert len(started(study, 1)) == 1  # not without the flag
    main(Toy, [*flags, *four, "2:kill", "--retry-failed"])
    assert [len(started(study, n)) for n in (1, 2, 3, 4)] == [2, 2, 2, 1]
    assert record_of(study, 1)["row"]["square"] == 1 and "failed" in record_of(study, 2)


def test_a_cell_starts_only_after_the_one_that_it_needs(flags, toy, capsys):
    study = toy(chain=True)
    main(Toy, [*flags, "--chain", "--behave", "2:crash"])
    assert [len(started(study, n)) for n in (1, 2, 3)] == [1, 1, 0]
    assert "2 of 3 cells are done; 1 failed" in capsys.readouterr().out
    main(Toy, [*flags, "--chain", "--retry-failed"])
    assert [len(started(study, n)) for n in (1, 2, 3)] == [1, 2, 1]


# ---- budget, stops, kills, two at a time ----


def test_no_cell_starts_after_the_budget(flags, toy, capsys):
    assert main(Toy, [*flags, "--minutes", "0"]) is None
    assert "0 of 3 cells are done" in capsys.readouterr().out
    assert not (toy().store.folder / "finished").exists()


def test_the_budget_lets_running_cells_end(program, toy):
    study = toy()
    process = program("--minutes", "0.02", "--behave", "1:wait", "2:wait")
    wait_until(lambda: started(study, 1) and started(study, 2))
    time.sleep(1.3)  # beyond the budget
    (study.store.folder / "go_on").touch()
    out, _ = process.communicate(timeout=60)
    assert "2 of 3 cells are done" in out
    assert record_of(study, 3) is None


def test_ctrl_c_ends_the_cells_and_keeps_what_is_done(program, flags, toy):
    study = toy()
    process = program("--behave", "1:square", "2:wait", "3:wait")
    wait_until(lambda: started(study, 2) and started(study, 3))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    behave = "--behave 1:square 2:wait 3:wait"
    expected = f"stopped; resume with: python -m tests.benchmarks.toy_study {' '.join(flags)} {behave}"
    assert err.splitlines()[-1] == expected
    assert not any(alive(line.split()[0]) for n in (2, 3) for line in started(study, n))
    assert record_of(study, 1)["row"]["square"] == 1
    assert record_of(study, 2) is None and record_of(study, 3) is None


def test_kill_9_of_the_study_ends_its_cells_and_the_next_start_computes_the_rest(program, flags, toy):
    study = toy()
    process = program("--behave", "2:wait", "3:wait")
    wait_until(lambda: started(study, 2) and started(study, 3))
    with pytest.raises(SystemExit) as refused:  # meanwhile nobody else may compute the same cells
        main(Toy, flags)
    assert refused.value.code == 2
    process.kill()
    wait_until(lambda: not any(alive(line.split()[0]) for n in (2, 3) for line in started(study, n)), 10)
    page = main(Toy, flags)
    assert [len(started(study, n)) for n in (1, 2, 3)] == [1, 2, 2]
    assert all(f"| {n} | {n * n} |" in page.read_text() for n in (1, 2, 3))
    assert not list(study.store.folder.glob("cells/.*"))


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path):
    store = Store(tmp_path / "study")
    with store.locked():
        with pytest.raises(UserError, match=rf"study: in use by another run \(process {os.getpid()}\)"):
            with store.locked():
                pass
    with store.locked():
        pass
