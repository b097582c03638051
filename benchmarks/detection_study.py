"""Detection on real pictures: float, post-training, fine-tuned, naive and StatAssist + GradBoost trainings, all judged
as INT8 networks.

    PYTHONPATH=. python benchmarks/detection_study.py --data voc --data-root FOLDER   # FOLDER/VOCdevkit/VOC2007, such
    as BCCD
    PYTHONPATH=. python benchmarks/detection_study.py --smoke                         # a few pictures of scenes, to see
    that it runs

Writes docs/results/detection.{json,md} and PNGs, and brings them up to date after each cell. The same command goes on
where it was stopped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn
from torchvision.utils import draw_bounding_boxes

import quant
from benchmarks.dense_columns import DenseConfig
from benchmarks.dense_pictures import palette
from benchmarks.dense_study import Study, run_study
from common.cli import guard, option, parse
from tasks import boxes

DRAWN = 0.4  # score from which on a box is drawn
# The page says so: how the defaults below came about.
CHOSEN = (
    "The default peak learning rate, 0.1, and batches of 8 were chosen by trial trainings of FrostNet for 12 epochs, of another seed, on "
    "the validation part alone (AP of float 15.0 %; 13.1 % at 0.05, 1.8 % at 0.02; of naive QAT 18.9 %). All columns and networks share "
    "them.",
    "Cut for time, on two slow cores: small pictures, one width of each family, few epochs where detectors are trained for hundreds, no "
    "pretrained backbones.",
    "The networks were trained and judged for onednn, whose weights have 8 bits on CPUs with VNNI (127 codes to either side).",
)


@dataclass(frozen=True)
class DetectionConfig(DenseConfig):
    task: ClassVar[str] = "detection"
    data: Literal[boxes.DATA] = option("voc", "layout of the data")
    networks: tuple[str, ...] = option(
        ("ssdlite:frostnet_small_0_5", "ssdlite:mobilenet_v2_x0_6"), "networks, of equal INT8 latency"
    )
    batch_size: int = option(8, "pictures in a step")
    epochs: int = option(54, "epochs of pictures that each column sees")
    lr: float = option(0.1, "peak learning rate of trainings from scratch")
    tune_lr: float = option(0.02, "peak learning rate of the last epochs")
    tune_epochs: int = option(9, "of these, the last ones of the columns that go on from a float training")
    runs: str = option("runs/detection_study", "folder of all runs of the study")


def paint(task, model: nn.Module | None, picture: Tensor, images: Tensor, target: dict[str, Tensor]) -> Tensor:
    """The picture (3, H, W) uint8 with the true boxes, or with those that a model is sure of."""
    if model is None:
        shown, labels = target["boxes"], target["labels"]
    else:
        (found,) = task.machinery.detections(model, images)
        sure = found["scores"] > DRAWN
        height, width = picture.shape[-2:]
        scale = found["boxes"].new_tensor([width / images.shape[-1], height / images.shape[-2]]).repeat(2)
        shown, labels = found["boxes"][sure] * scale, found["labels"][sure]
    if not len(shown):
        return picture
    colours = palette(len(task.classes))
    return draw_bounding_boxes(
        picture, shown, colors=[colours[label] for label in labels.tolist()], width=max(2, picture.shape[-1] // 160)
    )


@guard(errors=(quant.QuantError,))
def main(argv=None) -> Path:
    """Run the study, or go on with it; returns the JSON's path."""
    config = parse(DetectionConfig, argv, "detection_study.py", __doc__)
    return run_study(config, Study("Detection: how a network becomes INT8", paint, CHOSEN))


if __name__ == "__main__":
    main()
