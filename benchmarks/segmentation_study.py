"""Segmentation of real pictures: float, post-training, fine-tuned, naive and StatAssist + GradBoost trainings, all
judged as INT8 networks.

    PYTHONPATH=. python benchmarks/segmentation_study.py --data camvid --data-root FOLDER   #
    FOLDER/{train,val,test}/{images,labels}
    PYTHONPATH=. python benchmarks/segmentation_study.py --smoke                            # a few pictures of scenes,
    to see that it runs

Writes docs/results/segmentation.{json,md} and PNGs, and brings them up to date after each cell. The same command goes
on where it was stopped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import draw_segmentation_masks

import quant
from benchmarks.dense_columns import DenseConfig
from benchmarks.dense_pictures import palette
from benchmarks.dense_study import Study, run_study
from common.cli import guard, option, parse
from tasks import masks

# The page says so: how the defaults below came about.
CHOSEN = (
    "The default peak learning rate, 0.02, was chosen by trial trainings of FrostNet for 6 epochs, of another seed, on the validation part "
    "alone (mIoU of float 36.7 %; 34.0 % at 0.05; of naive QAT 31.8 %). All columns and networks share it.",
    "Cut for time, on two slow cores: small pictures, one width of each family, few epochs where segmenters are trained for hundreds, no "
    "pretrained backbones.",
    "The networks were trained and judged for onednn, whose weights have 8 bits on CPUs with VNNI (127 codes to either side).",
)


@dataclass(frozen=True)
class SegmentationConfig(DenseConfig):
    task: ClassVar[str] = "segmentation"
    data: Literal[masks.DATA] = option("camvid", "layout of the data")
    networks: tuple[str, ...] = option(
        ("lraspp:frostnet_small_0_5", "lraspp:mobilenet_v2_x0_5"), "networks, of equal INT8 latency"
    )
    input_size: int = option(120, "pixels of a picture's shorter side, and of the squares that are trained on")
    epochs: int = option(42, "epochs of pictures that each column sees")
    tune_epochs: int = option(9, "of these, the last ones of the columns that go on from a float training")
    lr: float = option(0.02, "peak learning rate of trainings from scratch")
    tune_lr: float = option(0.005, "peak learning rate of the last epochs")
    batch_size: int = option(8, "pictures in a step")
    decay: Literal["cosine", "poly"] = option("poly", "how the learning rate falls")
    runs: str = option("runs/segmentation_study", "folder of all runs of the study")


def paint(task, model: nn.Module | None, picture: Tensor, images: Tensor, target: Tensor) -> Tensor:
    """The picture (3, H, W) uint8 under the true classes of its pixels, or under those that a model gives them."""
    size = picture.shape[-2:]
    if model is None:
        found = F.interpolate(target[None, None].float(), size, mode="nearest-exact")[0, 0]
    else:
        found = F.interpolate(model(images).float(), size, mode="bilinear", align_corners=False)[0].argmax(0)
    areas = found == torch.arange(len(task.classes)).view(-1, 1, 1)
    return draw_segmentation_masks(picture, areas, alpha=0.6, colors=palette(len(task.classes)))


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run the study, or go on with it; returns the JSON's path."""
    config = parse(SegmentationConfig, argv, "segmentation_study.py", __doc__)
    return run_study(config, Study("Segmentation: how a network becomes INT8", paint, CHOSEN))


if __name__ == "__main__":
    main()
