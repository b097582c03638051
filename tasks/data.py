"""Where classification pictures come from: the embedded scenes, folders of pictures, CIFAR.

The validation part is separate from training and the test part chooses nothing: it is only ever reported.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.errors import UserError
from tasks import scenes
from tasks.pictures import Lazy, Memory, Pictures, balanced, fit_square, stored_size, subset
from tasks.samples import Data, check_wanted, normalise

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

DATA = ("scenes", "imagefolder", "cifar10", "cifar100")
# each split is a world (a seed) of its own, the same in every run
SCENES = {"train": 20_000, "val": 2_000, "test": 4_000}
VAL_SHARE = 0.1  # of train, where a data set brings no validation part
MEMORY_BYTES = 1_500_000_000  # a split that is larger when decoded is read as needed
STATISTICS = 1024  # training pictures that mean and std are computed from


ClassificationData = Data  # whose parts are Pictures


@dataclass(frozen=True)
class _Source:
    """One split before decoding: read(key) gives a picture for each of the keys."""

    name: str
    read: Callable[[int], Image.Image]
    keys: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "_Source":
        return replace(self, keys=self.keys[indices], labels=self.labels[indices])


def classification(
    data: str = "scenes",
    data_root: str | os.PathLike | None = None,
    input_size: int = 32,
    seed: int = 0,
    train_images: int | None = None,
    download: bool = False,
) -> ClassificationData:
    """Pictures, labels and class names of one of DATA, normalised by the mean and std of the training part.

    `seed` decides what is split off (a validation part where the data has none; the `train_images` kept, balanced over
    the classes). Raises UserError for what a user can mend: a missing folder, an unreadable picture, unlike splits.
    """
    sources, classes = _sources(data, data_root, input_size, seed, train_images, download)
    parts = {name: _decode(source, input_size) for name, source in sources.items()}
    data = ClassificationData(parts["train"], parts["val"], parts.get("test"), tuple(classes))
    return normalise(data, *_statistics(data.train))


def training_pictures(
    data: str = "scenes",
    data_root: str | os.PathLike | None = None,
    input_size: int = 32,
    seed: int = 0,
    train_images: int | None = None,
    download: bool = False,
) -> Pictures:
    """The training part of `classification` alone: no held-out picture is opened."""
    sources, _ = _sources(data, data_root, input_size, seed, train_images, download)
    pictures = _decode(sources["train"], input_size)
    mean, std = _statistics(pictures)
    return replace(pictures, mean=mean, std=std)


def _sources(data, data_root, input_size, seed, train_images, download) -> tuple[dict[str, "_Source"], Sequence[str]]:
    """Every split before decoding, the training part cut to `train_images`, and the class names."""
    check_wanted(data, data_root, DATA)
    if train_images is not None and train_images < 2:
        raise UserError(f"train_images: {train_images}, must be at least 2")
    if data == "scenes":
        sources, classes = _scene_sources(input_size), scenes.CLASSES
    elif data == "imagefolder":
        sources, classes = _folder_sources(Path(data_root))
    else:
        sources, classes = _cifar_sources(data, Path(data_root), download)
    if "val" not in sources:
        sources |= _split(sources["train"], seed)
    sources["train"] = subset(sources["train"], train_images, seed)
    return sources, classes


def num_classes(data: str = "scenes", data_root: str | os.PathLike | None = None) -> int:
    """How many classes a data set has, without decoding a picture. Raises UserError as `classification` does."""
    check_wanted(data, data_root, DATA)
    if data == "imagefolder":
        return len(_folder(Path(data_root) / "train").classes)
    return {"scenes": len(scenes.CLASSES), "cifar10": 10, "cifar100": 100}[data]


def _scene_sources(input_size: int) -> dict[str, _Source]:
    size = stored_size(input_size)
    return {
        name: _source(name, _Painter(world, size), scenes.labels(world, np.arange(count)))
        for world, (name, count) in enumerate(SCENES.items())
    }


@dataclass(frozen=True)
class _Painter:
    """Reads scenes, singly or many at a time."""

    world: int
    size: int

    def __call__(self, key: int) -> Image.Image:
        return Image.fromarray(scenes.scene(self.world, key, self.size).image)

    def many(self, keys: np.ndarray) -> np.ndarray:
        return scenes.images(self.world, keys, self.size)


def _folder_sources(root: Path) -> tuple[dict[str, _Source], Sequence[str]]:
    splits = {
        name: _folder(root / name) for name in ("train", "val", "test") if name == "train" or (root / name).is_dir()
    }
    classes = splits["train"].classes
    for name, split in splits.items():
        if split.classes != classes:
            unlike = ", ".join(sorted(set(classes) ^ set(split.classes)))
            raise UserError(
                f"data_root: {root / name} and {root / 'train'} must have the same class folders; only one has {unlike}"
            )
    return {
        name: _source(name, _FileReader([path for path, _ in split.samples]), split.targets)
        for name, split in splits.items()
    }, classes


def _source(name: str, read: Callable[[int], Image.Image], labels: Sequence[int]) -> _Source:
    return _Source(name, read, torch.arange(len(labels)), torch.as_tensor(labels))


def _folder(path: Path) -> "ImageFolder":
    from torchvision.datasets import ImageFolder  # a slow import, not needed for scenes

    if not path.is_dir():
        raise UserError(f"data_root: there is no folder {path}; an image folder holds {path.name}/<class>/<picture>")
    if not any(entry.is_dir() for entry in path.iterdir()):
        raise UserError(f"data_root: {path} holds no class folders; put pictures into {path}/<class>/<picture>")
    try:
        return ImageFolder(path)
    except FileNotFoundError as error:  # a class folder without pictures
        raise UserError(f"data_root: {path}: {error}") from error


@dataclass(frozen=True)
class _FileReader:
    paths: list[str]

    def __call__(self, key: int) -> Image.Image:
        try:
            with Image.open(self.paths[key]) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"data_root: {self.paths[key]} cannot be read as a picture ({error}); mend or remove the file"
            ) from error


def _cifar_sources(data: str, root: Path, download: bool) -> tuple[dict[str, _Source], Sequence[str]]:
    from torchvision.datasets import CIFAR10, CIFAR100  # a slow import, not needed for scenes

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[data]
    try:
        splits = {"train": kind(root, train=True, download=download), "test": kind(root, train=False)}
    except RuntimeError as error:
        raise UserError(
            f"data_root: {root} does not hold torchvision's {data} ({kind.base_folder}); "
            "name the folder that does, or add --download to fetch it there"
        ) from error
    except OSError as error:
        raise UserError(f"data_root: {data} could not be fetched into {root}: {error}") from error
    return {name: _source(name, _ArrayReader(split.data), split.targets) for name, split in splits.items()}, splits[
        "train"
    ].classes


@dataclass(frozen=True)
class _ArrayReader:
    pictures: np.ndarray  # (N, H, W, 3) uint8

    def __call__(self, key: int) -> Image.Image:
        return Image.fromarray(self.pictures[key])


def _split(source: _Source, seed: int) -> dict[str, _Source]:
    """Train and a validation part of VAL_SHARE that is taken out of it, balanced over the classes."""
    fewest = Counter(source.labels.tolist()).most_common()[-1][1]
    if fewest < 2:
        raise UserError(
            "data_root: a class of train has a single picture, so that "
            "no validation part can be split off; add a folder val"
        )
    chosen = balanced(source.labels, max(1, round(len(source) * VAL_SHARE)), seed)
    rest = torch.ones(len(source), dtype=torch.bool)
    rest[chosen] = False
    return {"train": source.select(rest.nonzero()[:, 0]), "val": replace(source.select(chosen), name="val")}


def _decode(source: _Source, input_size: int) -> Pictures:
    """Memory where the decoded split is of moderate size, else Lazy. Mean 0 and std 1 for now."""
    size = stored_size(input_size)
    common = {"labels": source.labels, "input_size": input_size, "mean": torch.zeros(3), "std": torch.ones(3)}
    if len(source) * 3 * size * size > MEMORY_BYTES:
        return Lazy(source.read, source.keys, **common)

    def piece(keys: np.ndarray) -> np.ndarray:
        if isinstance(source.read, _Painter):
            return source.read.many(keys).transpose(0, 2, 3, 1)
        return np.stack([fit_square(source.read(int(key)), size) for key in keys])

    images = np.empty((len(source), size, size, 3), np.uint8)
    pieces = np.array_split(source.keys.numpy(), max(1, len(source) // 128))
    start = 0
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(images), desc=f"decoding {source.name}", unit="img", delay=1, leave=False) as bar,
    ):
        for decoded in pool.map(piece, pieces):
            images[start : start + len(decoded)] = decoded
            start += len(decoded)
            bar.update(len(decoded))
    return Memory(torch.from_numpy(images).permute(0, 3, 1, 2), **common)


def _statistics(pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1] over evenly spaced pictures."""
    count = min(STATISTICS, len(pictures))
    pixels = pictures.pixels(torch.linspace(0, len(pictures) - 1, count).long()).double().div_(255)
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3))
    return mean.float(), std.float().clamp(min=1e-3)
