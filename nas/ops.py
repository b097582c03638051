"""The block ops: what a block does beyond expansion, depthwise convolution and projection. One row per op.

A new op is a row here and its module in `nas.blocks`. Everything else reads the row: the checks and channel counts of
`nas.arch`, the search spaces, the drawings, the report's colours, and the supernet when it hands weights down.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Op:
    """One kind of block. An op with a squeeze needs a `squeeze_factor` of 2 or more, one without has 0.

    Attributes:
        title: Its name in a legend.
        colour: Fill of its blocks in figures and on a light page.
        dark: Fill on a dark page.
        squeezes: The channels that the squeeze reads. "input": those before the expansion; where they leave no room
            for a squeeze, `nas.resolve` makes the block an "mb" block. "hidden": those after the depthwise
            convolution. "": the op has no squeeze.
        writes: Layers of `nas.blocks.Block` whose output channels are the squeezed ones.
        reads: Layers whose input channels are the squeezed ones. If "expand" is one, the block concatenates them with
            its input.
        factors: The squeeze factors of its candidates in the bottleneck space, (0,) without a squeeze. They enlarge
            that space, so that tables measured of it before are refused; () keeps the op out.
    """

    title: str
    colour: str
    dark: str
    squeezes: Literal["", "input", "hidden"] = ""
    writes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    factors: tuple[int, ...] = (0,)

    @property
    def concatenates(self) -> bool:
        """Whether the squeezed channels stand beside the input before the expansion."""
        return "expand" in self.reads


# The order is that of candidates in the bottleneck space: a new op comes last.
OPS = {
    "mb": Op("inverted residual", "#d9d3c7", "#736c5f"),
    "se": Op(
        "squeeze and excite",
        "#a5d3a9",
        "#4c8552",
        squeezes="hidden",
        writes=("excite.fc1",),
        reads=("excite.fc2",),
        factors=(4,),
    ),
    "add": Op(
        "squeeze and add",
        "#f2bf8a",
        "#a5713a",
        squeezes="input",
        writes=("squeeze",),
        reads=("restore",),
        factors=(4,),
    ),
    "frost": Op(
        "squeeze and concat",
        "#8fbce6",
        "#4478aa",
        squeezes="input",
        writes=("squeeze",),
        reads=("expand",),
        factors=(2, 4),
    ),
}
