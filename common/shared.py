"""What all ranks of a machine need and none changes, such as decoded images: made once, and held once in memory."""

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from common import distributed

T = TypeVar("T")

LEAST_BYTES = 1 << 16  # of a tensor that is mapped; smaller ones are copied
ALIGNMENT = 64  # bytes


def made_once(make: Callable[[], T]) -> T:
    """The result of `make()`, which only the first rank of each machine calls.

    Its large CPU tensors are mapped from one temporary file, which exists until all ranks have opened it: they take
    memory once for all ranks. A rank that writes to such a tensor gets its own copy of the page. With one rank this is
    `make()`.

    Args:
        make: Returns an object that can be pickled.
    """
    if distributed.world_size() == 1:
        return make()
    token = distributed.from_main(lambda: os.urandom(16).hex())
    path = Path(tempfile.gettempdir()) / f"ranks_{token}"
    first = distributed.is_first_on_machine()
    try:
        if first:
            _write(path, make())
        distributed.barrier()
        made = _read(path)
        distributed.barrier()
    finally:
        if first:
            path.unlink(missing_ok=True)
    return made


class _Pickler(pickle.Pickler):
    """Writes large tensors into `file` at once, and their places in the place of them."""

    def __init__(self, head: BinaryIO, file: BinaryIO):
        super().__init__(head)
        self.file = file

    def persistent_id(self, value: Any) -> tuple | None:
        if type(value) is not Tensor or value.device.type != "cpu" or value.nbytes < LEAST_BYTES:
            return None
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        start = self.file.tell()
        self.file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return start, value.nbytes, value.dtype, tuple(value.shape)


class _Unpickler(pickle.Unpickler):
    """Reads what _Pickler wrote; tensors are views of the mapped file."""

    def __init__(self, head: BinaryIO, mapped: Tensor):
        super().__init__(head)
        self.mapped = mapped

    def persistent_load(self, place: tuple) -> Tensor:
        start, size, dtype, shape = place
        return self.mapped[start : start + size].view(dtype).view(shape)


def _write(path: Path, made: Any) -> None:
    """Tensors, then the pickled rest, then 8 bytes: where that begins."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file, tempfile.TemporaryFile() as head:
        _Pickler(head, file).dump(made)
        start = file.tell()
        head.seek(0)
        file.write(head.read())
        file.write(start.to_bytes(8, "little"))


def _read(path: Path) -> Any:
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(size - 8)
        start = int.from_bytes(file.read(8), "little")
        file.seek(start)
        mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        return _Unpickler(file, mapped).load()
