"""The drawing of an architecture is true to scale and says what it shows."""

import matplotlib
import pytest
from matplotlib.patches import FancyBboxPatch

from nas import Architecture, BlockSpec, HeadSpec, StemSpec
from nas.cost import cost
from nas.report.architecture import architecture_figure, full_name, text_drawing, words
from nas.report.style import FILLS
from tests.nas.report.pages import NET, texts

NAMES = [row.name for row in cost(NET).rows]


def _boxes(figure):
    return [p.get_width() for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]


def test_boxes_are_as_long_as_their_latency():
    ms = {name: 0.1 * (i + 1) for i, name in enumerate(NAMES)}
    boxes = _boxes(architecture_figure(NET, ms))
    assert [box / boxes[0] for box in boxes] == pytest.approx([i + 1 for i in range(len(NAMES))])


@pytest.mark.parametrize("ms", [1e-4, 1.0, 1e3])
def test_the_longest_box_fits_the_page_whatever_the_unit(ms):
    boxes = _boxes(architecture_figure(NET, dict.fromkeys(NAMES, ms)))
    assert boxes == pytest.approx([3.4] * len(NAMES))


def test_without_latencies_boxes_are_as_long_as_their_macs():
    boxes = _boxes(architecture_figure(NET))
    macs = [row.macs for row in cost(NET).rows]
    assert [box / max(boxes) for box in boxes] == pytest.approx([m / max(macs) for m in macs], abs=0.01)


def test_every_block_is_labelled():
    labels = texts(architecture_figure(NET))
    for block in NET.blocks:
        assert f"{block.op} {block.kernel_size}×{block.kernel_size}" in labels
        assert f"{block.in_channels} → {block.out_channels}" in labels
    assert labels.count("residual") == sum(block.residual for block in NET.blocks)
    assert any("frostnet_small_0_5" in text for text in labels)


def test_each_resolution_is_written_once():
    sizes = [text for text in texts(architecture_figure(NET)) if text.endswith(" px")]
    assert sizes == ["32 px", "16 px", "8 px", "4 px", "2 px"]


def _every_op() -> Architecture:
    """One block of each op, the last with another activation."""

    def block(op, squeeze, act="relu"):
        return BlockSpec(op, 5, 32, 32, 1, 3, squeeze, act)

    blocks = (block("mb", 0), block("frost", 4), block("se", 4), block("add", 2, "hard_swish"))
    return Architecture("every_op", 32, StemSpec(3, 32, 3, 1, "relu"), blocks, HeadSpec(32, 64, 10, 0, "relu"))


def test_each_op_has_a_colour_of_its_own():
    boxes = [p for p in architecture_figure(_every_op()).axes[0].patches if isinstance(p, FancyBboxPatch)]
    colours = [matplotlib.colors.to_hex(box.get_facecolor()) for box in boxes]
    assert colours == [FILLS[op] for op in ("ends", "mb", "frost", "se", "add", "ends")] and len(set(colours)) == 5


def test_blocks_in_words():
    blocks = _every_op().blocks
    assert [full_name(b) for b in blocks] == [
        "mb 5×5 e3",
        "frost 5×5 e3 r4",
        "se 5×5 e3 r4",
        "add 5×5 hard_swish e3 r2",
    ]
    assert [words(b).squeeze for b in blocks] == ["", "+8  (r4)", "24  (r4)", "16  (r2)"]
    assert [words(b).hidden for b in blocks] == ["96  (e3)", "120  (e3)", "96  (e3)", "96  (e3)"]
    assert {words(b).stride for b in blocks} == {"residual"}


def test_the_text_drawing_has_a_line_a_part_and_can_be_ascii():
    arch = _every_op()
    lines = text_drawing(arch).splitlines()
    assert len(lines) == 6 and "add 5×5 hard_swish e3 r2" in lines[4] and lines[0].startswith("   32 px  stem 3×3")
    assert max(line.count("█") for line in lines) == 40
    plain = text_drawing(arch, unicode=False)
    assert plain.isascii() and plain.splitlines()[0].count("#") == lines[0].count("█")
