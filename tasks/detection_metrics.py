"""How good found boxes are: COCO's AP (by pycocotools) and the 11-point AP of Pascal VOC 2007.

    found   of each picture {boxes (K, 4) x0 y0 x1 y1, scores (K,), labels (K,)}
    truths  of each picture {boxes (K, 4), labels (K,), difficult (K,) bool, crowd (K,) bool}

Boxes are in pixels of the pictures as they are in their files. Difficult objects and crowds are neither to be found nor
wrong to find.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from common.errors import UserError

Boxes = Sequence[Mapping[str, Tensor]]
PER_CLASS = 100  # boxes of a class in a picture that COCO looks at, those with the highest scores
MATCHED = 0.5  # least IoU with an object of a box that found it, for VOC
RECALLS = np.linspace(0, 1, 11)  # at which VOC looks at the precision


def average_precisions(found: Boxes, truths: Boxes) -> dict[str, float]:
    """ap (COCO's, over IoU 0.5 to 0.95), ap50 (over IoU 0.5) and voc_ap in [0, 1].

    Each is the mean over the classes that have objects. Raises UserError where no image has an object.
    """
    found, truths = [
        [{name: value.numpy(force=True) for name, value in row.items()} for row in rows] for rows in (found, truths)
    ]
    if not any((~_ignored(truth)).any() for truth in truths):
        raise UserError(
            "data_root: the pictures to evaluate on have no objects, so that no average precision can be said"
        )
    return coco_ap(found, truths) | {"voc_ap": voc_ap(found, truths)}


def coco_ap(found: Sequence[Mapping[str, np.ndarray]], truths: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """ap and ap50 as pycocotools computes them."""
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of each of its steps
        evaluation = _Evaluation(_as_coco(truths), _as_coco(found), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [PER_CLASS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # (IoU, recall, class); -1 for a class without objects
    return {"ap": float(precision[precision > -1].mean()), "ap50": float(precision[0][precision[0] > -1].mean())}


class _Evaluation(COCOeval):
    """COCO's rules, which know crowds, with difficult objects besides: each excuses one box that finds it."""

    def _prepare(self) -> None:
        super()._prepare()
        for truth in (truth for row in self._gts.values() for truth in row):
            truth["ignore"] = truth["iscrowd"] or truth["difficult"]


def _as_coco(pictures: Sequence[Mapping[str, np.ndarray]]) -> COCO:
    """Objects, or boxes that were found, as pycocotools holds them: numbers from 1, boxes x, y, width, height."""
    rows = []
    for number, picture in enumerate(pictures):
        sides = picture["boxes"][:, 2:] - picture["boxes"][:, :2]
        columns = {
            "category_id": picture["labels"],
            "bbox": np.concatenate([picture["boxes"][:, :2], sides], 1),
            "area": sides.prod(1),
            **{name: picture[name] for name in ("scores", "difficult") if name in picture},
            "iscrowd": picture.get("crowd", np.zeros(len(sides))).astype(int),
        }
        values = [dict(zip(columns, row)) for row in zip(*(column.tolist() for column in columns.values()))]
        rows += [
            {"id": len(rows) + i, "image_id": number, "score": row.pop("scores", 1.0)} | row
            for i, row in enumerate(values, 1)
        ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(pictures))],
        "annotations": rows,
        "categories": [{"id": label} for label in sorted({row["category_id"] for row in rows})],
    }
    coco.createIndex()
    return coco


def voc_ap(found: Sequence[Mapping[str, np.ndarray]], truths: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Mean over classes of the 11-point AP: at each recall 0, 0.1, ..

    1 the best precision to be had at this recall or a higher one.
    """
    labels = {int(label) for truth in truths for label in truth["labels"][~_ignored(truth)]}
    return float(np.mean([_class_ap(label, found, truths) for label in sorted(labels)]))


def _class_ap(label: int, found, truths) -> float:
    scores, right, counted, objects = [], [], [], 0
    for boxes, truth in zip(found, truths, strict=True):
        mine, there = boxes["labels"] == label, truth["labels"] == label
        order = np.argsort(-boxes["scores"][mine], kind="stable")
        ignored = _ignored(truth)[there]
        hits, counts = _judged(boxes["boxes"][mine][order], truth["boxes"][there], ignored, truth["crowd"][there])
        scores.append(boxes["scores"][mine][order])
        right.append(hits)
        counted.append(counts)
        objects += int((~ignored).sum())
    scores, right, counted = (np.concatenate(column) for column in (scores, right, counted))
    order = np.argsort(-scores, kind="stable")
    right = right[order][counted[order]].cumsum()
    recall, precision = right / objects, right / np.arange(1, len(right) + 1)
    return float(np.mean([precision[recall >= least - 1e-9].max(initial=0.0) for least in RECALLS]))


def _judged(
    boxes: np.ndarray, objects: np.ndarray, ignored: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of boxes of a class in a picture, best first: which found an object, and which count at all.

    A box belongs to the object that it overlaps most; an object is found once, what finds it again is wrong. A crowd
    excuses what then is still wrong: the overlap with it is over the box's own area, so that it would beat the very
    object inside it that the box is on.
    """
    right, counted, taken = np.zeros(len(boxes), bool), np.ones(len(boxes), bool), np.zeros(len(objects), bool)
    if len(boxes) and len(objects):
        overlaps = mask.iou(_sides(boxes), _sides(objects), crowd.astype(np.uint8))
        in_crowd = np.where(crowd, overlaps, 0).max(1) >= MATCHED
        single = np.where(crowd, 0, overlaps)
        for i, j in enumerate(single.argmax(1)):
            if single[i, j] < MATCHED or taken[j]:
                counted[i] = not in_crowd[i]
            elif ignored[j]:
                counted[i] = False
            else:
                right[i] = taken[j] = True
    return right, counted


def _sides(boxes: np.ndarray) -> np.ndarray:
    """x, y, width, height, as pycocotools wants it."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).astype(np.float64)


def _ignored(truth: Mapping[str, np.ndarray]) -> np.ndarray:
    return truth["difficult"] | truth["crowd"]
