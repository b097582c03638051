"""benchmarks/gradboost_step.py: ratios of medians of interleaved training steps."""

import json

import pytest
import torch

from benchmarks import gradboost_step


def test_the_benchmark_reports_ratios_of_medians(monkeypatch, capsys):
    seconds = {"bare": (0.010, 0.002), "boosting": (0.010, 0.003), "gathering": (0.010, 0.0025)}
    monkeypatch.setattr(gradboost_step, "kinds", lambda *_: {k: lambda k=k: seconds[k[2] or k[1]] for k in KINDS})
    threads = torch.get_num_threads()
    found = gradboost_step.main(
        ["--nets", "mobilenet_v2_0_5", "--threads", "1", "--optimizers", "sgd", "--rounds", "2"]
    )
    expected = {
        "overhead_of_optimizer_step": 0.5,
        "overhead_of_training_step": 0.0833,
        "gathering_overhead_of_optimizer_step": 0.25,
    }
    assert found["mobilenet_v2_0_5, cpu, 1 thread, paper"] == {"sgd": expected}
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert torch.get_num_threads() == threads


def test_the_benchmark_times_training_steps_of_each_kind():
    config = gradboost_step.BoostConfig(optimizers=("sgd",))
    steps = gradboost_step.kinds(config, "mobilenet_v2_0_5", "cpu")
    assert list(steps) == KINDS
    assert all(seconds > 0 for step in steps.values() for seconds in step())


def test_the_benchmark_names_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        gradboost_step.main(["--optimizers", "lion"])
    assert "optimizers: 'lion' is not one of sgd, adamw" in capsys.readouterr().err


KINDS = [("sgd", "bare", ""), ("sgd", "paper", "boosting"), ("sgd", "paper", "gathering")]
