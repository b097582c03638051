"""Pooling and resizing as ONNX: one function for each sort of call (quant/export/onnx/calls.py)."""

import numpy as np

from quant.attach import ops
from quant.export.onnx.moves import reshape_to
from quant.export.onnx.site import Site


def _window(site: Site) -> dict:
    kernel, padding = site.setting(1, "kernel_size"), site.setting(3, "padding", 0)
    stride = site.setting(2, "stride") or kernel
    return {"kernel_shape": ops.pair(kernel), "strides": ops.pair(stride), "pads": 2 * ops.pair(padding)}


def max_pool(site: Site) -> str:
    dilations, ceil = ops.pair(site.setting(4, "dilation", 1)), int(site.setting(5, "ceil_mode", False))
    return site.node("MaxPool", [site.source()], **_window(site), dilations=dilations, ceil_mode=ceil)


def average_pool(site: Site) -> str:
    ceil, include = int(site.setting(4, "ceil_mode", False)), int(site.setting(5, "count_include_pad", True))
    if site.setting(6, "divisor_override") is not None:
        raise site.unknown("divisor_override")
    # by float arithmetic: onnxruntime's integer kernel takes 3 to 14 times as long, and is wrong at a last window cut
    # short
    return site.node("AveragePool", [site.real_source()], **_window(site), ceil_mode=ceil, count_include_pad=include)


def adaptive_average(site: Site) -> str:
    """Even windows are an average pool, uneven ones two matrix products with rows of weights 1 / length."""
    (*_, height, width), (*_, h, w) = site.source_shape(), site.shape
    if (h, w) == (1, 1):
        return site.node("GlobalAveragePool", [site.source()])
    if height % h == 0 and width % w == 0:
        kernel = [height // h, width // w]
        return site.node("AveragePool", [site.real_source()], kernel_shape=kernel, strides=kernel)
    columns = site.node("MatMul", [site.source(), site.constant("columns", _windows(width, w).T)], "columns_averaged")
    return site.node("MatMul", [site.constant("rows", _windows(height, h)), columns])


def _windows(size: int, parts: int) -> np.ndarray:
    """(parts, size): the weights by which adaptive pooling averages."""
    rows = np.zeros((parts, size), np.float32)
    for i, row in enumerate(rows):
        start, end = i * size // parts, -(-(i + 1) * size // parts)
        row[start:end] = 1 / (end - start)
    return rows


def mean(site: Site) -> str:
    dims, keep = site.setting(1, "dim"), int(site.setting(2, "keepdim", False))
    rank = len(site.source_shape())
    if dims is None:
        raise site.unknown("over the batch too")
    dims = sorted(d % rank for d in (dims if isinstance(dims, (tuple, list)) else [dims]))
    if rank == 4 and dims == [2, 3]:  # the form that runtimes know as an integer operation
        pooled = site.node("GlobalAveragePool", [site.source()], "" if keep else "pooled")
        return pooled if keep else reshape_to(site, pooled)
    return site.node("ReduceMean", [site.source(), site.constant("axes", np.array(dims))], keepdims=keep)


def resize(site: Site) -> str:
    mode, corners = site.setting(3, "mode", "nearest"), bool(site.setting(4, "align_corners", False))
    if mode not in ("nearest", "bilinear"):
        raise site.unknown(f"mode {mode!r}")
    if site.setting(6, "antialias", False) or len(site.shape) != 4:
        raise site.unknown("antialias, or no picture")
    factor, again = site.setting(2, "scale_factor"), site.setting(5, "recompute_scale_factor")
    source = site.codes_as_numbers() if site.op.kind == "resize" else site.source()
    if factor is not None and not again:  # torch's grid then follows the factor, not the two sizes
        size = ["", site.constant("factors", np.array([1, 1, *ops.pair(factor)], np.float32))]
    else:  # of all four dimensions: onnxruntime reorders them, and does not heed `axes` then
        batch = site.node("Shape", [source], "batch", start=0, end=2)
        size = [
            "",
            "",
            site.node("Concat", [batch, site.constant("size", np.array(site.shape[2:], np.int64))], "sizes", axis=0),
        ]
    half = "align_corners" if corners else "pytorch_half_pixel"
    how = {"mode": "linear", "coordinate_transformation_mode": half} if mode == "bilinear" else _NEAREST
    return site.node("Resize", [source, *size], **how)


_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
