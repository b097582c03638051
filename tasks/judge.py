"""Judges of made pictures: a finished run of retrain.py lends its network's eyes.

A classifier or segmenter gives features, for tasks.features. A segmenter that was trained on the real photos also says
what it sees in photos made from label pictures: where it finds the class that the label has, the photo looks like that
class (the FCN-score of arXiv:1611.07004). What it does not find in real photos either is no fault of the made ones:
judge the real photos, too.
"""

import reprlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnF
import torchvision.transforms.v2.functional as F
from torch import Tensor, nn

from common import distributed
from common.errors import UserError
from common.files import read_json
from common.runs import CHECKPOINT, Run
from tasks.masks import IGNORE
from tasks.segmentation import channels_last, class_pairs, iou_of
from tasks.trained import CALIBRATED, finished_run, load, load_network

TASKS = ("classification", "segmentation")
LEAST_COUNTED = 0.1  # share of an input's pixels that a palette must know
NEAR = 8  # codes by which a channel of a label's colour may be off: so much JPEG moves the colour of an area
LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Palette:
    """Colours of classes in label images: ids (K,) uint8, colours (K, 3) int16 of 0..255, a pixel's tolerance."""

    ids: Tensor
    colours: Tensor
    near: int

    def classes_of(self, labels: Tensor) -> Tensor:
        """Class ids (N, H, W) uint8 of label pictures (N, 3, H, W) in [-1, 1]; IGNORE where no class has the colour."""
        codes = ((labels.float() + 1) * 127.5).round().to(torch.int16)
        found = torch.full_like(codes[:, 0], IGNORE, dtype=torch.uint8)
        for number, colour in zip(self.ids.tolist(), self.colours.to(labels.device)):
            found[((codes - colour.view(3, 1, 1)).abs() <= self.near).all(1)] = number
        return found


@dataclass(frozen=True)
class Judge:
    """A trained network that looks at pictures (N, 3, H, W) in [-1, 1], on the device that these are on.

    name       of its run
    network    in evaluation mode: normalised pictures -> logits; float or with quantizers
    mean, std  by channel, of the pictures in [0, 1] that it was trained on
    layer      of `network`, the one that decides the classes: its input, averaged over the picture, is a picture's
               features
    palette    None: it has features only
    """

    name: str
    network: nn.Module
    task: str
    classes: tuple[str, ...]
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layer: str
    num_features: int
    palette: Palette | None = None

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> Tensor:
        """The features (N, num_features) of pictures."""
        seen = []
        hook = self.network.get_submodule(self.layer).register_forward_pre_hook(
            lambda module, args: seen.append(args[0])
        )
        try:
            self._logits(pictures)
        finally:
            hook.remove()
        return _pooled(seen[-1])

    @torch.inference_mode()
    def fcn(self, made: Tensor, labels: Tensor) -> Tensor:
        """Pixels (C, C) float64 of true class (row), by the colours of label images, and of class seen in the photos.

        The photos are made from the label images, at whose size the pixels are counted, without
        IGNORE. Needs a palette.
        """
        truth, size = self.palette.classes_of(labels), len(self.classes)
        logits = nnF.interpolate(
            channels_last(self._logits(made)).float(), truth.shape[-2:], mode="bilinear", align_corners=False
        )
        return class_pairs(logits.max(1).indices, truth, size).view(size, size).double()

    def _logits(self, pictures: Tensor) -> Tensor:
        """The outputs for whole images: a segmenter resizes them by the shorter side, a classifier to squares."""
        size = [self.input_size] * (1 if self.task == "segmentation" else 2)
        mean, std = (torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in (self.mean, self.std))
        x = (F.resize((pictures.float() + 1) / 2, size, antialias=True) - mean) / std
        return self.network.to(x.device)(x.contiguous(memory_format=torch.channels_last))


class FcnScore:
    """What a segmenter finds of the labels in the photos made from them: pixels of all images and ranks."""

    def __init__(self, judge: Judge):
        if judge.palette is None:
            raise UserError(
                f"palette: {judge.name} cannot know the classes of label "
                "pictures without one; name a JSON file of their colours"
            )
        self.judge = judge
        self._counts = torch.zeros(len(judge.classes), len(judge.classes), dtype=torch.float64)
        self._pixels = torch.zeros(1, dtype=torch.float64)

    def update(self, made: Tensor, labels: Tensor) -> None:
        """Add photos (N, 3, H, W) and the label pictures that they were made from, both in [-1, 1]."""
        self._counts += self.judge.fcn(made, labels).cpu()
        self._pixels += labels[:, 0].numel()

    def compute(self) -> dict[str, float]:
        """mIoU over the classes that the label images show, and the shares of right and of counted pixels.

        All are in [0, 1]. Pixels between two areas of an image made smaller have no class's colour and do not count.
        Raises UserError where hardly any counts.
        """
        counts, pixels = distributed.sum_(self._counts.clone()), distributed.sum_(self._pixels.clone())
        if counts.sum() < LEAST_COUNTED * pixels:
            share = (counts.sum() / pixels).item()
            raise UserError(
                f"palette: only {share:.1%} of the pixels of the input pictures have one of its colours; "
                "name the palette that they were drawn with, and the --direction that begins with them"
            )
        iou, right = iou_of(counts).nanmean(), counts.diag().sum() / counts.sum()
        return {
            "fcn_miou": round(iou.item(), 6),
            "fcn_pixel_accuracy": round(right.item(), 6),
            "fcn_counted": round((counts.sum() / pixels).item(), 6),
        }


# ---- from a run's folder -----------------------------------------------------------------------------------


def judge(name: str | Path, runs: str | Path = "runs", palette: str | Path | None = None) -> Judge:
    """The network that a finished run of classification or segmentation, named by its folder or name in `runs`, makes.

    palette  a JSON file {"class name": [red, green, blue], ..} of some or all classes of a segmenter, as label images
             show them

    Raises UserError naming file, field and fix.
    """
    path = Path(name) if (Path(name) / "config.json").is_file() else Path(runs) / name
    try:
        made = _from_run(path)
    except UserError as error:
        raise UserError(f"judge: {str(error).removeprefix('run: ')}") from error
    if palette is None:
        return made
    if made.task != "segmentation":
        raise UserError(
            f"palette: {path} is a run of {made.task}, which sees no "
            "pixels' classes; name a run of segmentation as the judge"
        )
    return replace(made, palette=read_palette(palette, made.classes))


def _from_run(path: Path) -> Judge:
    run, settings = finished_run(path)
    network, known = load_network(run)
    if network.task not in TASKS:
        raise UserError(f"{path} is a run of {network.task}, must be one of {' or '.join(TASKS)}; name another")
    if network.task == "segmentation" and network.num_classes > IGNORE:
        raise UserError(f"{path}: {network.num_classes} classes, must be at most {IGNORE}; name another run")
    model = _trained(run, CALIBRATED if settings.get("calibrate") else CHECKPOINT)
    if not all(t.isfinite().all() for t in (*model.parameters(), *model.buffers())):
        raise UserError(f"{path} holds weights that are not finite; train it again")
    with torch.inference_mode():
        layer, seen = _deciding(model, network.example()[:1])
    about = {field: known[field] for field in ("classes", "mean", "std")}
    return Judge(
        path.name, model, network.task, input_size=network.input_size, layer=layer, num_features=seen.shape[1], **about
    )


def _trained(run: Run, file: str) -> nn.Module:
    """The network in evaluation mode, with its quantizers where it has some."""
    state = run.load_checkpoint(file)
    if (
        not isinstance(state, dict)
        or type(state.get("attached")) is not bool
        or not isinstance(state.get("model"), dict)
    ):
        raise UserError(f"{run.path / file}: no checkpoint of retrain.py; restore it, or name another run")
    if state["attached"]:
        return load(run.path).graph
    model = load_network(run)[0].build()
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"{run.path / file} holds weights of another network ({first}); restore its files") from error
    return model.eval()


def _deciding(network: nn.Module, pictures: Tensor) -> tuple[str, Tensor]:
    """The last convolution or linear layer that runs, by name, and its input, averaged over the picture."""
    seen: list[tuple[str, Tensor]] = []
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, LAYERS)]
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, args[0])))
        for name, module in layers
    ]
    try:
        network(pictures)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"input_size: its network cannot run on {pictures.shape[-1]} px ({reason}); restore its files"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    name, x = seen[-1]
    return name, _pooled(x)


def _pooled(x: Tensor) -> Tensor:
    """(N, F, H, W) or (N, F) -> (N, F)."""
    return x.float().flatten(2).mean(2) if x.dim() > 2 else x.float()


def read_palette(path: str | Path, classes: tuple[str, ...]) -> Palette:
    """The colours in a JSON file {"class name": [red, green, blue], ..}.

    Raises UserError naming file, class and mend.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not data:
        raise UserError(
            f'{path}: no palette; wanted are the colours of classes, such as {{"{classes[0]}": [128, 64, 128]}}'
        )
    for name, colour in data.items():
        if name not in classes:
            raise UserError(f"{path}: {reprlib.repr(name)}: no class of the judge; these are {', '.join(classes)}")
        if not _is_colour(colour):
            raise UserError(
                f"{path}: {name}: {reprlib.repr(colour)}, must be three whole numbers from 0 to 255: red, green, blue"
            )
    names, colours = list(data), torch.tensor(list(data.values()), dtype=torch.int16)
    near = _nearness(names, colours, path)
    return Palette(torch.tensor([classes.index(name) for name in names], dtype=torch.uint8), colours, near)


def _nearness(names: list[str], colours: Tensor, path: str | Path) -> int:
    """How far off a pixel may be that no two classes can claim it. Raises UserError for two classes of one colour."""
    apart = (colours[:, None] - colours).abs().amax(2) + 1024 * torch.eye(len(colours), dtype=torch.int16)
    if not apart.min():
        a, b = apart.eq(0).nonzero()[0].tolist()
        raise UserError(
            f"{path}: {names[a]} and {names[b]} have the same colour "
            f"{colours[a].tolist()}; give each class one of its own"
        )
    return min(NEAR, (int(apart.min()) - 1) // 2)


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
