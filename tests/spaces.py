"""Small search spaces and latencies for tests."""

from types import SimpleNamespace

from nas.arch import BlockSpec, HeadSpec, StemSpec
from nas.space import SearchSpace, Slot, Stage


def tiny_space(input_size: int = 16, num_classes: int = 4) -> SearchSpace:
    """A fixed block, then two stages of two slots with three candidates each."""

    def candidates(before: int, out: int, stride: int) -> tuple[BlockSpec, ...]:
        return tuple(BlockSpec("mb", k, before, out, stride, e, 0, "relu") for k, e in ((3, 2), (3, 4), (5, 2)))

    stem = StemSpec(3, 8, 3, 1, "relu")
    fixed = Stage((Slot((BlockSpec("mb", 3, 8, 8, 1, 1, 0, "relu"),)),), 1)
    stages = [Stage((Slot(candidates(a, b, 2)), Slot(candidates(b, b, 1))), 1) for a, b in ((8, 16), (16, 24))]
    return SearchSpace("tiny", 1.0, input_size, stem, (fixed, *stages), HeadSpec(24, 32, num_classes, 0.2, "relu"))


def latency_of(space: SearchSpace, stem: float = 0.1, head: float = 0.2) -> SimpleNamespace:
    """Milliseconds that grow with the candidate's index."""
    blocks = [[[0.1 * (1 + i) for i in range(len(slot.candidates))] for slot in stage.slots] for stage in space.stages]
    return SimpleNamespace(stem_ms=stem, head_ms=head, blocks=blocks)


def searchable(width: float, input_size: int, num_classes: int) -> SearchSpace:
    """`tiny_space` for command lines: --space tests.spaces:searchable."""
    return tiny_space(input_size, num_classes)
