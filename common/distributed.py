"""Helpers of torch.distributed, for a training that several processes (ranks) share.

torchrun starts the ranks. They average their gradients; only rank 0 writes files and prints.

    torchrun --nproc-per-node 2 retrain.py --arch frostnet_a

gloo carries tensors on CPUs, NCCL those on GPUs (one GPU a rank). With one rank every function here
returns at once. docs/scaling.md lists what is equal on all ranks and what differs.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import UserError

T = TypeVar("T")


def world_size() -> int:
    """The number of ranks; 1 outside `joined`, and on rank 0 after `only_main`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is rank 0, which writes the files."""
    return rank() == 0


def is_first_on_machine() -> bool:
    """Whether this is the first rank of its machine, which downloads and decodes for the others."""
    return _local_rank() == 0


def device() -> torch.device:
    """The GPU of this rank on its machine, or the CPU where there is none."""
    return torch.device("cuda", _local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def share() -> slice:
    """The slice of a sequence that this rank processes: `rows[share()]`; together the ranks process all of it."""
    return slice(rank(), None, world_size())


def share_of(batch_size: int, images: int, ranks: int) -> int:
    """Images of each rank in a step of `batch_size` images, fewer where a data set holds fewer.

    Raises UserError where there is none for each rank.
    """
    share = min(batch_size, images) // ranks
    if not share:
        raise UserError(f"processes: {ranks} share {images} training images; add --processes 1, or add images")
    return share


def launcher() -> list[str]:
    """The start of the command line that ran this program: python, or torchrun and its number of processes."""
    if world_size() == 1 or not _under_torchrun():
        return ["python"]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    machines = ["--nnodes", str(world_size() // here)] if here < world_size() else []
    return ["torchrun", *machines, "--nproc-per-node", str(here)]


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


# ---- joining and leaving -------------------------------------------------------------------------------------


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """A context in which processes that found torchrun's environment (RANK, WORLD_SIZE, ..) are ranks of one group.

    All but rank 0 print nothing. An error on one rank ends all of them, and only the first to fail reports it. Without
    that environment the context does nothing; common.launch starts ranks then.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    with _members(start()):
        yield


@contextlib.contextmanager
def rank_0_of(count: int, store: "dist.Store") -> Iterator[None]:
    """The same for the process that started the others: rank 0 of `count`, which meet in `store`."""
    with _members(_join(store, 0, count)):
        yield


@contextlib.contextmanager
def _members(store: "dist.Store") -> Iterator[None]:
    """Silence on all ranks but the first, and one report of an error of any of them."""
    try:
        with contextlib.nullcontext() if is_main() else _silence():
            yield
    except SystemExit:
        raise
    except BaseException as error:
        _leave(error, store)
    stop()


def start() -> "dist.Store":
    """Join the other ranks.

    Returns:
        The store through which the ranks found each other.

    Raises:
        UserError: If there are fewer GPUs than processes, or the environment of torchrun is incomplete.
    """
    if torch.cuda.is_available():
        _use_own_gpu()
    try:
        store, number, count = next(dist.rendezvous("env://"))
    except ValueError as error:
        raise UserError(f"ranks: {error}; start the program with torchrun, or unset WORLD_SIZE") from error
    return _join(store, number, count)


def _join(store: "dist.Store", number: int, count: int) -> "dist.Store":
    """Become a rank of the group that meets in `store`; returns the part of it that belongs to this attempt."""
    store.add("started", 1)
    # torchrun's store outlives a restart, and with it the addresses of processes that are gone
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("ranks", store), rank=number, world_size=count)
    return store


def _use_own_gpu() -> None:
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if here > gpus:
        raise UserError(f"nproc-per-node: {here}, but there are {gpus} GPUs here; start one process a GPU")
    torch.cuda.set_device(device())


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def only_main() -> None:
    """Rank 0 continues alone; on the others the program ends here (SystemExit)."""
    barrier()
    alone = is_main()
    stop()
    if not alone:
        raise SystemExit(0)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _leave(error: BaseException, store: "dist.Store") -> None:
    """End this rank: re-raise its error with a message that helps, or exit quietly if another rank reports one."""
    try:
        reported = store.add("reported", 1) > 1
    except RuntimeError:  # the machine that held the store is gone
        reported = not is_main()
    if reported:
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
    if isinstance(error, KeyboardInterrupt):
        print(f"stopped; {_again()}", file=sys.stderr)
        raise SystemExit(130) from None
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        first = str(error).splitlines()[0]
        raise UserError(f"ranks: another process is gone ({first}); {_again()}") from error
    raise error


def _again() -> str:
    program = "torchrun command" if _under_torchrun() else "command"
    return f"the same {program} goes on from the last checkpoint"


# ---- collectives -------------------------------------------------------------------------------------------


def barrier() -> None:
    """Wait for all ranks."""
    sum_(torch.zeros(1))


def sum_(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean_(tensor: Tensor) -> Tensor:
    """The mean over ranks, in place."""
    return sum_(tensor).div_(world_size()) if world_size() > 1 else tensor


def max_(tensor: Tensor) -> Tensor:
    """The element-wise maximum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def gather(rows: list[T]) -> list[T]:
    """The rows of all ranks, on all ranks."""
    if world_size() == 1:
        return rows
    shares: list = [None] * world_size()
    dist.all_gather_object(shares, rows)
    return [row for share in shares for row in share]


def each(work: Callable[[Any], T], items: Sequence) -> list[T]:
    """`work(item)` of every item in their order, on all ranks, which divide the items; `work` must not communicate."""
    mine = gather([(number, work(items[number])) for number in range(len(items))[share()]])
    return [result for _, result in sorted(mine, key=lambda row: row[0])]


def gather_tensor(rows: Tensor) -> Tensor:
    """The rows of a tensor of all ranks, on all ranks; each rank has equally many."""
    if world_size() == 1:
        return rows
    shares = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(shares, rows.contiguous())
    return torch.cat(shares)


@torch.no_grad()
def mean_each_(tensors: Sequence[Tensor]) -> None:
    """The mean over ranks of each tensor, in place: one all-reduce for each kind (device and dtype)."""
    if world_size() == 1:
        return
    kinds: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for kind in kinds.values():
        flat = mean_(torch.cat([tensor.reshape(-1) for tensor in kind]))
        parts = flat.split([tensor.numel() for tensor in kind])
        torch._foreach_copy_(kind, [part.view(tensor.shape) for part, tensor in zip(parts, kind, strict=True)])


def average(modules: Iterable[nn.Module], also: Sequence[Tensor] = ()) -> None:
    """Reduce over ranks, in place, what a training step left in `modules`, and average the tensors in `also`.

    Gradients and the running statistics of batch norms in training mode are averaged. A module with a method
    `across_ranks` (the ranges of quantizers) names its tensors by reduction: "mean", "max" or "min". All of them travel
    in two all-reduces. All ranks must have run the same modules.
    """
    if world_size() == 1:
        return
    modules = list(modules)
    gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
    found: dict[str, list[Tensor]] = {"mean": gradients, "max": [], "min": []}
    for child in dict.fromkeys(child for module in modules for child in module.modules()):
        for reduction, tensors in _statistics(child).items():
            found[reduction] += tensors
    mean_each_([*found["mean"], *also])
    _extremes_each_(found["max"], found["min"])


def _statistics(module: nn.Module) -> dict[str, list[Tensor]]:
    """The tensors of one module that a training batch moves, by the reduction over ranks."""
    if hasattr(module, "across_ranks"):
        return module.across_ranks()
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    moves = is_norm and module.training and module.running_mean is not None
    return {"mean": [module.running_mean, module.running_var]} if moves else {}


@torch.no_grad()
def _extremes_each_(largest: Sequence[Tensor], smallest: Sequence[Tensor]) -> None:
    """The maximum over ranks of each of `largest` and the minimum of each of `smallest`, in place: one all-reduce."""
    if not largest and not smallest:
        return
    flat = max_(torch.cat([*(t.reshape(-1) for t in largest), *(-t.reshape(-1) for t in smallest)]))
    parts = flat.split([t.numel() for t in (*largest, *smallest)])
    reduced = [*parts[: len(largest)], *(-part for part in parts[len(largest) :])]
    for tensor, part in zip((*largest, *smallest), reduced, strict=True):
        tensor.copy_(part.view(tensor.shape))


def reseed(seed: int, step: int) -> None:
    """Seed each rank's random numbers (of dropout) by (seed, step, rank), so that a checkpoint need not hold them.

    With one rank nothing changes.
    """
    if world_size() > 1:
        digest = hashlib.blake2b(repr((seed, step, rank())).encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest) >> 1)


def from_main(make: Callable[[], T]) -> T:
    """The result of `make()` on all ranks; only rank 0 calls it."""
    box = [make() if is_main() else None]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def refuse_other_count(before: int, now: int | None = None) -> None:
    """Raise UserError if a run that `before` ranks began would continue with another number: batches would differ.

    Args:
        before: Number of ranks that began the run.
        now: Number of ranks that would continue it (default: those of this group).
    """
    now = world_size() if now is None else now
    if before != now:
        raise UserError(
            f"processes: this run was begun by {before}, and these are {now}; add --processes {before} "
            "(or start as many with torchrun), choose another --name, or add --restart"
        )


def assert_equal(state: Mapping[str, Any], what: str) -> None:
    """Raise UserError, on every rank, unless all ranks hold the same bits in a state dict.

    Args:
        state: Tensors and plain values by name.
        what: Its name in the message, such as "weights".
    """
    if world_size() == 1:
        return
    rows: list = [None] * world_size()
    dist.all_gather_object(rows, {name: _digest(value) for name, value in state.items()})
    for number, row in enumerate(rows):
        different = [name for name in {**rows[0], **row} if row.get(name) != rows[0].get(name)]
        if different:
            names = ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
            raise UserError(f"ranks: {what} differ between rank 0 and rank {number} ({names}); {_again()}")


def _digest(value: Any) -> bytes:
    """A hash of a tensor's bits, shape and type, or of a plain value's text."""
    text = repr(value).encode()
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        text = f"{data.dtype} {tuple(data.shape)}".encode() + data.reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(text, digest_size=8).digest()
