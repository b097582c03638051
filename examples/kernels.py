"""A space of one's own: only the kernel sizes and the depths are searched, in narrow stages.

    python -m latency_lut --engine fbgemm --space examples.kernels:kernels --input-size 32 --output kernels.json
    python search.py --latency-lut kernels.json --space examples.kernels:kernels --target-ms 0.5 --name kernels

Latency table and search name it by module and function. What a space must keep to stands in docs/search.md.
"""

from nas import BlockSpec, HeadSpec, SearchSpace, StemSpec
from nas.arch import round8, stem_stride
from nas.space import Slot, Stage

KERNEL_SIZES = (3, 5, 7)
EXPAND_RATIO = 3
STAGES = ((16, 1, 2), (24, 2, 3), (48, 2, 3), (96, 2, 2))  # output channels at width 1, stride of the first slot, slots


def kernels(width: float, input_size: int, num_classes: int) -> SearchSpace:
    """Inverted residuals with a kernel of 3, 5 or 7 pixels in every slot; a stage may run fewer slots than it has, but
    at least one.
    """
    stem = StemSpec(
        in_channels=3, out_channels=round8(16 * width), kernel_size=3, stride=stem_stride(input_size), activation="relu"
    )
    channels, stages = stem.out_channels, []
    for base, stride, count in STAGES:
        out = round8(base * width)
        slots = [slot(channels, out, stride), *(slot(out, out, 1) for _ in range(count - 1))]
        stages.append(Stage(tuple(slots), min_depth=1))
        channels = out
    head = HeadSpec(in_channels=channels, channels=256, num_classes=num_classes, dropout=0.2, activation="relu")
    return SearchSpace("kernels", width, input_size, stem, tuple(stages), head)


def slot(in_channels: int, out_channels: int, stride: int) -> Slot:
    """One candidate for each kernel size."""
    return Slot(
        tuple(BlockSpec("mb", k, in_channels, out_channels, stride, EXPAND_RATIO, 0, "relu") for k in KERNEL_SIZES)
    )
