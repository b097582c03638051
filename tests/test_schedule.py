"""quant.schedule: which phase an epoch is in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant import QuantError, Schedule, phase_at


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0.05, 1.0), st.floats(0.0, 1.0))
def test_phases_follow_one_another_and_never_return(epochs, float_epochs, observer_freeze, more):
    float_epochs = min(float_epochs, epochs)
    schedule = Schedule(epochs, float_epochs, observer_freeze, observer_freeze + more * (1 - observer_freeze))
    phases = [phase_at(schedule, e) for e in range(epochs)]
    order = ["float", "qat", "freeze_observers", "freeze_bn"]
    ranks = [order.index(p.name) for p in phases]
    assert ranks == sorted(ranks)
    assert sum(p.name == "float" for p in phases) == float_epochs
    assert [p.progress for p in phases] == sorted(p.progress for p in phases)
    assert all(0.0 <= p.progress < 1.0 for p in phases)
    assert all(p.fake_quant == (p.name != "float") for p in phases)


@pytest.mark.parametrize("quantized", [2, 3, 4, 10])
def test_the_last_of_several_quantized_epochs_is_frozen(quantized):
    assert phase_at(Schedule(1 + quantized, 1), quantized).name == "freeze_bn"
    assert not phase_at(Schedule(1 + quantized, 1, 1.0, 1.0), quantized).bn_frozen


def test_the_first_quantized_epoch_observes_even_in_a_short_run():
    assert phase_at(Schedule(2, 1, 0.1, 0.2), 1).observe


@pytest.mark.parametrize(
    ("values", "field"),
    [({"epochs": 0}, "epochs"), ({"epochs": 3, "float_epochs": 4}, "float_epochs"), ({"epochs": 3, "observer_freeze": 0.0}, "freeze")],
)
def test_impossible_schedules_are_named(values, field):
    with pytest.raises(QuantError, match=field):
        Schedule(**values)
