"""quant.training.statassist: which phase an epoch is in."""

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


@given(st.integers(1, 30), st.integers(0, 5), st.lists(st.integers(1, 8), min_size=1, max_size=6), st.floats(0.05, 1.0))
def test_widths_share_the_quantized_epochs_and_ranges_freeze_in_the_last_ones_share(
    quantized, float_epochs, widths, freeze
):
    widths = tuple(widths[:quantized])
    schedule = Schedule(float_epochs + quantized, float_epochs, freeze, freeze, widths)
    phases = [phase_at(schedule, e) for e in range(schedule.epochs)]
    assert all(p.bits is None for p in phases[:float_epochs])
    bits = [p.bits for p in phases[float_epochs:]]
    ends = [-(-(k + 1) * quantized // len(widths)) for k in range(len(widths))]
    starts = [0, *ends[:-1]]
    assert bits == [w for w, a, b in zip(widths, starts, ends, strict=True) for _ in range(b - a)]
    assert max(b - a for a, b in zip(starts, ends)) - min(b - a for a, b in zip(starts, ends)) <= 1
    assert all(p.name == "qat" for p in phases[float_epochs : float_epochs + starts[-1]])
    alone = Schedule(quantized - starts[-1], 0, freeze, freeze)  # the last share freezes as a run of its own would
    assert [p.name for p in phases[float_epochs + starts[-1] :]] == [
        phase_at(alone, e).name for e in range(alone.epochs)
    ]
    assert [p.progress for p in phases[float_epochs:]] == [e / quantized for e in range(quantized)]


def test_progressive_widths_by_hand():
    phases = [phase_at(Schedule(9, 1, bits=(5, 4, 3, 2)), e) for e in range(9)]
    assert [p.bits for p in phases] == [None, 5, 5, 4, 4, 3, 3, 2, 2]
    assert [p.name for p in phases] == ["float", *["qat"] * 7, "freeze_bn"]
    assert phase_at(Schedule(3, 1), 2).bits is None


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 3, "float_epochs": 4}, "float_epochs"),
        ({"epochs": 3, "observer_freeze": 0.0}, "freeze"),
        ({"epochs": 9, "bits": (4, 9)}, r"bits: \(4, 9\).*1 to 8"),
        ({"epochs": 9, "bits": (0,)}, "bits"),
        ({"epochs": 9, "bits": (2.5,)}, "bits"),
        ({"epochs": 4, "bits": (5, 4, 3, 2)}, "bits: 4 widths need as many quantized epochs, there are 3"),
    ],
)
def test_impossible_schedules_are_named(values, field):
    with pytest.raises(QuantError, match=field):
        Schedule(**values)
