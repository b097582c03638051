"""Calls that move values as ONNX: one function for each sort of call (quant/export/onnx/calls.py)."""

import numpy as np
from torch import nn

from quant.attach import ops
from quant.export.onnx.site import Site
from quant.integer.graph import Ref
from quant.integer.transforms import pad_codes


def pad(site: Site) -> str:
    """Rows and columns around an image. torch counts from the last dimension, ONNX from the first."""
    pads = site.setting(1, "padding" if isinstance(site.module, nn.Module) else "pad")
    mode = ops.PADS.get(type(site.module)) or site.setting(2, "mode", "constant")
    if len(pads) != 4 or len(site.shape) != 4 or mode not in ("constant", "reflect", "replicate"):
        raise site.unknown(f"{mode}, {pads}")
    left, right, top, bottom = pads
    ends = site.constant("pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    number = np.uint8 if site.module is pad_codes else np.float32
    value = [site.constant("filling", number(site.setting(3, "value", 0) or 0))] if mode == "constant" else []
    return site.node("Pad", [site.source(), ends, *value], mode="edge" if mode == "replicate" else mode)


def same(site: Site) -> str:
    return site.source()


def reshape(site: Site) -> str:
    return reshape_to(site, site.source())


def reshape_to(site: Site, tensor: str) -> str:
    if sum(size is None for size in site.shape) > 1:
        raise site.unknown(f"several sizes of {site.shape} depend on the batch")
    shape = np.array([-1 if size is None else size for size in site.shape], np.int64)
    return site.node("Reshape", [tensor, site.constant("shape", shape)])


def permute(site: Site) -> str:
    order = site.setting(1, "dims")
    order = site.call.args[1:] if isinstance(order, int) else order
    return site.node("Transpose", [site.source()], perm=[d % len(order) for d in order])


def transpose(site: Site) -> str:
    order = list(range(len(site.shape)))
    a, b = site.setting(1, "dim0"), site.setting(2, "dim1")
    order[a], order[b] = order[b], order[a]
    return site.node("Transpose", [site.source()], perm=order)


def split(site: Site) -> list[str]:
    axis = site.setting(2, "dim", 0)
    if any(shape[axis] is None for shape in site.shape):
        raise site.unknown("of the batch")
    parts = [f"{site.output}_{i}" for i in range(len(site.shape))]
    sizes = site.constant("sizes", np.array([shape[axis] for shape in site.shape], np.int64))
    return site.writer.node("Split", [site.source(), sizes], parts, axis=axis)


def getitem(site: Site) -> str:
    """One of several tensors, or a part of one: slices, and whole numbers, which drop their axis."""
    source, index = site.call.args[0], site.call.args[1]
    tensors = site.writer.tensors.get(source.name)
    if isinstance(tensors, list):
        return tensors[index]
    rank, index = len(site.source_shape()), index if isinstance(index, tuple) else (index,)
    if not all(isinstance(i, (int, slice)) or i is Ellipsis for i in index):
        raise site.unknown("only slices and whole numbers")
    # a size worked out in the network: the result's
    if Ellipsis not in index and not any(isinstance(i, int) for i in index):
        index = tuple(
            slice(i.start, (i.start or 0) + n) if isinstance(i.stop, Ref) and n else i
            for i, n in zip(index, site.shape)
        )
    missing = rank - sum(i is not Ellipsis for i in index)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    full = [*index[:at], *[slice(None)] * missing, *index[at + 1 :]]
    sliced = _slice(site, site.source(), {axis: i for axis, i in enumerate(full) if i != slice(None)})
    return reshape_to(site, sliced) if any(isinstance(i, int) for i in full) else sliced


def _slice(site: Site, tensor: str, kept: dict[int, slice | int]) -> str:
    """`tensor` with the axes in `kept` cut; a whole number keeps one entry.

    The result is the site's unless an axis is dropped.
    """
    if not kept:
        return tensor
    last = np.iinfo(np.int64).max
    slices = [slice(i, i + 1 or None) if isinstance(i, int) else i for i in kept.values()]
    parts = {
        "starts": [s.start or 0 for s in slices],
        "ends": [last if s.stop is None else s.stop for s in slices],
        "axes": list(kept),
        "steps": [s.step or 1 for s in slices],
    }
    constants = [site.constant(name, np.array(values, np.int64)) for name, values in parts.items()]
    return site.node("Slice", [tensor, *constants], "sliced" if any(isinstance(i, int) for i in kept.values()) else "")


def interleave(site: Site) -> str:
    (sh, sw), keep = site.call.args[1:]
    return _interleaved(site, sh, sw, {axis: part for axis, part in zip((2, 3), keep) if part != slice(0, None)})


def pixel_shuffle(site: Site) -> str:
    factor = site.setting(1, "upscale_factor")
    return _interleaved(site, factor, factor, {})


def _interleaved(site: Site, sh: int, sw: int, kept: dict[int, slice]) -> str:
    """Channels (C, sh, sw) into rows and columns, as quant.integer.transforms.interleave_phases does."""
    _, channels, height, width = site.source_shape()
    apart = site.constant("apart_shape", np.array([-1, channels // (sh * sw), sh, sw, height, width], np.int64))
    ordered = site.node(
        "Transpose", [site.node("Reshape", [site.source(), apart], "apart")], "ordered", perm=[0, 1, 4, 2, 5, 3]
    )
    together = site.constant("together_shape", np.array([-1, channels // (sh * sw), height * sh, width * sw], np.int64))
    return _slice(site, site.node("Reshape", [ordered, together], "together" if kept else ""), kept)
