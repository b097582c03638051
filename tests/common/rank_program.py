"""A program that starts ranks, for test_launch.py: it imports no more than it must."""

import json
import os
import signal
from pathlib import Path

import torch

from common import distributed
from common.cli import guard
from common.errors import UserError
from common.launch import ranks
from common.shared import made_once


def decoded(path: Path) -> dict:
    """A large tensor and a small one; leaves a line for each process that made them."""
    with open(path / "made", "a") as file:
        file.write(f"{distributed.rank()}\n")
    return {"images": torch.arange(100_000).view(2, -1), "mean": torch.ones(3), "names": ["a", "b"]}


@guard
def main(argv):
    """argv: folder, what happens on rank 1 (fine, mistake, kill), number of ranks."""
    path, case, count = Path(argv[0]), argv[1], int(argv[2])
    with distributed.joined():
        with ranks(main, argv, count):
            if case == "mistake" and distributed.rank() == 1:
                raise UserError("field: 7, must be 8")
            if case == "kill" and distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            data = made_once(lambda: decoded(path))
            images = data["images"]
            found = {
                "rank": distributed.rank(),
                "threads": torch.get_num_threads(),
                "environment": os.environ.get("OMP_NUM_THREADS"),
                "sum": int(distributed.sum_(torch.tensor(distributed.rank() + 1))),
                "each": distributed.each(lambda item: (item, distributed.rank()), [5, 6, 7]),
                "data": [int(images.sum()), list(images.shape), data["mean"].tolist(), data["names"]],
            }
            images.zero_()  # of this rank alone
            distributed.barrier()
            (path / f"rank_{distributed.rank()}").write_text(json.dumps(found))
        return distributed.world_size()
