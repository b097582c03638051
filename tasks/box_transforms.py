"""What a detector sees: images resized to its square input, in training with SSD's augmentation (arXiv:1512.02325).

Zooming out and cropping only move a window over the image. So the window is found first, from the boxes alone, and the
pixels in it are resized once; colours change last, on the few pixels that are left. That is several times as quick as
one step after the other.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms import v2

# boxes (K, 4) float32 x0 y0 x1 y1, labels (K,) int64, difficult, crowd (K,) bool; of the picture: size, number
Target = dict[str, Tensor]
OF_BOXES = ("boxes", "labels", "difficult", "crowd")

# share of the pictures that are zoomed out, and the sides of the canvas in those of the picture
ZOOM_OUT, LARGEST_CANVAS = 0.5, 4.0
# of a window with some box, one of these is drawn; None is the whole canvas
LEAST_IOU = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)
TRIALS = 40  # windows before another is drawn
SMALLEST, ASPECT = 0.3, (0.5, 2.0)  # sides of a window in those of the canvas; its width over its height
SMALLEST_BOX = 1.0  # pixels of the input; what shows less is not trained on
distort = v2.RandomPhotometricDistort()


@dataclass(frozen=True)
class Fit:
    """(picture, target) -> the picture resized to (3, size, size); its boxes stay in its own pixels."""

    size: int

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        return v2.functional.resize(image, [self.size, self.size]), target


@dataclass(frozen=True)
class Augment:
    """(picture, target) -> (3, size, size) uint8 and boxes in its pixels, at random from torch's global generator.

    Half of the pictures are zoomed out on a canvas of the colour `fill`; a window that shares a drawn least IoU with
    some box is cut out, mirrored half of the time and resized, and its colours are distorted. Boxes end where the
    window does, and those whose centre it does not hold are gone. Difficult objects and crowds are not trained on.
    """

    size: int
    fill: tuple[int, int, int]

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        target = select(target, ~(target["difficult"] | target["crowd"]))
        height, width = image.shape[-2:]
        window = iou_window(zoomed_out(width, height), target["boxes"])
        mirror = bool(torch.rand(()) < 0.5)
        image, target = look(image, window, self.size, self.fill), seen(target, window, self.size)
        if mirror:
            x0, y0, x1, y1 = target["boxes"].unbind(1)
            image, target = image.flip(-1), target | {"boxes": torch.stack([self.size - x1, y0, self.size - x0, y1], 1)}
        return distort(image.contiguous()), target


def select(target: Target, keep: Tensor) -> Target:
    """The target with some of its boxes."""
    return target | {name: target[name][keep] for name in OF_BOXES}


class Window(NamedTuple):
    """A rectangle in a picture's pixels, which may reach beyond the picture."""

    left: int
    top: int
    width: int
    height: int

    def holds_centres(self, boxes: Tensor) -> Tensor:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - torch.tensor([self.left, self.top])
        return ((centres > 0) & (centres < torch.tensor([self.width, self.height]))).all(1)


def zoomed_out(width: int, height: int) -> Window:
    """The picture, or a larger canvas around it."""
    if torch.rand(()) >= ZOOM_OUT:
        return Window(0, 0, width, height)
    times, across, down = torch.rand(3).tolist()
    times = 1 + times * (LARGEST_CANVAS - 1)
    wide, high = int(width * times), int(height * times)
    return Window(-int(across * (wide - width)), -int(down * (high - height)), wide, high)


def iou_window(canvas: Window, boxes: Tensor) -> Window:
    """A random part of the canvas with a drawn least IoU with some box (K, 4) whose centre it holds, or all of it.

    The law is that of torchvision's RandomIoUCrop; all trials are evaluated together.
    """
    while len(boxes):
        least = LEAST_IOU[int(torch.randint(len(LEAST_IOU), ()))]
        if least is None:
            break
        windows = _candidates(canvas)
        sides = windows[:, 2:] - windows[:, :2]
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2)[None]
        holds = ((centres > windows[:, None, :2]) & (centres < windows[:, None, 2:])).all(2)
        iou = torch.where(holds, box_iou(windows, boxes), -1.0).amax(1)
        aspect = sides[:, 0] / sides[:, 1]
        good = (sides.amin(1) >= 1) & (aspect >= ASPECT[0]) & (aspect <= ASPECT[1]) & (iou >= least)
        if good.any():
            x0, y0, x1, y1 = map(int, windows[good.nonzero()[0, 0]].tolist())
            return Window(x0, y0, x1 - x0, y1 - y0)
    return canvas


def _candidates(canvas: Window) -> Tensor:
    """(TRIALS, 4) windows x0, y0, x1, y1 of whole pixels inside the canvas."""
    u, whole = torch.rand(TRIALS, 4), torch.tensor([canvas.width, canvas.height])
    sides = ((SMALLEST + (1 - SMALLEST) * u[:, :2]) * whole).floor()
    start = torch.tensor([canvas.left, canvas.top]) + (u[:, 2:] * (whole - sides)).floor()
    return torch.cat([start, start + sides], 1)


def seen(target: Target, window: Window, size: int) -> Target:
    """What a window shows of the boxes, in the pixels of the (size, size) that it is resized to."""
    target = select(target, window.holds_centres(target["boxes"]))
    start, scale = (
        torch.tensor([window.left, window.top] * 2),
        torch.tensor([size / window.width, size / window.height] * 2),
    )
    boxes = ((target["boxes"] - start) * scale).clamp(0, size)
    target = target | {"boxes": boxes}
    return select(target, ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_BOX).all(1))


def look(image: Tensor, window: Window, size: int, fill: tuple[int, int, int]) -> Tensor:
    """The window of an image (3, H, W) uint8, resized to (3, size, size); `fill` where it reaches beyond the image."""
    columns, across = _overlap(window.left, window.width, image.shape[-1], size)
    rows, down = _overlap(window.top, window.height, image.shape[-2], size)
    part = v2.functional.resize(image[:, rows, columns], [down.stop - down.start, across.stop - across.start])
    if part.shape[-2:] == (size, size):
        return part
    out = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, size, size)
    out[:, down, across] = part
    return out


def _overlap(start: int, length: int, there: int, size: int) -> tuple[slice, slice]:
    """In one direction: at least one pixel, of `there`, that a window shows, and where it lies among `size`."""
    first, last = max(start, 0), min(start + length, there)
    low = min(math.floor((first - start) / length * size + 0.5), size - 1)
    return slice(first, last), slice(low, max(math.floor((last - start) / length * size + 0.5), low + 1))
