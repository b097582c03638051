"""supernet.selection: which finalist is chosen."""

from supernet.finalists import Finalist
from supernet.selection import slowest_of_the_best


def test_of_equally_accurate_networks_the_slowest_is_chosen():
    networks = [
        Finalist(n, "derived", None, ms, 0.0, None, accuracy, ms)
        for n, ms, accuracy in (("a", 1.0, 0.52), ("b", 1.3, 0.51), ("c", 1.5, 0.40))
    ]
    assert slowest_of_the_best(networks, image_count=400).name == "b"  # one standard error is 0.025
    assert slowest_of_the_best(networks, image_count=10**6).name == "a"
