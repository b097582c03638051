"""supernet.health: warnings about a finished search."""

import pytest

from supernet.health import warnings

HEALTHY = {"entropy": 0.5, "cheapest_share": 0.2, "mixed_top1": 0.6, "derived_top1": 0.58}


def test_a_healthy_search_has_no_warnings():
    assert warnings(HEALTHY, has_room=True) == []


@pytest.mark.parametrize(
    "change, message, flag",
    [
        ({"entropy": 0.99}, "hardly moved", "--joint-steps"),
        ({"cheapest_share": 0.9}, "collapse: 90%", "--float-steps"),
        ({"derived_top1": 0.3}, "30% below", "--joint-steps"),
    ],
)
def test_every_figure_out_of_bounds_is_one_warning_with_a_flag(change, message, flag):
    (warning,) = warnings(HEALTHY | change, has_room=True)
    assert message in warning and flag in warning


def test_a_target_near_the_fastest_network_may_choose_the_fastest_candidates():
    assert warnings(HEALTHY | {"cheapest_share": 0.9}, has_room=False) == []
