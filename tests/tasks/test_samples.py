"""Images of unlike sizes with targets: a stream as a function of its step, evaluation in order, bad files."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from tasks.samples import (
    BadSample,
    Data,
    Samples,
    Stream,
    in_order,
    noise,
    normalise,
    of_size,
    some_of,
    split_off,
    statistics,
)
from tests import ROOT


@dataclass(frozen=True)
class Numbers:
    """Picture i is i everywhere, of 4 or 6 columns; its target holds i."""

    count: int = 10
    broken: tuple[int, ...] = ()
    widths: tuple[int, ...] = (4,)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index}.jpg"

    def read(self, index: int):
        if index in self.broken:
            raise BadSample(self.name(index), "truncated")
        return torch.full((3, 4, self.widths[index % len(self.widths)]), index, dtype=torch.uint8), {
            "number": torch.tensor(index)
        }


def fit(image: Tensor, target: dict):
    return image, target


def augment(image: Tensor, target: dict):
    """Adds 100 or not, at random."""
    return image + 100 * torch.randint(2, (), dtype=torch.uint8), target


def samples(workers: int = 0, bad: str = "refuse", **source) -> Samples:
    numbers = Numbers(**source)
    return Samples(numbers, torch.arange(len(numbers)), 4, fit, augment, workers=workers, bad=bad)


def numbers(batch) -> list[int]:
    return [int(target["number"]) for target in batch[1]]


def test_processes_that_read_ahead_change_nothing():
    """In a fresh process, as a user has it."""
    done = subprocess.run([sys.executable, "-m", "tests.tasks.reading_ahead"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_batch_is_a_function_of_its_step():
    stream = Stream(samples(), 3, seed=5)
    forward = [stream.batch(step) for step in range(7)]
    again = Stream(samples(), 3, seed=5)
    for step in (6, 2, 3, 0):
        x, targets = again.batch(step)
        assert torch.equal(x, forward[step][0]) and numbers((x, targets)) == numbers(forward[step])
    assert not torch.equal(Stream(samples(), 3, seed=6).batch(0)[0], forward[0][0])


def test_an_epoch_shows_each_picture_once_and_each_epoch_its_own_order():
    stream = Stream(samples(count=9), 3, seed=0)
    assert stream.steps_per_epoch == 3
    epochs = [[n for step in range(3) for n in numbers(stream.batch(3 * epoch + step))] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(9)) and epochs[0] != epochs[1]


def test_augmentation_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Stream(samples(), 3, seed=0).batch(0)
    list(in_order(samples(1), 5))
    assert torch.equal(before, torch.get_rng_state())


def test_batches_are_normalised_and_channels_last():
    part = Samples(Numbers(), torch.tensor([7, 7]), 4, fit, fit, torch.full((3,), 2 / 255), torch.full((3,), 5 / 255))
    x, _ = Stream(part, 2, 0).batch(0)
    assert torch.allclose(x, torch.ones(2, 3, 4, 4)) and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(next(in_order(part, 2))[0], x)


def test_pictures_of_unlike_sizes_do_not_share_a_batch():
    batches = list(in_order(samples(widths=(4, 6)), 3))
    assert sorted(n for batch in batches for n in numbers(batch)) == list(range(10))
    assert {tuple(x.shape[1:]) for x, _ in batches} == {(3, 4, 4), (3, 4, 6)} and max(len(x) for x, _ in batches) == 3
    assert sorted(
        n
        for part in (slice(0, None, 2), slice(1, None, 2))
        for batch in in_order(samples(), 4, part)
        for n in numbers(batch)
    ) == list(range(10))


@pytest.mark.parametrize("workers", (0, 1))
def test_a_bad_picture_is_refused_by_name(workers):
    with pytest.raises(UserError, match="4.jpg: truncated; mend or remove it, or add --bad-data skip"):
        list(in_order(samples(workers, broken=(4,)), 5))
    with pytest.raises(UserError, match="4.jpg: truncated"):
        stream = Stream(samples(broken=(4,)), 5, 0)
        [stream.batch(step) for step in range(2)]


def test_a_bad_picture_is_skipped_once_named_and_counted(capsys):
    part = samples(0, "skip", broken=(4, 7))
    assert sorted(n for batch in in_order(part, 5) for n in numbers(batch)) == [0, 1, 2, 3, 5, 6, 8, 9]
    stream = Stream(part, 5, 0)
    seen = [n for step in range(2) for n in numbers(stream.batch(step))]
    assert len(seen) == 10 and set(seen) == {0, 1, 2, 3, 5, 6, 8, 9}  # 5 and 8 stand in for the two
    assert part.skipped == {"4.jpg": "truncated", "7.jpg": "truncated"}
    assert capsys.readouterr().err.count("is left out: truncated") == 2


def test_many_bad_pictures_are_named_only_at_first(capsys):
    part = samples(bad="skip", count=30, broken=tuple(range(20)))
    assert sum(len(x) for x, _ in in_order(part, 5)) == 10 and len(part.skipped) == 20
    assert capsys.readouterr().err.count("\n") == 6


def test_nothing_but_bad_pictures_is_an_error():
    part = samples(bad="skip", count=3, broken=(0, 1, 2))
    with pytest.raises(UserError, match="none of the training pictures"):
        Stream(part, 2, 0).batch(0)
    with pytest.raises(UserError, match="none of the training pictures"):
        statistics(part)


def test_statistics_are_those_of_the_pixels():
    mean, std = statistics(samples(count=10))
    values = torch.arange(10).double() / 255
    assert torch.allclose(mean.double(), values.mean().expand(3)) and torch.allclose(
        std.double(), values.std(unbiased=False).expand(3), atol=1e-6
    )
    data = normalise(Data(samples(), samples(), None, ("a",)))
    assert torch.equal(data.mean, mean) and torch.equal(data.val.std, std) and list(data.held_out) == ["val"]


def test_pictures_of_many_sizes_do_not_wait_for_ever():
    read = []

    @dataclass(frozen=True)
    class Counting(Numbers):
        def read(self, index):
            read.append(index)
            return super().read(index)

    part = Samples(Counting(60, widths=tuple(range(2, 62))), torch.arange(60), 4, fit, augment)
    batches = in_order(part, 2)
    next(batches)
    assert len(read) <= 8  # four batches' worth
    assert len(list(batches)) == 59


def test_pictures_of_a_size_are_found():
    part = of_size(samples(widths=(4, 6)), (4, 6))
    assert part.indices.tolist() == [1, 3, 5, 7, 9] and len(of_size(samples(), (4, 6))) == 0


def test_what_is_split_off_counts_what_it_leaves_out_by_itself():
    train, val = split_off(samples(bad="skip", broken=(1,)), 0.5, 0)
    train.note({"1.jpg": "broken"})
    assert len(train.skipped) == 1 and not val.skipped


def test_parts_are_disjoint_and_follow_from_the_seed():
    train, val = split_off(samples(count=20), 0.25, seed=1)
    assert sorted([*train.indices.tolist(), *val.indices.tolist()]) == list(range(20)) and len(val) == 5
    assert torch.equal(split_off(samples(count=20), 0.25, seed=1)[1].indices, val.indices)
    assert not torch.equal(split_off(samples(count=20), 0.25, seed=2)[1].indices, val.indices)
    assert len(some_of(samples(), 4, 0)) == 4 and len(some_of(samples(), 40, 0)) == 10
    with pytest.raises(UserError, match="fewer than two"):
        split_off(samples(count=1), 0.1, 0)


def test_fewer_pictures_than_a_batch_make_a_smaller_one():
    stream = Stream(samples(count=3), 8, 0)
    assert (stream.batch_size, stream.steps_per_epoch) == (3, 1)


def test_noise_is_the_same_each_time():
    part = noise(8, 3, torch.zeros(8, 8, dtype=torch.uint8))
    first, second = (next(in_order(part, 3)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and first[0].std() > 0.2 and first[0].shape == (3, 3, 8, 8)
