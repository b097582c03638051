"""Where a network's time goes, operation by operation: by torch's profiler, for sessions by that of their runtime.

A row is {"op", "kind", "calls", "ms", "share"} of one inference, the quietest of RUNS. kind is "integer", "float",
"convert" (between the two), or "" where the profiler does not tell. The profilers cost time themselves: shares say more
than milliseconds.
"""

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from common.errors import UserError
from common.files import read_json
from latency_lut.bench.contenders import Contender, engine_of

RUNS = 8  # inferences that are profiled, after WARM_UP
WARM_UP = 3
TOP = 12  # rows that are kept, the longest first

# else torch's profiler reports on stderr that it starts, stops and finds no GPU
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

_CONVERSIONS = ("aten::quantize_per_tensor", "aten::dequantize", "QuantizeLinear", "DequantizeLinear")


class Event(NamedTuple):
    op: str
    kind: str
    calls: int
    microseconds: float


def profile_rows(contender: Contender) -> list[dict]:
    """The TOP rows of a network, the longest first. Raises UserError where nothing profiles it."""
    engine = engine_of(contender.name)
    profiled = SESSION_PROFILERS.get(engine.runtime) if engine.session else _torch_runs
    if profiled is None:
        raise UserError(f"engine: {contender.name!r} has no profile here; the others do")
    return rows(min(profiled(contender), key=lambda events: sum(e.microseconds for e in events)))


def rows(events: Iterable[Event], top: int = TOP) -> list[dict]:
    """The `top` longest operations of one inference."""
    calls, spent = defaultdict(int), defaultdict(float)
    for event in events:
        calls[event[:2]] += event.calls
        spent[event[:2]] += event.microseconds
    whole = sum(spent.values()) or 1.0
    return [
        {
            "op": key[0],
            "kind": key[1],
            "calls": calls[key],
            "ms": round(spent[key] / 1000, 4),
            "share": round(spent[key] / whole, 4),
        }
        for key in sorted(spent, key=spent.get, reverse=True)[:top]
    ]


# ---- torch -------------------------------------------------------------------------------------------------


def _torch_runs(contender: Contender) -> list[list[Event]]:
    with torch.inference_mode():
        return [_torch_run(contender) for _ in range(WARM_UP + RUNS)][WARM_UP:]


def _torch_run(contender: Contender) -> list[Event]:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        contender()
    return [Event(e.key, _torch_kind(e.key), e.count, e.self_cpu_time_total) for e in recorded.key_averages()]


def _torch_kind(name: str) -> str:
    if name in _CONVERSIONS:
        return "convert"
    return "integer" if name.startswith("quantized::") or "quantized_" in name else ""


# ---- onnxruntime -------------------------------------------------------------------------------------------


def _onnxruntime_runs(contender: Contender) -> list[list[Event]]:
    import onnxruntime  # an optional extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(contender.network.model, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: contender.image.numpy()}
        for _ in range(WARM_UP + RUNS):
            session.run(None, feed)
        found = read_json(session.end_profiling())
    kernels = [e for e in found if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    events = [Event(e["args"]["op_name"], onnx_kind(e["args"]), 1, e["dur"]) for e in kernels]
    each = len(events) // (WARM_UP + RUNS)  # every run runs the same nodes
    return [events[i * each : (i + 1) * each] for i in range(WARM_UP, WARM_UP + RUNS)]


def onnx_kind(args: dict[str, Any]) -> str:
    """Integer or float, from the operator's name and, for what knows both, the types of its results."""
    name = args["op_name"]
    if name in _CONVERSIONS:
        return "convert"
    types = {key for output in args.get("output_type_shape", ()) for key in output}
    return "integer" if name.startswith("QLinear") or name == "QGemm" or types & {"uint8", "int8"} else "float"


# by runtime; sessions of another one have no profile
SESSION_PROFILERS: dict[str, Callable[[Contender], list[list[Event]]]] = {"onnxruntime": _onnxruntime_runs}
