"""The tasks side by side: what retraining, shipping and judging a network need to know of each."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import tasks.data
from common.errors import UserError
from tasks import boxes, masks, pairs, pictures, samples, unpaired
from tasks.classification import Classification
from tasks.cyclegan import CycleGan
from tasks.detection import Detection
from tasks.folders import CHANNELS
from tasks.judge import Judge
from tasks.pix2pix import Pix2Pix
from tasks.rival import Rival
from tasks.samples import Bad
from tasks.segmentation import Segmentation
from zoo import detectors, generators
from zoo.generators import discriminators


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
    direction: pairs.Direction = "a_to_b"


@dataclass(frozen=True)
class Choices:
    """What else a user chooses about a task; see retrain.RetrainConfig. For judging and shipping the defaults do."""

    label_smoothing: float = 0.0
    discriminator: str | None = None
    judge: Judge | None = None
    seed: int = 0


@dataclass(frozen=True)
class Likeness:
    """How much alike a network that has learned its task is as fake-quant and as INT8.

    They differ by single steps, which turn only what lies between two answers.

    least        what the task's `agreement` ought to be at least
    amount       an agreement as a text
    words        what it is, in words, with {} for that text
    largest_gap  of the task's score on a held-out split, to either side
    gap_words    such a gap, in words
    """

    least: float
    amount: Callable[[float], str]
    words: str
    largest_gap: float
    gap_words: Callable[[float], str]

    def says(self, agreement: float) -> str:
        return self.words.format(self.amount(agreement))


ANSWERS = Likeness(0.995, "{:.2%}".format, "fake-quant's answer for {}", 0.002, lambda gap: f"{100 * gap:.2f} points")
PICTURES = Likeness(40.0, "{:.1f} dB".format, "{} PSNR to what fake-quant makes", 0.1, "{:.3f}".format)


@dataclass(frozen=True)
class Kind:
    """One task.

    data         layouts that it reads
    num_classes  (data, data_root) -> how many, without reading a picture
    load         a Request -> data with train, val, test, classes, held_out, mean, std and to(device)
    training     a Request -> the training part alone
    noise        (input size, count) -> so many pictures of noise, for whoever has no others
    task         (network's name, its input size, classes, training part or None, Choices) -> the task: train_step,
                 predict, evaluate, agreement, and the names `score` of the metric that stands for a network and
                 `reported` of all
    stream       (training part, batch size, seed) -> batches to train on
    in_order     (part, batch size) -> (images, ..), all pictures of a part
    some         (part, count, seed) -> so many of its pictures
    of_size      (part, (height, width)) -> its pictures that a network sees at that size
    sizes        usual input size of a network from the literature by data, and of any other data under ""
    compared     pictures on which fake-quant and INT8 are compared end to end
    likeness     how alike these are to be
    shows        whether its networks make pictures, to be looked at
    defaults     of the flags of retraining that a user leaves out
    """

    data: tuple[str, ...]
    num_classes: Callable[[str, Any], int]
    load: Callable[[Request], Any]
    training: Callable[[Request], Any]
    noise: Callable[[int, int], Any]
    task: Callable[[str, int, tuple[str, ...], Any, Choices], Any]
    stream: Callable[[Any, int, int], Any]
    in_order: Callable[[Any, int], Iterator[tuple[Tensor, ...]]]
    some: Callable[[Any, int | None, int], Any]
    of_size: Callable[[Any, tuple[int, int]], Any]
    sizes: Mapping[str, int]
    compared: int
    likeness: Likeness = ANSWERS
    shows: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def size(self, data: str) -> int:
        return self.sizes.get(data, self.sizes[""])


def _classified(load: Callable) -> Callable[[Request], Any]:
    def read(request: Request) -> Any:
        if request.bad_data != "refuse":
            raise UserError("bad_data: pictures to classify are refused where one cannot be read; leave --bad-data out")
        return load(
            request.data, request.data_root, request.input_size, request.seed, request.train_images, request.download
        )

    return read


def _labelled_noise(input_size: int, count: int) -> pictures.Memory:
    size = pictures.stored_size(input_size)
    images = torch.randint(256, (count, 3, size, size), generator=pictures.generator(0), dtype=torch.uint8)
    return pictures.Memory(images, torch.zeros(count, dtype=torch.int64), input_size, torch.zeros(3), torch.ones(3))


def _sampled(load: Callable, directed: bool = False) -> Callable[[Request], samples.Data]:
    def read(request: Request) -> samples.Data:
        if request.download:
            raise UserError(
                "download: only CIFAR can be fetched; get the data set and name its folder with --data-root"
            )
        if request.direction != "a_to_b" and not directed:
            raise UserError("direction: is for pix2pix; cyclegan learns both; leave it out")
        wanted = (
            request.data,
            request.data_root,
            request.input_size,
            request.seed,
            request.train_images,
            request.workers,
        )
        return load(*wanted, request.bad_data, **({"direction": request.direction} if directed else {}))

    return read


def _noise(target: Callable[[int], samples.Target]) -> Callable[[int, int], samples.Samples]:
    return lambda input_size, count: samples.noise(input_size, count, target(input_size))


def _classification(
    name: str, input_size: int, classes: tuple[str, ...], train: Any, choices: Choices
) -> Classification:
    return Classification(len(classes), choices.label_smoothing)


def _detection(name: str, input_size: int, classes: tuple[str, ...], train: Any, choices: Choices) -> Detection:
    return Detection(detectors.machinery(name, len(classes), input_size), classes)


def _segmentation(name: str, input_size: int, classes: tuple[str, ...], train: Any, choices: Choices) -> Segmentation:
    return Segmentation(classes, None if train is None else masks.class_weights(train))


def _pix2pix(name: str, input_size: int, classes: tuple[str, ...], train: Any, choices: Choices) -> Pix2Pix:
    return Pix2Pix(_rival(choices, input_size, ("pair",), 6, "vanilla", 0), choices.judge)


def _cyclegan(name: str, input_size: int, classes: tuple[str, ...], train: Any, choices: Choices) -> CycleGan:
    return CycleGan(_rival(choices, input_size, ("a", "b"), 3, "least_squares", POOL), choices.judge)


def _rival(
    choices: Choices, input_size: int, names: tuple[str, ...], channels: int, loss: str, pool: int
) -> Rival | None:
    if choices.discriminator is None:
        return None
    kind, _, norm = choices.discriminator.partition(":")
    discriminators.check_size(kind, input_size)
    return Rival(names, lambda: discriminators.build(kind, channels, norm or "batch"), loss, pool, choices.seed)


def _no_boxes(size: int) -> dict[str, Tensor]:
    none = torch.zeros(0, dtype=torch.bool)
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "difficult": none,
        "crowd": none,
        "size": torch.tensor([size, size]),
        "number": torch.tensor(0),
    }


POOL = 50  # pictures, arXiv:1703.10593, section 4
DISCRIMINATORS = tuple(
    f"{kind}{norm}" for kind in discriminators.NAMES for norm in ("", *(f":{norm}" for norm in generators.NORMS))
)
PUBLISHED = {
    "epochs": 200,
    "optimizer": "adam_gan",
    "weight_decay": 0.0,
    "warmup": 0.0,
    "clip_norm": 0.0,
    "decay": "second_half",
    "zero_residuals": False,
    "discriminator": "patch",
}


def _kind_of_translation(load: Callable, directed: bool, **rows: Any) -> Kind:
    read = _sampled(load, directed)
    return Kind(
        num_classes=lambda data, root: len(CHANNELS),
        load=read,
        training=lambda request: read(request).train,
        noise=_noise(lambda size: torch.zeros(3, size, size, dtype=torch.uint8)),
        stream=samples.Stream,
        in_order=samples.in_order,
        some=samples.some_of,
        of_size=samples.of_size,
        sizes={"scenes": 64, "": 256},
        compared=50,
        shows=True,
        **rows,
    )


KINDS = {
    "classification": Kind(
        data=tasks.data.DATA,
        num_classes=tasks.data.num_classes,
        load=_classified(tasks.data.classification),
        training=_classified(tasks.data.training_pictures),
        noise=_labelled_noise,
        task=_classification,
        stream=pictures.Stream,
        in_order=pictures.in_order,
        some=pictures.subset,
        of_size=lambda part, size: part,
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
        stream=samples.Stream,
        in_order=samples.in_order,
        some=samples.some_of,
        of_size=samples.of_size,
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
        stream=samples.Stream,
        in_order=samples.in_order,
        some=samples.some_of,
        of_size=samples.of_size,
        sizes={"scenes": 96, "": 320},
        compared=100,
        defaults={"epochs": 60, "batch_size": 8, "decay": "poly"},
    ),
    "pix2pix": _kind_of_translation(
        pairs.pairs,
        True,
        likeness=PICTURES,
        data=pairs.DATA,
        task=_pix2pix,
        defaults=PUBLISHED | {"batch_size": 8},
    ),
    "cyclegan": _kind_of_translation(
        # a distance has the unit of its features
        unpaired.unpaired,
        False,
        likeness=replace(PICTURES, largest_gap=math.inf),
        data=unpaired.DATA,
        task=_cyclegan,
        defaults=PUBLISHED | {"batch_size": 4},
    ),
}
