"""Peak memory of an inference, float and INT8, each form of each network in a process of its own, on one thread.

    PYTHONPATH=. python benchmarks/inference_memory.py        # about ten minutes; the same command goes on where it was
    stopped

Counted is resident memory above what the process held before it loaded the network's file, when the libraries were
imported and had run a tiny network of the same form: "peak" from there on, "running" after the second inference, when
nothing is loaded or compiled any more. Linux only. Prints a table and one JSON line; writes
docs/results/latency_memory.json, which benchmarks/latency_tables.py puts into its page.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pandas
import torch
from torch import Tensor, nn
from tqdm import tqdm

import quant
import zoo
from common.checks import check_int, check_list, check_number, check_object, check_str
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import read_json, write_json
from latency_lut import prepare, torch_threads
from latency_lut.bench.contenders import EAGER, FLOATS, SESSION, contenders
from latency_lut.machine import describe

NETWORKS = ("mobilenet_v2", "resnet18", "frostnet_large_1_0")
FORMS = (*FLOATS, "fbgemm", "qnnpack", "x86", "onednn", "onnxruntime")
TINY = ("resnet20", 10, 32)  # name, classes, pixels of the network that runs before anything is counted
COMPILING, RUNNING = 2, 5  # inferences


@dataclass(frozen=True)
class MemoryConfig:
    networks: tuple[str, ...] = option(NETWORKS, "networks")
    forms: tuple[str, ...] = option(FORMS, "forms of each")
    batch: tuple[int, ...] = option((1, 8), "pictures at a time")
    input_size: int = option(224, "pixels")
    repeats: int = option(3, "processes of each kind; the median counts")
    output: str = option("docs/results/latency_memory.json", "file to write")
    measure: str = option("", "only measure the files of one network in this process (used by the program itself)")

    def __post_init__(self):
        if not Path("/proc/self/clear_refs").exists():
            raise UserError("this benchmark reads and resets the peak in /proc, which only Linux has")
        for name in self.forms:
            if name not in FORMS:
                raise UserError(f"forms: {name!r} is not one of {', '.join(FORMS)}")
        for field, values in (("repeats", (self.repeats,)), ("batch", self.batch)):
            if not values or min(values) < 1:
                raise UserError(f"{field}: must be 1 or more")


@guard(errors=(quant.QuantError,))
def main(argv=None) -> dict:
    """Measure what is missing; returns what the file holds."""
    config = parse(MemoryConfig, argv, "inference_memory.py", __doc__)
    if config.measure:
        return in_this_process(json.loads(config.measure))
    found = begun(config)
    kinds = [(network, batch, form) for network in config.networks for batch in config.batch for form in config.forms]
    known = {(row["network"], row["batch"], row["form"]) for row in found["rows"]}
    with tqdm(total=len(kinds), initial=len(known & set(kinds)), unit="form") as bar:
        for network in config.networks:
            for batch in config.batch:
                for form in (form for form in config.forms if (network, batch, form) not in known):
                    found["rows"].append(measured(config, network, batch, form))
                    write_json(config.output, found)
                    bar.update()
    shown = [row for row in found["rows"] if (row["network"], row["batch"], row["form"]) in kinds]
    print(pandas.DataFrame(shown).to_string(index=False))
    print(json.dumps({"rows": shown}))
    return found


def begun(config: MemoryConfig) -> dict:
    """What the file holds, else nothing yet.

    Raises UserError for a broken file and for one that was measured under other settings.
    """
    fresh = {"meta": describe(), "input_size": config.input_size, "repeats": config.repeats, "rows": []}
    if not Path(config.output).exists():
        return fresh
    before = read_json(config.output)
    try:
        check(before, fresh)
    except UserError as error:
        raise UserError(f"{config.output}: {error}; choose another --output, or remove the file") from error
    return before


def check(before: Any, fresh: dict) -> None:
    """Raises UserError naming the field where a file's content is broken or has other settings than `fresh`."""
    check_object("the file", before)
    check_object("", before, tuple(fresh))
    there = before | check_object("meta", before["meta"], tuple(fresh["meta"]))
    here = fresh | fresh["meta"]
    for field in (*fresh["meta"], "input_size", "repeats"):
        if there[field] != here[field]:
            raise UserError(f"{field}: measured with {there[field]}, here is {here[field]}")
    for number, row in enumerate(check_list("rows", before["rows"])):
        path = f"rows[{number}]"
        check_object(path, row, ("network", "batch", "form", "peak_mib", "running_mib"))
        check_str(f"{path}.network", row["network"])
        check_str(f"{path}.form", row["form"], FORMS)
        check_int(f"{path}.batch", row["batch"], 1, 2**20)
        for field in ("peak_mib", "running_mib"):
            check_number(f"{path}.{field}", row[field])


def measured(config: MemoryConfig, network: str, batch: int, form: str) -> dict:
    """Median peaks of a form in MiB, each of `repeats` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        job = {"form": form, "threads": 1}
        for name, (model, classes, size), pictures in (
            ("tiny", TINY, 1),
            ("network", (network, 1000, config.input_size), batch),
        ):
            job[name] = {
                "path": f"{folder}/{name}",
                "model": model,
                "classes": classes,
                "size": size,
                "batch": pictures,
            }
            write_form(form, **job[name])
        done = [in_a_process(job) for _ in range(config.repeats)]
    medians = {field: round(statistics.median(d[field] for d in done), 2) for field in done[0]}
    return {"network": network, "batch": batch, "form": form, **medians}


def write_form(form: str, path: str, model: str, classes: int, size: int, batch: int) -> None:
    """The file that deploys one form of a network."""
    with torch_threads(1), quant.use_engine("reference"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, images = zoo.build(model, classes, size), torch.rand(max(batch, prepare.IMAGES), 3, size, size)
        quant.recalibrate(network.eval(), [images[: prepare.IMAGES]])
        ready, reasons = contenders(network, images[:batch], (form,))
        if form in reasons:
            raise UserError(f"{model}, {form}: {reasons[form]}")
        if form == EAGER:
            torch.save(network.state_dict(), path)
        else:
            ready[form].network.save(path)


# ---- the process that is measured --------------------------------------------------------------------------


def in_a_process(job: dict) -> dict[str, float]:
    """What `in_this_process` prints in a new one. Raises UserError where that fails."""
    words = [sys.executable, __file__, "--measure", json.dumps(job)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    if done.returncode:
        raise UserError(
            f"{job['network']['model']}, {job['form']}: {(done.stderr.strip() or 'it was killed').splitlines()[-1]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def in_this_process(job: dict) -> dict[str, float]:
    """{"peak_mib", "running_mib"} of loading and running a network's file, above the level before; printed as JSON."""
    torch.set_num_threads(job["threads"])
    with torch.inference_mode(), quant.use_engine("reference"):
        load_and_run(job["form"], job["tiny"], COMPILING)
        image = picture(job["form"], job["network"])
        level = resident("VmRSS")
        forget_peak()
        run = load_and_run(job["form"], job["network"], COMPILING, image)
        peak = resident("VmHWM") - level
        forget_peak()
        for _ in range(RUNNING):
            run(image)
        running = resident("VmHWM") - level
        result = {"peak_mib": max(peak, running), "running_mib": running}
    print(json.dumps(result))
    return result


def load_and_run(form: str, about: dict, times: int, image: Tensor | None = None) -> Callable:
    run = loaded(form, about)
    for _ in range(times):
        run(picture(form, about) if image is None else image)
    return run


def picture(form: str, about: dict) -> Tensor:
    image = torch.rand(about["batch"], 3, about["size"], about["size"])
    return image if form in (SESSION, "onnxruntime") else image.contiguous(memory_format=torch.channels_last)


def loaded(form: str, about: dict) -> Callable[[Tensor], object]:
    """A network from its file, as one would deploy it."""
    if form == EAGER:
        return eager(about)
    if form not in (SESSION, "onnxruntime"):
        return quant.load_frozen(Path(about["path"]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(about["path"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image.numpy()})


def eager(about: dict) -> nn.Module:
    """The module with the file's own tensors as its parameters: weights are never held twice."""
    with torch.device("meta"):
        model = zoo.build(about["model"], about["classes"], about["size"])
    model.load_state_dict(torch.load(about["path"], weights_only=True), assign=True)
    return model.eval().to(memory_format=torch.channels_last)


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak) of this process in MiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found.group(1)) / 1024


def forget_peak() -> None:
    """Make the peak what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
