"""The detection task with a machinery that finds what it is told to, in tiny pictures."""

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from common import distributed
from tasks import detection as module
from tasks.box_transforms import Fit
from tasks.detection import Detection
from tasks.samples import BadSample, Samples

SIZE = 16


@dataclass(frozen=True)
class Painted:
    """Pictures of unlike sizes whose pixels all are the picture's number; objects of two classes."""

    sizes: tuple[tuple[int, int], ...]
    broken: int = -1

    def __len__(self):
        return len(self.sizes)

    def name(self, index):
        return f"picture {index}"

    def read(self, index):
        if index == self.broken:
            raise BadSample(self.name(index), "is broken")
        height, width = self.sizes[index]
        boxes = torch.tensor([[0, 0, width / 2, height / 2], [width / 4, height / 4, width, height]])
        none = torch.zeros(2, dtype=torch.bool)
        return torch.full((3, height, width), index, dtype=torch.uint8), {
            "boxes": boxes,
            "labels": torch.tensor([0, 1]),
            "difficult": none,
            "crowd": none,
            "size": torch.tensor([height, width]),
            "number": torch.tensor(index),
        }


def samples(count=7, broken=-1, bad="refuse"):
    source = Painted(tuple((20 + 4 * i, 60 - 4 * i) for i in range(count)), broken)
    return Samples(source, torch.arange(count), SIZE, Fit(SIZE), Fit(SIZE), bad=bad)


class Told(nn.Module):
    """Gives each picture's number; what is found then depends on it."""

    def forward(self, images):
        return (images[:, 0, 0, 0] * 255).round().long()


class Other(Told):
    pass


@dataclass(frozen=True)
class Machine:
    """Finds both objects of each picture but those in `missed`; boxes are `shift` pixels off."""

    missed: tuple[int, ...] = ()
    shift: float = 0.0
    change: Callable = dict  # of what it finds by an Other network

    def detections(self, model, images):
        boxes = torch.tensor([[0.0, 0, SIZE / 2, SIZE / 2], [SIZE / 4, SIZE / 4, SIZE, SIZE]]) + self.shift
        whole = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([0, 1])}
        rows = model(images).tolist()
        found = [{name: value[: 0 if row in self.missed else 2] for name, value in whole.items()} for row in rows]
        return [self.change(row) for row in found] if isinstance(model, Other) else found

    def losses(self, model, images, targets):
        weight = model.weight.sum()
        return {"class": weight * 2, "box": weight * sum(len(target["boxes"]) for target in targets)}


def test_boxes_are_judged_in_the_pixels_of_the_pictures():
    found = Detection(Machine(), ("a", "b")).evaluate(Told(), samples())
    assert found == {"ap": 1.0, "ap50": 1.0, "voc_ap": 1.0, "pictures": 7}


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_size_of_a_batch_does_not_matter(monkeypatch, batch):
    task = Detection(Machine(missed=(2, 5), shift=0.5), ("a", "b"))
    expected = task.evaluate(Told(), samples())
    monkeypatch.setattr(module, "EVALUATION_BATCH", batch)
    assert task.evaluate(Told(), samples()) == expected and 0 < expected["ap"] < 1


def test_skipped_pictures_are_not_counted(capsys):
    task = Detection(Machine(missed=(3,)), ("a", "b"))
    assert task.evaluate(Told(), samples(broken=3, bad="skip")) == {
        "ap": 1.0,
        "ap50": 1.0,
        "voc_ap": 1.0,
        "pictures": 6,
    }
    assert "picture 3" in capsys.readouterr().err
    with pytest.raises(BadSample, match="picture 3: is broken"):
        task.evaluate(Told(), samples(broken=3))


def test_evaluation_leaves_training_mode():
    model = Told().train()
    Detection(Machine(), ("a", "b")).evaluate(model, samples())
    assert not model.training


def test_the_loss_is_the_sum_of_its_parts():
    model = nn.Linear(1, 1)
    targets = [{"boxes": torch.zeros(3, 4)}, {"boxes": torch.zeros(0, 4)}]
    loss, logs = Detection(Machine(), ("a", "b")).train_step(model, (torch.zeros(2, 3, 4, 4), targets))
    loss.backward()
    assert loss.item() == pytest.approx(5 * model.weight.item()) and model.weight.grad.item() == pytest.approx(5)
    assert set(logs) == {"class", "box"} and not any(value.requires_grad for value in logs.values())
    assert (Detection.score, Detection.reported) == ("ap", ("ap", "ap50", "voc_ap"))


@pytest.mark.parametrize(
    "change, share",
    [
        (dict, 1.0),
        # decisions of the graph that the other has, too, if less surely
        (lambda row: row | {"scores": row["scores"] / 4}, 1.0),
        (lambda row: row | {"scores": row["scores"] / 9}, 0.0),
        (lambda row: row | {"labels": 1 - row["labels"]}, 0.0),
        (lambda row: row | {"boxes": row["boxes"] + 0.1}, 1.0),  # IoU 62.41 / 65.59
        (lambda row: row | {"boxes": row["boxes"] + 1}, 0.0),  # IoU 49 / 79 and 121 / 167
        (lambda row: {name: value[:1] for name, value in row.items()}, 2 / 3),  # of two and one, one is missing
        (lambda row: {name: torch.cat([value, value[:1] + 7]) for name, value in row.items()}, 4 / 5),  # one too many
        (lambda row: {name: value[:0] for name, value in row.items()}, 0.0),
    ],
)
def test_agreement_is_the_share_of_equal_decisions(change, share):
    assert Detection(Machine(change=change), ("a", "b")).agreement(Told(), Other(), samples()) == pytest.approx(
        share, abs=1e-6
    )


def test_networks_that_decide_nothing_agree():
    assert Detection(Machine(missed=tuple(range(7))), ("a", "b")).agreement(Told(), Told(), samples()) == 1.0


# ---- ranks -------------------------------------------------------------------------------------------------


def test_ranks_divide_the_pictures(monkeypatch):
    task, shares = Detection(Machine(missed=(2, 5), shift=0.5), ("a", "b")), []
    expected = task.evaluate(Told(), samples())
    monkeypatch.setattr(module.distributed, "gather", lambda rows: shares.append(rows) or sum(shares, []))
    for rank in range(2):
        monkeypatch.setattr(distributed, "share", lambda rank=rank: slice(rank, None, 2))
        found = task.evaluate(Told(), samples())  # of the last one, when all have brought their share
    assert [len(rows) for rows in shares] == [4, 3] and found == expected


def _evaluated(rank, port, path):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with distributed.joined():
        task = Detection(Machine(missed=(2, 5), shift=0.5), ("a", "b"))
        torch.save((task.evaluate(Told(), samples()), task.agreement(Told(), Told(), samples())), f"{path}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_return_what_one_does(tmp_path):
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_evaluated, (port, tmp_path), nprocs=2)
    expected = Detection(Machine(missed=(2, 5), shift=0.5), ("a", "b")).evaluate(Told(), samples())
    assert [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)] == [(expected, 1.0)] * 2


def test_the_order_in_which_ranks_bring_pictures_does_not_matter(monkeypatch):
    seen = []
    monkeypatch.setattr(module.distributed, "gather", lambda rows: rows[::-1])
    monkeypatch.setattr(
        module, "average_precisions", lambda found, truths: seen.extend(int(t["number"]) for t in truths) or {}
    )
    Detection(Machine(), ("a", "b")).evaluate(Told(), samples())
    assert seen == list(range(7))
