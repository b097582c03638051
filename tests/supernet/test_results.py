"""supernet.results: the files of a finished search."""

from nas import bottleneck_space
from supernet.finalists import Finalist
from supernet.results import describe, row, shared_block
from tests.supernet.tiny_search import SPACE


def test_a_space_is_described_by_the_labels_of_its_candidates():
    described = describe(SPACE)
    assert (described["name"], described["tied"]) == ("tiny", False)
    assert described["stages"][1] == {"min_depth": 1, "slots": [["mb k3 e2", "mb k3 e4", "mb k5 e2"]] * 2}


def test_the_block_of_a_tied_network_is_that_of_the_widest_slot():
    """Narrow slots of the bottleneck space hold plain blocks, where a squeeze has no room."""
    space = bottleneck_space(0.35, 32, 10)
    candidate = space.tied_count - 1
    zeros = [[0] * len(stage.slots) for stage in space.stages]
    choice = space.with_candidate(space.choice(tuple(stage.min_depth for stage in space.stages), zeros), candidate)
    network = Finalist("derived_1", "derived", choice, 1.0, 0.0)
    block = shared_block(space, network)
    assert (block.op, block.kernel_size, block.activation) == ("frost", 5, "hard_swish")
    assert row(space, network)["block"] == "frost k5 e3 r4 hard_swish" and "choice" not in row(space, network)
