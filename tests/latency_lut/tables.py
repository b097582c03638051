"""Made-up latency tables. Nothing is timed."""

from dataclasses import replace

import torch

from latency_lut import LatencyTable
from latency_lut.fitting import calibrate
from latency_lut.sections import CALL, Network, Section, Validated, parts
from latency_lut.timing import Timing
from nas import cost, frostnet_space

SPACE = frostnet_space(0.5, 32, 10)
CALL_MS = 0.004
SECTION = "frostnet_0.5_32"
OTHERWISE = {
    "cpu": "Other",
    "flags": ["avx"],
    "torch": "1.0",
    "runtime": "none 1",
    "weight_qmax": 127,
    "batch": 8,
    "memory_format": "contiguous",
}


def made_up(path, space=SPACE, ratio=1.25):
    """A complete table of `space`: a part takes its MACs in ns, a network `ratio` times the sum less the calls."""
    generator = torch.Generator().manual_seed(0)
    archs, others = (
        {f"random_{i:02}": space.architecture(space.random(generator)) for i in range(9)} for _ in range(2)
    )
    entries = {CALL: Timing((CALL_MS,) * 3)}
    for arch in [*archs.values(), *others.values(), *covering(space)]:
        for key, row in zip(parts(arch).values(), cost(arch).rows, strict=True):
            entries[key] = Timing((row.macs / 1e6 + 0.02, row.macs / 1e6 + 0.01, row.macs / 1e6 + 0.03))
    networks, fresh = ({name: timed(arch, entries, ratio) for name, arch in named.items()} for named in (archs, others))
    ms = {key: timing.ms for key, timing in entries.items()}
    fitted, names, validation = calibrate(ms, {name: (n.parts, n.timing.ms) for name, n in networks.items()}, CALL_MS)
    keys = tuple(key for key in space.specs() if not key.startswith("head"))
    conditions = ({"date": "2026-01-01 00:00:00", "seconds": 1.0, "load": 0.5, "steal": None},)
    section = Section(
        space.name,
        space.width,
        space.input_size,
        space.head.num_classes,
        space.hash(),
        keys,
        0,
        networks,
        fitted,
        tuple(names),
        validation,
        conditions,
        Validated(1, fresh, validation, conditions),
    )
    return replace(LatencyTable.new("fbgemm", 1, path), entries=entries).with_section(section)


def timed(arch, entries, ratio):
    keys = tuple(parts(arch).values())
    total = sum(entries[key].ms for key in keys) - (len(keys) - 1) * CALL_MS
    return Network(keys, Timing((ratio * total,) * 3))


def covering(space):
    """Networks that hold every candidate of every slot."""
    most = max(len(slot.candidates) for stage in space.stages for slot in stage.slots)
    for op in range(most):
        blocks = tuple(
            slot.candidates[min(op, len(slot.candidates) - 1)] for stage in space.stages for slot in stage.slots
        )
        yield replace(space.architecture(space.random(torch.Generator().manual_seed(0))), blocks=blocks)


def random_arch(seed, space=SPACE):
    return space.architecture(space.random(torch.Generator().manual_seed(seed)), f"net_{seed}")
