"""supernet.plan: phases and schedules as functions of the step."""

import pytest

from supernet import Plan

PLAN = Plan(2, 3, 4, 10, lr=1.0, temperature=(2.0, 0.5), entropy=0.1)


def test_every_step_belongs_to_a_phase():
    phases = [PLAN.phase(step) for step in range(PLAN.steps)]
    assert phases == ["base"] * 2 + ["float"] * 3 + ["quant"] * 4 + ["joint"] * 10


def test_progress_runs_from_0_to_1():
    assert [PLAN.quant_progress(step) for step in (0, 5, 12, 19)] == [0.0, 0.0, 0.5, 1.0]
    assert [PLAN.joint_progress(step) for step in (0, 9, 14, 19)] == [0.0, 0.0, 0.5, 1.0]


def test_the_learning_rate_warms_up_and_falls_to_nearly_0():
    rates = [Plan(0, 0, 0, 100, lr=1.0).learning_rate(step) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3]) and rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_temperature_falls_exponentially_and_the_entropy_changes_sign():
    assert [PLAN.temperature_at(step) for step in (9, 14, 19)] == pytest.approx([2.0, 1.0, 0.5])
    assert [PLAN.entropy_weight(step) for step in (9, 14, 19)] == pytest.approx([-0.1, 0.0, 0.1])
