"""Ranks that a program starts itself: how many, what they share, and how they end together."""

import json
import multiprocessing

import pytest
import torch

from common import distributed, launch
from common.errors import UserError
from common.launch import process_count
from common.runs import Run
from tests.common.rank_program import main


@pytest.fixture
def cpus(monkeypatch):
    """Sets the number of CPUs that may be used."""
    return lambda count: monkeypatch.setattr(launch, "cpu_count", lambda: count)


def files(path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(path.glob("rank_*"))]


# ---- how many ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "available, batch_size, expected",
    [(1, 64, 1), (2, 64, 2), (3, 64, 2), (16, 64, 16), (6, 66, 6), (4, 10, 2), (2, 8, 2), (2, 7, 1), (8, 2, 1)],
)
def test_by_default_there_is_a_rank_for_each_cpu_that_divides_the_batch(cpus, available, batch_size, expected):
    cpus(available)
    assert process_count(None, batch_size) == expected


def test_an_asked_for_number_must_divide_the_batch(cpus):
    cpus(1)
    assert process_count(4, 64) == 4  # more than the CPUs: as the user says
    with pytest.raises(UserError, match="batch_size: 64, must be a multiple of the 3 processes"):
        process_count(3, 64)
    with pytest.raises(UserError, match="processes: 0, must be at least 1"):
        process_count(0, 64)


def test_a_run_goes_on_with_the_number_that_began_it(cpus, tmp_path):
    cpus(2)
    run = Run(tmp_path)
    assert process_count(None, 64, tmp_path) == 2
    run.save_checkpoint({"step": 1, "ranks": 4})
    assert process_count(None, 64, tmp_path) == process_count(4, 64, tmp_path) == 4
    with pytest.raises(UserError, match="was begun by 4, and these are 2; add --processes 4"):
        process_count(2, 64, tmp_path)
    for odd in (0, "4", None, True):
        run.save_checkpoint({"ranks": odd})
        assert process_count(None, 64, tmp_path) == 2
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    assert process_count(None, 64, tmp_path) == 2


def test_a_run_whose_batch_size_was_of_each_rank_is_not_continued(cpus, tmp_path):
    """The same flags would train on other batches, without an error."""
    run = Run(tmp_path)
    run.save_checkpoint({"ranks": 2})
    run.write_json("config.json", {"program": "retrain", "batch_size": 64})
    with pytest.raises(UserError, match="images of each of 2 processes; start over with --restart"):
        process_count(None, 64, tmp_path)
    run.write_json("config.json", {"program": "retrain", "batch_size": 64, "processes": 2})
    assert process_count(None, 64, tmp_path) == 2
    run.save_checkpoint({"ranks": 1})
    run.write_json("config.json", {"program": "retrain", "batch_size": 64})  # one rank: both mean the same
    assert process_count(None, 64, tmp_path) == 1


def test_torchruns_number_holds(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    assert process_count(None, 64) == process_count(4, 64) == 4
    with pytest.raises(UserError, match="processes: 2, but torchrun started 4"):
        process_count(2, 64)


# ---- what they do ------------------------------------------------------------------------------------------


def test_one_rank_starts_no_process_and_keeps_to_its_cpus(tmp_path, cpus):
    cpus(1)
    before = torch.get_num_threads()
    assert main([str(tmp_path), "fine", "1"]) == 1
    (found,) = files(tmp_path)
    assert found["threads"] == 1 and found["sum"] == 1 and found["each"] == [[5, 0], [6, 0], [7, 0]]
    assert torch.get_num_threads() == before and not multiprocessing.active_children()


def test_two_ranks_divide_work_and_hold_data_once(tmp_path, capfd):
    assert main([str(tmp_path), "fine", "2"]) == 1  # rank 0 goes on alone
    first, second = files(tmp_path)
    assert (first["rank"], second["rank"]) == (0, 1) and first["threads"] == second["threads"] == 1
    assert second["environment"] == "1" and first["sum"] == second["sum"] == 3
    assert first["each"] == second["each"] == [[5, 0], [6, 1], [7, 0]]
    total = 100_000 * 99_999 // 2
    assert first["data"] == second["data"] == [total, [2, 50_000], [1.0] * 3, ["a", "b"]]  # one writes, the other reads
    assert (tmp_path / "made").read_text() == "0\n"
    assert not multiprocessing.active_children() and not distributed.dist.is_initialized()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("case, message", [("mistake", "error: field: 7, must be 8\n"), ("kill", "another process")])
def test_what_ends_one_rank_ends_all_and_is_reported_once(tmp_path, capfd, case, message):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), case, "2"])
    said = capfd.readouterr().err
    assert end.value.code == 2 and said.count("error:") == 1 and message in said and "Traceback" not in said
    assert not multiprocessing.active_children() and not distributed.dist.is_initialized() and not files(tmp_path)
    assert main([str(tmp_path), "fine", "1"]) == 1  # and nothing is left behind


def test_a_process_that_does_not_start_is_reported(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(launch, "_rank", len)  # fails at once: it takes no five arguments
    with pytest.raises(SystemExit):
        main([str(tmp_path), "fine", "2"])
    assert "error: processes: one of 2 ended with exit code 1; add --processes 1" in capfd.readouterr().err
