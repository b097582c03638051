"""Picture files, which may come from anywhere."""

import contextlib
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tasks.samples import BadSample

# Others stay unread: some start programs (EPS: Ghostscript), and none has the pictures of a data set.
PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
MASKS = ("PNG",)
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@contextlib.contextmanager
def opened(
    path: str, name: str | None = None, what: str = "picture", formats: Sequence[str] = PICTURES
) -> Iterator[Image.Image]:
    """The file `path` open; an error inside becomes a BadSample of the image `name` that the file belongs to."""
    it = what if name in (None, path) else f"{what} {path}"
    try:
        with Image.open(path, formats=formats) as image:
            yield image
    except FileNotFoundError as error:
        raise BadSample(name or path, f"there is no {it}") from error
    except UNREADABLE as error:
        raise BadSample(name or path, f"the {it} cannot be read ({error})") from error


def refuse_depth(path: str, image: Image.Image) -> None:
    """Raise BadSample for pixels of more than 8 bits."""
    if image.mode.startswith(("I", "F")):
        raise BadSample(
            path, f"has pixels of more than 8 bits (mode {image.mode}), which have no agreed range; save it with 8"
        )


def read_picture(path: str) -> Tensor:
    """(3, H, W) uint8, channels last in memory. Raises BadSample."""
    with opened(path) as image:
        refuse_depth(path, image)
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)
