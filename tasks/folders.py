"""What the readers of pairs and of unpaired images share: folders, a look at them beforehand, crops to train on."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2
from tqdm import tqdm

from common.errors import UserError
from tasks.samples import NAMED, Bad, BadSample, Data, Samples, Source, normalise

SPLITS = ("train", "val", "test")
SCENES = {"train": 2_000, "val": 200, "test": 400}  # each split is a world (a seed) of its own
# of the pictures that a generator makes; to other parts of the project these are its classes
CHANNELS = ("red", "green", "blue")
# what training pictures are resized to, to the size of the crop taken from them (arXiv:1611.07004, 1703.10593)
ENLARGED = 286 / 256


def pictures_in(folder: Path, layout: str) -> tuple[str, ...]:
    """The picture files of a folder, sorted; links are followed.

    Raises UserError, which says what `layout` is wanted.
    """
    if not folder.is_dir():
        raise UserError(f"data_root: there is no folder {folder}; {layout}")
    try:
        files = (path for path in folder.iterdir() if not path.name.startswith("."))  # some systems leave hidden ones
        found = tuple(sorted(str(path) for path in files if path.suffix.lower() in IMG_EXTENSIONS))
    except OSError as error:
        raise UserError(f"data_root: {folder} cannot be read ({error.strerror or error})") from error
    if not found:
        raise UserError(f"data_root: {folder} holds no pictures ({', '.join(IMG_EXTENSIONS)}); {layout}")
    return found


@dataclass(frozen=True)
class PictureFiles:
    """Files by number, named by their paths."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]


def refuse_few(train_images: int | None) -> None:
    """Raises UserError for fewer than two."""
    if train_images is not None and train_images < 2:
        raise UserError(f"train_images: {train_images}, must be at least 2")


# ---- what pictures go through ------------------------------------------------------------------------------


def enlarged(input_size: int) -> int:
    """The side that training pictures are resized to before they are cropped."""
    return round(ENLARGED * input_size)


def augmentation(input_size: int) -> v2.Compose:
    """Images (.., 3, H, W), a batch at once, squeezed into a square, cropped at random, mirrored half of the time."""
    side = enlarged(input_size)
    return v2.Compose([v2.Resize([side, side]), v2.RandomCrop(input_size), v2.RandomHorizontalFlip()])


@dataclass(frozen=True)
class Together:
    """The same random change of both pictures, which are of one size."""

    change: v2.Transform

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        image, target = self.change(torch.stack((image, target)))
        return image, target


@dataclass(frozen=True)
class Apart:
    """A change of each picture, with random numbers of its own."""

    change: v2.Transform

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self.change(image), self.change(target)


def samples_of(source: Source, input_size: int, how: type[Together] | type[Apart], workers: int, bad: Bad) -> Samples:
    """All of a source: augmented `how` to train on, else squeezed into a square as they are."""
    fit = Apart(v2.Resize([input_size, input_size]))
    return Samples(
        source, torch.arange(len(source)), input_size, fit, how(augmentation(input_size)), workers=workers, bad=bad
    )


def centred(parts: dict[str, Samples]) -> Data:
    """The splits as data whose pictures lie in [-1, 1]."""
    half = torch.full((3,), 0.5)
    return normalise(Data(parts["train"], parts["val"], parts.get("test"), CHANNELS), half, half)


# ---- looking at files beforehand ---------------------------------------------------------------------------


def checked(samples: Samples) -> Samples:
    """The samples without those that a first look, source.look(index), finds bad.

    Raises UserError where bad ones are refused.
    """
    indices = samples.indices.tolist()
    with ThreadPoolExecutor() as pool:
        looks = pool.map(partial(_fault, samples.source), indices)
        found = list(tqdm(looks, desc="checking pictures", total=len(indices), unit="img", delay=2, leave=False))
    bad = {samples.source.name(index): fault.why for index, fault in zip(indices, found, strict=True) if fault}
    words = [f"{name}: {why}" for name, why in bad.items()]
    if words and samples.bad == "refuse":
        more = f"; and {len(words) - NAMED} more" if len(words) > NAMED else ""
        raise UserError(
            f"data_root: {len(words)} of {len(samples)} pictures cannot be used: {'; '.join(words[:NAMED])}{more}; "
            "mend or remove them, or add --bad-data skip"
        )
    samples.note(bad)
    if len(words) == len(samples):
        raise UserError(f"data_root: none of the {len(samples)} pictures can be used, the first for this: {words[0]}")
    return samples.select(torch.tensor([fault is None for fault in found]).nonzero()[:, 0])


def _fault(source: Source, index: int) -> BadSample | None:
    try:
        source.look(index)
    except BadSample as error:
        return error
    return None
