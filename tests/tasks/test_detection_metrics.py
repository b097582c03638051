"""Average precisions against answers worked out on paper."""

import pytest
import torch

from common.errors import UserError
from tasks.detection_metrics import average_precisions

FAR = [500.0, 500.0, 510.0, 510.0]  # where nothing is


def truth(boxes, labels=None, difficult=(), crowd=()):
    flags = {
        name: torch.tensor([i in chosen for i in range(len(boxes))], dtype=torch.bool)
        for name, chosen in (("difficult", difficult), ("crowd", crowd))
    }
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
    } | flags


def found(boxes, scores, labels=None):
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
    }


def square(number, side=20.0):
    """Squares that lie apart."""
    return [40.0 * number, 0.0, 40.0 * number + side, side]


def judged(boxes, truths):
    return {name: round(value, 6) for name, value in average_precisions(boxes, truths).items()}


def all_three(value):
    return {name: pytest.approx(value, abs=1e-6) for name in ("ap", "ap50", "voc_ap")}


TRUTHS = [truth([square(0), square(1), square(3)], [0, 1, 0]), truth([]), truth([square(2)], [2])]


def test_perfect_boxes_score_one():
    boxes = [found(t["boxes"].tolist(), [0.4] * len(t["boxes"]), t["labels"].tolist()) for t in TRUTHS]
    assert judged(boxes, TRUTHS) == all_three(1.0)


def test_wrong_places_wrong_classes_and_nothing_at_all_score_zero():
    other = [found(t["boxes"].tolist(), [0.9] * len(t["boxes"]), ((t["labels"] + 1) % 3).tolist()) for t in TRUTHS]
    for boxes in ([found([FAR], [0.9])] * 3, other, [found([], [])] * 3):
        assert judged(boxes, TRUTHS) == all_three(0.0)


def test_right_boxes_in_the_wrong_picture_score_zero():
    truths = [truth([square(0)]), truth([square(1)])]
    assert judged([found([square(1)], [0.9]), found([square(0)], [0.8])], truths) == all_three(0.0)


# Four objects; by falling score: right, wrong, right, right, the first once more. Recall and precision after each: 1/4
# 1, 1/4 1/2, 2/4 2/3, 3/4 3/4, 3/4 3/5. At recalls up to 1/4 the best precision from there on is 1, up to 3/4 it is
# 3/4, beyond it there is none.
EXAMPLE = found([square(0), FAR, square(1), square(2), square(0)], [0.9, 0.8, 0.7, 0.6, 0.5])
FOUR = truth([square(i) for i in range(4)])


def test_a_worked_example():
    scores = judged([EXAMPLE], [FOUR])
    # recalls 0, .1, .2 and .3 .. .7 of eleven
    assert scores["voc_ap"] == pytest.approx((3 * 1 + 5 * 0.75) / 11, abs=1e-6)
    # recalls 0 .. .25 and .26 .. .75 of 101
    assert scores["ap50"] == pytest.approx((26 * 1 + 50 * 0.75) / 101, abs=1e-6)
    assert scores["ap"] == scores["ap50"]  # the boxes are exact


def test_the_example_spread_over_pictures_scores_the_same():
    truths = [truth([square(0), square(3)]), truth([square(1)]), truth([]), truth([square(2)])]
    boxes = [
        found([square(0), square(0)], [0.9, 0.5]),
        found([square(1)], [0.7]),
        found([FAR], [0.8]),
        found([square(2)], [0.6]),
    ]
    assert judged(boxes, truths) == judged([EXAMPLE], [FOUR])
    assert judged(boxes[::-1], truths[::-1]) == judged(boxes, truths)


def test_coco_ap_is_the_mean_over_ten_least_overlaps():
    shifted = [0.0, 0.0, 20.0, 14.6]  # IoU 0.73 with the square: right at 0.5, 0.55, 0.6, 0.65, 0.7
    assert judged([found([shifted], [0.9])], [truth([square(0)])]) == {"ap": 0.5, "ap50": 1.0, "voc_ap": 1.0}
    nearly = [0.0, 0.0, 20.0, 9.8]  # IoU 0.49
    assert judged([found([nearly], [0.9])], [truth([square(0)])]) == all_three(0.0)


def test_the_order_in_which_boxes_come_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        order = torch.randperm(5, generator=generator)
        assert judged([{name: value[order] for name, value in EXAMPLE.items()}], [FOUR]) == judged([EXAMPLE], [FOUR])


def test_duplicates_are_wrong():
    two = truth([square(0), square(1)])
    once, twice = found([square(0), square(1)], [0.9, 0.7]), found([square(0), square(0), square(1)], [0.9, 0.8, 0.7])
    assert judged([once], [two]) == all_three(1.0)
    scores = judged([twice], [two])  # precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1
    assert scores["voc_ap"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11, abs=1e-6)
    assert scores["ap50"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101, abs=1e-6)


def test_difficult_objects_are_neither_missed_nor_wrong():
    there = truth([square(0), square(1)], difficult=[1])
    assert judged([found([square(0)], [0.9])], [there]) == all_three(1.0)
    assert judged([found([square(1), square(0)], [0.95, 0.9])], [there]) == all_three(1.0)
    # it is not there at all
    assert judged([found([square(1), square(0)], [0.95, 0.9])], [truth([square(0)])])["voc_ap"] == 0.5


def test_to_find_a_difficult_object_or_a_crowd_is_no_success():
    for flag in ("difficult", "crowd"):
        there = truth([square(0), square(1), square(2)], **{flag: [2]})
        assert judged([found([square(2)], [0.9])], [there]) == all_three(0.0)
        scores = judged([found([square(2), square(0)], [0.9, 0.8])], [there])  # half of the objects, nothing wrong
        assert scores["voc_ap"] == pytest.approx(6 / 11, abs=1e-6) and scores["ap50"] == pytest.approx(
            51 / 101, abs=1e-6
        )


def test_crowds_excuse_any_number_of_boxes_that_lie_in_them():
    there = truth([square(0), [100.0, 0.0, 300.0, 200.0]], crowd=[1])
    inside = found([[110.0, 10.0, 130.0, 30.0], [150.0, 10.0, 170.0, 30.0], square(0)], [0.95, 0.94, 0.9])
    assert judged([inside], [there]) == all_three(1.0)


def test_an_object_in_a_crowd_is_found_and_the_crowd_excuses_only_what_is_left():
    there = truth([square(0), [0.0, 0.0, 200.0, 200.0]], crowd=[1])
    near = [0.0, 0.0, 20.0, 19.0]  # IoU 0.95 with the object; all of it lies in the crowd
    scores = judged([found([near], [0.9])], [there])
    assert scores["voc_ap"] == scores["ap50"] == 1.0
    # once more is excused, outside is wrong
    again = found([near, near, [300.0, 0.0, 320.0, 20.0], near], [0.9, 0.8, 0.7, 0.6])
    assert judged([again], [there])["voc_ap"] == 1.0
    outside_first = found([[300.0, 0.0, 320.0, 20.0], near], [0.9, 0.8])
    assert judged([outside_first], [there])["voc_ap"] == 0.5


def test_classes_without_objects_are_left_out():
    boxes, there = [found([square(0), FAR], [0.8, 0.9], [0, 3])], [truth([square(0), square(5)], [0, 2], difficult=[1])]
    assert judged(boxes, there) == all_three(1.0)


def test_classes_count_alike_however_many_objects_they_have():
    there = [truth([square(i) for i in range(9)], [0] * 8 + [1])]
    assert judged([found([square(8)], [0.9], [1])], there) == all_three(0.5)


def test_pictures_without_any_object_cannot_be_scored():
    with pytest.raises(UserError, match="have no objects"):
        average_precisions([found([FAR], [0.9])], [truth([square(0)], difficult=[0])])


def test_nothing_is_printed(capsys):
    judged([EXAMPLE], [FOUR])
    assert capsys.readouterr() == ("", "")
