"""The tasks side by side: what retraining, shipping and judging a network need to know of each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import tasks.data
from nas import UserError
from tasks import boxes, masks, pictures, samples
from tasks.classification import Classification
from tasks.detection import Detection
from tasks.samples import Bad
from tasks.segmentation import Segmentation
from zoo import detectors


@dataclass(frozen=True)
class Request:
    """The data that a user asks for; see retrain.RetrainConfig."""

    data: str
    data_root: str | None
    input_size: int
    seed: int = 0
    train_images: int | None = None
    download: bool = False
    workers: int = 0
    bad_data: Bad = "refuse"


@dataclass(frozen=True)
class Kind:
    """One task.

    data         layouts that it reads
    num_classes  (data, data_root) -> how many, without reading a picture
    load         a Request -> data with train, val, test, classes, held_out, mean, std and to(device)
    training     a Request -> the training part alone
    noise        (input size, count) -> so many pictures of noise, for whoever has no others
    task         (network's name, its input size, classes, training part or None, label smoothing) -> the task: train_step, predict,
                 evaluate, agreement, and the names `score` of the metric that stands for a network and `reported` of all
    stream       (training part, batch size, seed) -> batches to train on
    in_order     (part, batch size) -> (images, ..), all pictures of a part
    some         (part, count, seed) -> so many of its pictures
    of_size      (part, (height, width)) -> its pictures that a network sees at that size
    sizes        usual input size of a network from the literature by data, and of any other data under ""
    compared     pictures on which fake-quant and INT8 are compared end to end
    defaults     of the flags of retraining that a user leaves out
    """

    data: tuple[str, ...]
    num_classes: Callable[[str, Any], int]
    load: Callable[[Request], Any]
    training: Callable[[Request], Any]
    noise: Callable[[int, int], Any]
    task: Callable[[str, int, tuple[str, ...], Any, float], Any]
    stream: Callable[[Any, int, int], Any]
    in_order: Callable[[Any, int], Iterator[tuple[Tensor, ...]]]
    some: Callable[[Any, int | None, int], Any]
    of_size: Callable[[Any, tuple[int, int]], Any]
    sizes: Mapping[str, int]
    compared: int
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def size(self, data: str) -> int:
        return self.sizes.get(data, self.sizes[""])


def _classified(load: Callable) -> Callable[[Request], Any]:
    def read(request: Request) -> Any:
        if request.bad_data != "refuse":
            raise UserError("bad_data: pictures to classify are refused where one cannot be read; leave --bad-data out")
        return load(request.data, request.data_root, request.input_size, request.seed, request.train_images, request.download)

    return read


def _labelled_noise(input_size: int, count: int) -> pictures.Memory:
    size = pictures.stored_size(input_size)
    images = torch.randint(256, (count, 3, size, size), generator=pictures.generator(0), dtype=torch.uint8)
    return pictures.Memory(images, torch.zeros(count, dtype=torch.int64), input_size, torch.zeros(3), torch.ones(3))


def _sampled(load: Callable) -> Callable[[Request], samples.Data]:
    def read(request: Request) -> samples.Data:
        if request.download:
            raise UserError("download: only CIFAR can be fetched; get the data set and name its folder with --data-root")
        wanted = (request.data, request.data_root, request.input_size, request.seed, request.train_images, request.workers)
        return load(*wanted, request.bad_data)

    return read


def _noise(target: Callable[[int], samples.Target]) -> Callable[[int, int], samples.Samples]:
    return lambda input_size, count: samples.noise(input_size, count, target(input_size))


def _classification(name: str, input_size: int, classes: tuple[str, ...], train: Any, label_smoothing: float) -> Classification:
    return Classification(len(classes), label_smoothing)


def _detection(name: str, input_size: int, classes: tuple[str, ...], train: Any, label_smoothing: float) -> Detection:
    _refuse_smoothing(label_smoothing)
    return Detection(detectors.machinery(name, len(classes), input_size), classes)


def _segmentation(name: str, input_size: int, classes: tuple[str, ...], train: Any, label_smoothing: float) -> Segmentation:
    _refuse_smoothing(label_smoothing)
    return Segmentation(classes, None if train is None else masks.class_weights(train))


def _refuse_smoothing(label_smoothing: float) -> None:
    if label_smoothing:
        raise UserError("label_smoothing: only classification has it; leave it out")


def _no_boxes(size: int) -> dict[str, Tensor]:
    none = torch.zeros(0, dtype=torch.bool)
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "difficult": none, "crowd": none,
            "size": torch.tensor([size, size]), "number": torch.tensor(0)}  # fmt: skip


KINDS = {
    "classification": Kind(
        data=tasks.data.DATA,
        num_classes=tasks.data.num_classes,
        load=_classified(tasks.data.classification),
        training=_classified(tasks.data.training_pictures),
        noise=_labelled_noise,
        task=_classification,
        stream=pictures.Stream, in_order=pictures.in_order, some=pictures.subset, of_size=lambda part, size: part,
        sizes={"scenes": 32, "cifar10": 32, "cifar100": 32, "": 224},
        compared=1000,
        defaults={"epochs": 12, "batch_size": 64, "decay": "cosine"},
    ),
    "detection": Kind(
        data=boxes.DATA,
        num_classes=lambda data, root: len(boxes.class_names(data, root)),
        load=_sampled(boxes.detection),
        training=lambda request: _sampled(boxes.detection)(request).train,
        noise=_noise(_no_boxes),
        task=_detection,
        stream=samples.Stream, in_order=samples.in_order, some=samples.some_of, of_size=samples.of_size,
        sizes={"scenes": 160, "": 300},
        compared=100,
        defaults={"epochs": 60, "batch_size": 16, "decay": "cosine"},
    ),
    "segmentation": Kind(
        data=masks.DATA,
        num_classes=lambda data, root: len(masks.class_names(data, root)),
        load=_sampled(masks.segmentation),
        training=lambda request: _sampled(masks.segmentation)(request).train,
        noise=_noise(lambda size: torch.zeros(size, size, dtype=torch.uint8)),
        task=_segmentation,
        stream=samples.Stream, in_order=samples.in_order, some=samples.some_of, of_size=samples.of_size,
        sizes={"scenes": 96, "": 320},
        compared=100,
        defaults={"epochs": 60, "batch_size": 8, "decay": "poly"},
    ),
}  # fmt: skip
