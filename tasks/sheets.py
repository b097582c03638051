"""Sample grids: images side by side, such as an input, its target, and what the float and the INT8 network make."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from common.errors import UserError
from common.files import write_bytes
from nas.report.style import INK, PAPER, SOFT

LEAST = 160  # pixels that the shorter side of a tile has at least
GAP, EDGE, LINE = 8, 14, 18  # pixels between tiles, around all, and of a line of text
DPI, POINTS, LETTER = 100, 9, 7  # the text's size, and about the width of one of its letters in pixels


def contact_sheet(rows: Sequence[Mapping[str, Tensor]], path: str | Path, note: str = "") -> None:
    """Write images (3, H, W) in [-1, 1] as a PNG, atomically: `rows` by named columns, titles above, `note` below.

    Every pixel becomes a square of whole pixels, as large for all images of the grid; smaller images stand in the
    middle of their place, and where a row has none it stays empty. Raises UserError.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"picture: {str(path)!r}, must end in .png")
    names = list(dict.fromkeys(name for row in rows for name in row))
    height, width = (max(picture.shape[side] for row in rows for picture in row.values()) for side in (1, 2))
    scale = -(-LEAST // min(height, width))
    height, width = height * scale, width * scale
    across = 2 * EDGE + len(names) * (width + GAP) - GAP
    lines = textwrap.wrap(note, (across - 2 * EDGE) // LETTER)
    below = GAP + len(lines) * LINE if lines else 0
    page = _Page(across, 2 * EDGE + LINE + len(rows) * (height + GAP) - GAP + below)
    for column, name in enumerate(names):
        x = EDGE + column * (width + GAP)
        page.write(name, x, EDGE + LINE - 5, INK, width)
        for number, row in enumerate(rows):
            if name in row:
                page.paste(row[name], scale, x + width / 2, EDGE + LINE + number * (height + GAP) + height / 2)
    for number, line in enumerate(lines):
        page.write(line, EDGE, page.down - EDGE - (len(lines) - 1 - number) * LINE - 3, SOFT, across - 2 * EDGE)
    page.save(path)


class _Page:
    """A figure whose places are pixels from its upper left corner."""

    def __init__(self, across: int, down: int):
        self.across, self.down = across, down
        # sizes are cut down to whole pixels
        self._figure = Figure(figsize=((across + 0.01) / DPI, (down + 0.01) / DPI), dpi=DPI)

    def write(self, text: str, x: float, y: float, colour: str, room: int) -> None:
        """A line of text whose letters stand on (x, y), cut off where it is wider than `room`."""
        plain = "".join(c if " " <= c <= "~" else "?" for c in text)
        line = self._figure.text(
            x / self.across, 1 - y / self.down, plain, size=POINTS, color=colour, va="baseline", parse_math=False
        )
        while line.get_window_extent().width > room:
            plain = plain[:-1]
            line.set_text(f"{plain}..")

    def paste(self, picture: Tensor, scale: int, x: float, y: float) -> None:
        """A picture whose middle is at (x, y), each pixel a square of `scale`."""
        codes = ((picture.detach().float().cpu().nan_to_num(0).clamp(-1, 1) + 1) * 127.5).round().byte()
        tile = codes.repeat_interleave(scale, 1).repeat_interleave(scale, 2).permute(1, 2, 0).numpy()
        rows, columns = tile.shape[:2]
        self._figure.figimage(tile, round(x - columns / 2), self.down - round(y - rows / 2) - rows)

    def save(self, path: str | Path) -> None:
        buffer = io.BytesIO()
        self._figure.savefig(buffer, format="png", dpi=DPI, facecolor=PAPER)
        write_bytes(path, buffer.getvalue())
