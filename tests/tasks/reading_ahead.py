"""Run by test_samples.py in a process of its own: worker processes give the batches that reading in place gives."""

import torch

from common.errors import UserError
from tasks.samples import Stream
from tests.tasks.test_samples import numbers, samples


def main() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ahead, here = (Stream(samples(workers, "skip", broken=(4, 7)), 5, seed=5) for workers in (1, 0))
    for step in (0, 1, 2, 0):  # each jump starts a process
        (x, targets), (y, same) = ahead.batch(step), here.batch(step)
        assert torch.equal(x, y) and numbers((x, targets)) == numbers((y, same)), step
    assert torch.equal(before, torch.get_rng_state()), "reading ahead has drawn from the global generator"
    assert ahead.samples.skipped == {"4.jpg": "truncated", "7.jpg": "truncated"}
    try:
        refusing = Stream(samples(1, broken=(4,)), 5, 0)
        [refusing.batch(step) for step in range(2)]
    except UserError as error:
        assert "4.jpg: truncated; mend or remove it" in str(error)
    else:
        raise AssertionError("a bad picture was not refused")


if __name__ == "__main__":
    main()
