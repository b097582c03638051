"""Start a program on every CPU of this machine: one process (rank) of one thread each, that train together.

The program itself is rank 0. It starts the others, which call the same `main` with the same arguments:

    @guard
    def main(argv=None):
        with distributed.joined():
            config = parse(Config, argv, "program.py", __doc__)
            with ranks(main, argv, process_count(config.processes, config.batch_size)):
                ...

Data-parallel ranks of one thread train faster than one process with several threads: nothing waits at the end of each
operation. torchrun's processes are ranks already, so nothing is started for them.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

from common import distributed
from common.errors import UserError
from common.files import read_json
from common.processes import cpu_count
from common.runs import CONFIG, processes_before

HOST = "127.0.0.1"
POLL = 0.05  # seconds
PATIENCE = 300.0  # seconds until all processes have started
SMALLEST_SHARE = 4  # images of a rank in a step, below which batch norm suffers: by default there are no more ranks
FAREWELL = 10.0  # seconds that a process has to end in by itself


def process_count(
    asked: int | None, batch_size: int, run: Path | None = None, smallest_share: int = SMALLEST_SHARE
) -> int:
    """The number of ranks of a training.

    Args:
        asked: What the user wants. None: as many as began the run, or one for each CPU that this process may use, at
            most as many as divide the batch and leave each `smallest_share` images. On a GPU one.
        batch_size: Images in a step of all ranks together.
        run: Folder of the run that may go on.
        smallest_share: Images of a rank in a step, below which more ranks do not train faster.

    Raises:
        UserError: `asked` is no divisor of the batch, or differs from torchrun's number or the run's. Or the run
            counted the images of a step in another way.
    """
    world = distributed.world_size()
    if world > 1:
        if asked not in (None, world):
            raise UserError(f"processes: {asked}, but torchrun started {world}; leave --processes out")
        asked = world
    if before := processes_before(run) if run else None:
        _refuse_batches_per_rank(run, before)
        distributed.refuse_other_count(before, asked or before)
        asked = before
    if asked is None:
        return _default_count(batch_size, smallest_share)
    if asked < 1:
        raise UserError(f"processes: {asked}, must be at least 1")
    if batch_size % asked:
        raise UserError(f"batch_size: {batch_size}, must be a multiple of the {asked} processes (--processes)")
    return asked


def _refuse_batches_per_rank(run: Path, before: int) -> None:
    """A run of several ranks whose settings name no `processes` counted the images of each rank in --batch-size."""
    config = read_json(run / CONFIG) if (run / CONFIG).is_file() else None
    if before > 1 and isinstance(config, dict) and "processes" not in config:
        raise UserError(
            f"batch_size: {run} was begun by an earlier version, in which it was the images of each of {before} "
            "processes; start over with --restart and a batch size of all together, or choose another --name"
        )


def _default_count(batch_size: int, smallest_share: int) -> int:
    most = 1 if torch.cuda.is_available() else min(cpu_count(), batch_size // smallest_share)
    return next(count for count in range(max(1, most), 0, -1) if batch_size % count == 0)


@contextlib.contextmanager
def ranks(main: Callable, argv: Sequence[str] | None, count: int) -> Iterator[None]:
    """A context in which this process is one of `count` ranks, of one thread each. Only rank 0 leaves it.

    Outside torchrun this process is rank 0 and starts the others, which call `main(argv)`. A single rank keeps torch's
    number of threads, but takes no more than the CPUs that it may use.

    Args:
        main: The program, a function at the top of its module.
        argv: Its arguments; None for those of the command line.
        count: Number of ranks, see `process_count`.

    Raises:
        UserError: A process ended before all had started, or while they trained.
    """
    with torch_threads(1 if count > 1 else min(torch.get_num_threads(), cpu_count())):
        if count == 1 or distributed.world_size() > 1:
            yield
            distributed.only_main()
        else:
            with _others(main, argv, count) as store, distributed.rank_0_of(count, store):
                yield
                distributed.only_main()


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch's intra-op thread count set to `threads`, and restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _others(main: Callable, argv: Sequence[str] | None, count: int) -> Iterator[dist.Store]:
    """The other ranks, running until this context ends."""
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    others = _start(main, argv, count, store.port)
    try:
        _wait_for(others, store)
        yield store
    except BaseException:
        _end(others, 0.0)
        raise
    finally:
        _end(others, FAREWELL)
        distributed.stop()


def _start(main: Callable, argv: Sequence[str] | None, count: int, port: int) -> list[BaseProcess]:
    """Start all ranks but the first. They ignore Ctrl-C, which reaches the whole group: rank 0 ends them."""
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_rank, args=(main, argv, number, count, port), daemon=False)
        for number in range(1, count)
    ]
    before = signal.getsignal(signal.SIGINT)
    threads = os.environ.get("OMP_NUM_THREADS")
    with contextlib.suppress(ValueError):  # not the main thread: signals are not ours to set
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a process imports torch
    try:
        for process in others:
            process.start()
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, before)
        os.environ.pop("OMP_NUM_THREADS")
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
    return others


def _rank(main: Callable, argv: Sequence[str] | None, number: int, count: int, port: int) -> None:
    """What a started process does: torchrun's environment, then the program."""
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
    }
    main(argv)


def _wait_for(others: list[BaseProcess], store: dist.Store) -> None:
    """Wait until every process has joined, or raise UserError where one has ended instead."""
    until = time.monotonic() + PATIENCE
    while store.add("started", 0) < len(others):
        ended = [process.exitcode for process in others if process.exitcode is not None]
        if ended or time.monotonic() > until:
            how = f"ended with exit code {ended[0]}" if ended else f"did not start in {PATIENCE:.0f} seconds"
            raise UserError(f"processes: one of {len(others) + 1} {how}; add --processes 1")
        time.sleep(POLL)


def _end(others: list[BaseProcess], patience: float) -> None:
    """Wait for the processes to end, and end those that do not."""
    until = time.monotonic() + patience
    for process in others:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.terminate()
            process.join()
