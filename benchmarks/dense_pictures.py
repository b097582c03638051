"""Pictures of the studies of detection and segmentation: learning curves, and test pictures with what the networks find
in them.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
import torchvision.transforms.v2.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from common.files import write_bytes
from nas.report.style import LINES, finish, panels

TILE = 260  # pixels that each picture of a sheet is wide
DRAWN = ("base", "float", "straight", "ptq", "finetune", "naive", "statassist", "both")


def curves(result: dict) -> Figure:
    """Validation score against epochs of pictures, a panel a network, a line a column and seed."""
    names = [name for name in result["networks"] if any(c["network"] == name and c["curve"] for c in result["cells"])]
    return panels([lambda ax, name=name: _curves(ax, result, name) for name in names], columns=2, size=(5.4, 3.6))


def _curves(ax, result: dict, network: str) -> None:
    colours = dict(zip(DRAWN, ("#9aa5b1", *LINES)))
    for column, colour in colours.items():
        cells = [c for c in result["cells"] if (c["network"], c["column"]) == (network, column) and c["curve"]]
        for i, cell in enumerate(cells):
            x, y = zip(*before(result, cell), *cell["curve"])
            ax.plot(
                x,
                [100 * v for v in y],
                color=colour,
                lw=1.3,
                marker=".",
                ms=3,
                alpha=1 if i == 0 else 0.5,
                label=column if i == 0 else None,
            )
    finish(ax, network, "epochs of pictures", f"validation {result['metric']}, %")


def before(result: dict, cell: dict) -> list[list]:
    """The last point of the float training that a cell goes on from."""
    if cell["column"] not in ("float", "finetune"):
        return []
    return next(
        (
            c["curve"][-1:]
            for c in result["cells"]
            if (c["network"], c["seed"], c["column"]) == (cell["network"], cell["seed"], "base")
        ),
        [],
    )


def sheet_path(output: str | Path, task: str, network: str, seed: int | str) -> Path:
    return Path(output) / f"{task}_{network.replace(':', '_').replace('/', '_')}_{seed}.png"


def palette(count: int) -> list[tuple[int, int, int]]:
    """A colour for each class."""
    colours = [*matplotlib.colormaps["tab10"].colors, *matplotlib.colormaps["Set2"].colors]
    return [tuple(round(255 * c) for c in colours[i % len(colours)]) for i in range(count)]


def write_sheet(path: Path, rows: Sequence[Sequence[Tensor]], classes: Sequence[str]) -> None:
    """Rows of pictures (3, H, W) uint8, truth, float and INT8, as one PNG with the names of the columns and the colours
    of the classes.
    """
    height = round(TILE * rows[0][0].shape[1] / rows[0][0].shape[2])
    tiles = [F.resize(picture, [height, TILE], antialias=True) for row in rows for picture in row]
    grid = make_grid(torch.stack(tiles), nrow=len(rows[0]), padding=4, pad_value=255)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    sheet = Image.new("RGB", (picture.width, picture.height + 40), "white")
    sheet.paste(picture, (0, 20))
    draw = ImageDraw.Draw(sheet)
    for i, word in enumerate(("truth", "float", "INT8")):
        draw.text((8 + i * (TILE + 4), 4), word, fill="black")
    x = 8
    for name, colour in zip(classes, palette(len(classes))):
        draw.text((x, sheet.height - 16), name, fill=colour)
        x += draw.textlength(name) + 12
    buffer = io.BytesIO()
    sheet.quantize(256).save(buffer, "PNG", optimize=True)
    write_bytes(path, buffer.getvalue())
