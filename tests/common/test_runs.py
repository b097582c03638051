"""The run folder: logs that survive a kill, checkpoints that load exactly or are refused."""

import errno
import json

import pytest
import torch

import common.files
from common.errors import UserError
from common.runs import Run


def test_a_checkpoint_gives_back_every_bit(tmp_path):
    run = Run(tmp_path / "runs" / "a")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    run.save_checkpoint({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7, "phase": "qat"})
    state = run.load_checkpoint()
    assert (state["step"], state["phase"]) == (7, "qat")
    assert torch.equal(state["model"]["weight"], model.weight)
    assert torch.equal(state["optimizer"]["state"][0]["momentum_buffer"], model.weight.grad)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.save_checkpoint({"step": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(common.files.os, "fsync", full)
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot be written \(the disk is full"):
        run.save_checkpoint({"step": 2})
    assert run.load_checkpoint() == {"step": 1}


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path, keep):
    run = Run(tmp_path)
    run.save_checkpoint({"weight": torch.ones(1000)})
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[:keep])
    with pytest.raises(UserError, match=r"checkpoint\.pt: not a whole checkpoint .*; delete it to start again"):
        run.load_checkpoint()


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"format": "checkpoint", "version": 1, "state": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        Run(tmp_path).load_checkpoint()
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "foreign", [{"model": 1}, [1], torch.ones(2), {"format": "checkpoint", "version": 2, "state": {}}]
)
def test_a_foreign_checkpoint_is_refused(tmp_path, foreign):
    torch.save(foreign, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="another program or version"):
        Run(tmp_path).load_checkpoint()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint\.pt: no such file"):
        Run(tmp_path).load_checkpoint()


def test_the_log_reads_back_row_by_row(tmp_path):
    run = Run(tmp_path)
    rows = [{"step": i, "loss": 1.0 / (i + 1)} for i in range(3)]
    for row in rows:
        run.append_log(row)
    assert run.read_log() == rows


def test_a_log_that_is_not_there_is_empty(tmp_path):
    assert Run(tmp_path).read_log() == []


def test_a_loss_that_is_not_a_number_is_logged_as_null(tmp_path):
    Run(tmp_path).append_log({"loss": float("nan")})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"loss": None}


def test_a_line_cut_short_by_a_kill_costs_only_itself(tmp_path):
    run = Run(tmp_path)
    run.append_log({"step": 1})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    run.append_log({"step": 3})
    assert run.read_log() == [{"step": 1}, {"step": 3}]


def test_rewinding_drops_what_a_resumed_run_writes_again(tmp_path):
    run = Run(tmp_path)
    for row in ({"phase": "float"}, {"step": 1}, {"step": 2}, {"step": 3}):
        run.append_log(row)
    run.rewind_log(2)
    run.append_log({"step": 3, "again": True})
    assert run.read_log() == [{"phase": "float"}, {"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="this folder cannot be made"):
        Run(tmp_path / "file" / "run")


def test_a_folder_is_claimed_once_and_resumed_with_the_same_settings(tmp_path):
    run = Run(tmp_path)
    assert run.claim({"lr": 0.1, "sizes": (1, 2)}) is False
    run.save_checkpoint({"step": 1})
    assert run.claim({"lr": 0.1, "sizes": (1, 2)}) is True


def test_a_run_is_not_mixed_with_one_of_other_settings(tmp_path):
    run = Run(tmp_path)
    run.claim({"lr": 0.1, "bars": True})
    run.save_checkpoint({"step": 1})
    with pytest.raises(UserError, match="lr: 0.1 then, 0.2 now.*--restart"):
        run.claim({"lr": 0.2, "bars": True})
    assert run.claim({"lr": 0.1, "bars": False}, free=("bars",)) is True


@pytest.mark.parametrize("config", [[], 3, "text", None])
@pytest.mark.parametrize("restart", [False, True])
def test_a_config_that_is_no_object_is_named(tmp_path, config, restart):
    run = Run(tmp_path)
    run.write_json("config.json", config)
    run.save_checkpoint({"step": 1})
    with pytest.raises(UserError, match=r"config.json: .*must be an object; choose another --name"):
        run.claim({"program": "search", "lr": 0.1}, restart)
    assert run.load_checkpoint() == {"step": 1} and run.read_json("config.json") == config


def test_a_restart_drops_what_the_earlier_run_left(tmp_path):
    run = Run(tmp_path)
    run.claim({"lr": 0.1})
    run.save_checkpoint({"step": 1})
    run.append_log({"step": 1})
    run.write_json("metrics.json", {"top1": 0.9})
    assert run.claim({"lr": 0.2}, restart=True) is False
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert run.read_json("config.json") == {"lr": 0.2}


def test_json_files_live_in_the_folder(tmp_path):
    run = Run(tmp_path / "run")
    run.write_json("metrics.json", {"top1": 0.5})
    assert run.has("metrics.json") and not run.has("arch.json")
    assert run.read_json("metrics.json") == {"top1": 0.5}


@pytest.mark.parametrize("restart", [False, True])
def test_a_run_that_begins_anew_keeps_nothing_of_an_earlier_one(tmp_path, restart):
    run = Run(tmp_path / "a")
    run.claim({"program": "search", "seed": 0})
    run.save_checkpoint({})
    run.append_log({"step": 1})
    for name in ("metrics.json", "rescored.json", "arch.json", "tried/random_2.json", "pareto/a_4.json"):
        run.write_json(name, {})
    if not restart:
        (run.path / "checkpoint.pt").unlink()  # as the message about a broken one advises
    assert not run.claim({"program": "search", "seed": 7}, restart)
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json"]
