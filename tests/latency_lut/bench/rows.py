"""Made-up results of benchmarks."""

import quant
from latency_lut.bench.contenders import FLOATS, FROZEN
from latency_lut.bench.measure import Job

ENGINE = quant.available()[0]
OPERATION = {"op": "conv", "kind": "integer", "calls": 1, "ms": 1.0, "share": 0.5}


def row(name: str, *rounds_ms: float, float_ops=None, file_bytes=1_000_000) -> dict:
    ops = float_ops if name not in FLOATS else None
    return {
        "name": name,
        "rounds_ms": list(rounds_ms),
        "file_bytes": file_bytes,
        "float_ops": ops,
        "float_convs": 0,
        "reason": None,
    }


def result(arch="net", threads=1, batch=1, rows=(), **fields) -> dict:
    about = {
        "arch": arch,
        "input_size": 32,
        "classes": 10,
        "threads": threads,
        "batch": batch,
        "params": 5,
        "macs": 7,
        "fingerprint": "f",
    }
    seen = {"date": "2020-01-01 00:00:00", "seconds": 1.0, "load": 0.5, "steal": None}
    rows = list(rows) or [row(FROZEN, 4.0, 4.0, 4.1), row(ENGINE, 2.0, 2.0, 2.1, float_ops=[])]
    return {**about, "rounds": 3, "rows": rows, "profile": {}, "seen": seen, **fields}


def job(**fields) -> Job:
    about = result(**fields)
    return Job(**{field: about[field] for field in Job._fields})
