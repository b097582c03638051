"""Segmentation's loss and metrics: known answers, an independent count, equal for any division into batches."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU
from torchvision.tv_tensors import Mask

from common import distributed
from common.errors import UserError
from tasks import segmentation
from tasks.masks import IGNORE
from tasks.samples import Samples, Stream
from tasks.segmentation import Segmentation

CLASSES = ("sky", "sea", "sand", "tree")


@dataclass(frozen=True)
class Held:
    """Pictures and masks in memory."""

    images: list
    masks: list

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"picture {index}"

    def read(self, index: int):
        return self.images[index], Mask(self.masks[index])


def same(image, mask):
    return image, mask


def samples(images: list[Tensor], masks: list[Tensor]) -> Samples:
    return Samples(Held(images, masks), torch.arange(len(images)), 16, same, same)


def coded(masks: list[Tensor]) -> Samples:
    """Pictures that show the class of each pixel as 50 * class in all channels."""
    return samples([(50 * (mask % IGNORE)).to(torch.uint8).expand(3, -1, -1) for mask in masks], masks)


class Reads(nn.Module):
    """Sees the classes of `coded` pictures; gives one-hot logits, of another class where `wrong` says so."""

    def __init__(self, classes: int = len(CLASSES), wrong=None):
        super().__init__()
        self.classes, self.wrong = classes, wrong

    def forward(self, x: Tensor) -> Tensor:
        found = (x[:, 0] * 255 / 50).round().long()
        if self.wrong is not None:
            found = self.wrong(found)
        return F.one_hot(found, self.classes).permute(0, 3, 1, 2).float()


def random_masks(count: int = 5, shape=(12, 16), classes: int = 4, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, classes, (count, *shape), generator=draw, dtype=torch.uint8)
    masks[torch.rand(masks.shape, generator=draw) < 0.1] = IGNORE
    return list(masks)


def noisy(found: Tensor) -> Tensor:
    """Moves some classes on by one, by a rule that knows nothing of batches."""
    rows, columns = torch.meshgrid(torch.arange(found.shape[1]), torch.arange(found.shape[2]), indexing="ij")
    return torch.where((rows * 7 + columns * 3 + found.sum((1, 2), keepdim=True)) % 3 == 0, (found + 1) % 4, found)


# ---- metrics -----------------------------------------------------------------------------------------------


def test_a_perfect_prediction_scores_exactly_one_though_a_class_is_absent():
    masks = random_masks(classes=3)  # class 3 occurs nowhere
    task = Segmentation(CLASSES)
    assert task.evaluate(Reads(), coded(masks)) == {"miou": 1.0, "pixel_accuracy": 1.0, "pictures": 5}
    assert task.class_iou(Reads(), coded(masks)) == {"sky": 1.0, "sea": 1.0, "sand": 1.0}


def test_a_known_confusion_has_its_known_iou():
    mask = torch.tensor([[0, 0, 0, 0, 1, 1, 2, IGNORE]], dtype=torch.uint8)

    def wrong(found):
        return torch.tensor([[[0, 0, 0, 3, 1, 0, 2, 2]]])

    task = Segmentation(CLASSES)
    # sky: 3 right of 4, one more claimed: 3/5; sea: 1/2; sand: 1/1 (what is said of an ignored pixel does not count);
    # tree does not occur
    assert task.class_iou(Reads(wrong=wrong), coded([mask])) == {"sky": 0.6, "sea": 0.5, "sand": 1.0}
    assert task.evaluate(Reads(wrong=wrong), coded([mask])) == {
        "miou": 0.7,
        "pixel_accuracy": round(5 / 7, 6),
        "pictures": 1,
    }


def test_counts_are_of_the_whole_set_not_means_of_pictures():
    masks = [torch.tensor([[0, 0, 0, 1]], dtype=torch.uint8), torch.tensor([[1, 1, 1, 1]], dtype=torch.uint8)]

    def all_sea(found):
        return torch.ones_like(found)

    found = Segmentation(CLASSES).evaluate(Reads(wrong=all_sea), coded(masks))
    # a mean of pictures: (1/8 + 1) / 2
    assert found["miou"] == pytest.approx((0 + 5 / 8) / 2) and found["pixel_accuracy"] == 5 / 8


def by_hand(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    seen = truth != IGNORE
    truth, predicted = truth[seen], predicted[seen]
    ious = [((truth == c) & (predicted == c)).sum() / ((truth == c) | (predicted == c)).sum() for c in np.unique(truth)]
    return float(np.mean(ious)), float((truth == predicted).mean())


def test_metrics_agree_with_a_count_by_hand_and_with_torchmetrics():
    masks = random_masks(7)
    truth = torch.stack(masks)
    predicted = noisy((truth % IGNORE).long())
    found = Segmentation(CLASSES).evaluate(Reads(wrong=noisy), coded(masks))
    miou, accuracy = by_hand(truth.numpy(), predicted.numpy())
    assert 0.4 < miou < 0.8
    assert found["miou"] == pytest.approx(miou, abs=1e-6) and found["pixel_accuracy"] == pytest.approx(
        accuracy, abs=1e-6
    )
    jaccard = MulticlassJaccardIndex(4, average=None, ignore_index=IGNORE)(predicted, truth.long())
    ious = Segmentation(CLASSES).class_iou(Reads(wrong=noisy), coded(masks))
    assert list(ious.values()) == pytest.approx(jaccard.tolist(), abs=1e-6)
    seen = truth != IGNORE
    assert found["miou"] == pytest.approx(
        MeanIoU(4, input_format="index")(predicted[seen][None], truth[seen].long()[None]).item(), abs=1e-6
    )


def test_numbers_do_not_depend_on_batches_or_on_sizes_among_them(monkeypatch):
    masks = [
        mask
        for shape in ((12, 16), (16, 12), (12, 16), (9, 9))
        for mask in random_masks(3, shape, seed=sum(shape) + shape[0])
    ]
    found = []
    for size in (1, 2, 8):
        monkeypatch.setattr(segmentation, "EVALUATION_BATCH", size)
        found.append(Segmentation(CLASSES).evaluate(Reads(wrong=noisy), coded(masks)))
    assert found[0] == found[1] == found[2] and found[0]["pictures"] == 12
    truth = np.concatenate([mask.flatten().numpy() for mask in masks])
    predicted = np.concatenate([noisy((mask % IGNORE).long()[None]).flatten().numpy() for mask in masks])
    assert found[0]["miou"] == pytest.approx(by_hand(truth, predicted)[0], abs=1e-6)


def test_ranks_divide_the_pictures_and_have_the_numbers_of_one(monkeypatch):
    masks = random_masks(5)
    whole = Segmentation(CLASSES).evaluate(Reads(wrong=noisy), coded(masks))
    summed = []
    monkeypatch.setattr(distributed, "sum_", lambda tensor: summed.append(tensor.clone()) or tensor)
    for rank in range(2):
        monkeypatch.setattr(distributed, "share", lambda rank=rank: slice(rank, None, 2))
        Segmentation(CLASSES).evaluate(Reads(wrong=noisy), coded(masks))
    assert [int(part) for part in summed[1::2]] == [3, 2]
    totals = iter([summed[0] + summed[2], summed[1] + summed[3]])
    monkeypatch.setattr(distributed, "sum_", lambda tensor: next(totals))
    assert Segmentation(CLASSES).evaluate(Reads(wrong=noisy), coded(masks)) == whole


def test_logits_are_resized_to_the_mask_which_may_have_another_size_than_the_picture():
    class Halves(nn.Module):
        def forward(self, x):
            logits = torch.zeros(len(x), 4, 2, 4)
            logits[:, 0, :, :2] = logits[:, 1, :, 2:] = 1
            return logits

    masks = [torch.cat([torch.zeros(s, s), torch.ones(s, s)], 1).to(torch.uint8) for s in (10, 33)]
    pictures = [torch.zeros(3, 16, 16, dtype=torch.uint8)] * 2  # one batch, two sizes of masks
    assert Segmentation(CLASSES).evaluate(Halves(), samples(pictures, masks)) == {
        "miou": 1.0,
        "pixel_accuracy": 1.0,
        "pictures": 2,
    }


def test_agreement_is_the_share_of_equal_pixels_at_the_networks_own_resolution():
    def left_half(found):
        return torch.where(torch.arange(found.shape[2]) < found.shape[2] // 2, (found + 1) % 4, found)

    masks = [*random_masks(3), *random_masks(2, (8, 20))]
    task = Segmentation(CLASSES)
    assert task.agreement(Reads(), Reads(wrong=left_half), coded(masks)) == 0.5
    assert task.agreement(Reads(), Reads(), coded(masks)) == 1.0
    assert task.predict(Reads(), torch.zeros(2, 3, 8, 8)).shape == (2, 8, 8)


def test_masks_without_any_class_cannot_be_judged():
    with pytest.raises(UserError, match="of the 2 pictures to be judged none"):
        Segmentation(CLASSES).evaluate(Reads(), coded([torch.full((4, 4), IGNORE, dtype=torch.uint8)] * 2))


# ---- training ----------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_mean_over_pixels_that_count():
    torch.manual_seed(0)
    truth, logits = torch.stack(random_masks(2, (8, 8))), torch.randn(2, 4, 8, 8)
    weights = torch.tensor([1.0, 2.0, 5.0, 0.5])
    expected = F.cross_entropy(logits, truth.long(), weights, ignore_index=IGNORE)
    torch.testing.assert_close(Segmentation(CLASSES, weights).loss(logits, truth), expected)
    plain = F.cross_entropy(logits, truth.long(), ignore_index=IGNORE)
    torch.testing.assert_close(Segmentation(CLASSES).loss(logits, truth), plain)
    assert not torch.isclose(expected, plain)


def test_a_batch_of_ignored_pixels_has_no_loss_and_no_gradient():
    net = nn.Conv2d(3, 4, 1)
    batch = (torch.randn(2, 3, 8, 8), [torch.full((16, 16), IGNORE, dtype=torch.uint8)] * 2)
    loss, logs = Segmentation(CLASSES, torch.tensor([1.0, 9.0, 1.0, 2.0])).train_step(net, batch)
    loss.backward()
    assert loss.item() == 0 and logs["train_pixel_accuracy"].item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in net.parameters())


def test_ignored_pixels_send_no_gradient():
    logits = torch.randn(1, 4, 6, 6, requires_grad=True)
    truth = torch.stack(random_masks(1, (6, 6)))
    Segmentation(CLASSES).loss(logits, truth).backward()
    touched = logits.grad.abs().sum(1) > 0
    assert torch.equal(touched, truth != IGNORE)


def test_a_training_step_resizes_logits_to_the_masks_and_learns():
    torch.manual_seed(0)
    masks = [mask.repeat_interleave(8, 0).repeat_interleave(8, 1) for mask in random_masks(6, (2, 2))]
    task, data = Segmentation(CLASSES, torch.ones(4)), coded(masks)
    net = nn.Sequential(nn.Conv2d(3, 16, 2, stride=2), nn.ReLU(), nn.Conv2d(16, 4, 1))
    stream, optimizer = Stream(data, 3, 0), torch.optim.Adam(net.parameters(), 0.03)
    losses = []
    for step in range(150):
        loss, logs = task.train_step(net, stream.batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3 and logs["train_pixel_accuracy"] > 0.9
    assert task.evaluate(net, data)["miou"] > 0.7
