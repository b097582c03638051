"""What quantized training costs: one whole training step of each kind of QAT against the float step, in one interleaved
run.

    PYTHONPATH=. python benchmarks/qat_step.py                                          # int8, torch.ao, and what else
    is installed
    PYTHONPATH=. python benchmarks/qat_step.py --methods int8 lsq dorefa+pact --memory  # other methods, and the peak
    memory of each

A step is forward, cross-entropy, backward and SGD with momentum. Rounds take one step of every kind in turn, so
whatever slows the machine slows all; reported are ratios of medians. torchao (PT2E QAT) and brevitas take part where
they import. The last line is JSON.
"""

import gc
import importlib
import json
import logging
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import pandas
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quant
import zoo
from common.cli import guard, option, parse
from common.errors import UserError


class Net(NamedTuple):
    name: str  # in the zoo
    width: float | None  # for networks whose zoo name does not say it
    input_size: int
    batch: int


NETS = {
    "mobilenet_v2_0_5": Net("mobilenet_v2", 0.5, 32, 64),
    "frostnet_small_0_5": Net("frostnet_small_0_5", None, 32, 64),
    "frostnet_small_1_0_160px": Net("frostnet_small_1_0", None, 160, 16),
}
METHODS = {  # weight and activation specs; tensors that no layer reads are int8
    "int8": ("int8", "int8"),
    "fqn": ("fqn:4", "fqn:4"),
    "int8+pact": ("int8:4", "pact:4"),
    "dorefa+pact": ("dorefa:4", "pact:4"),
    "dorefa": ("dorefa:4", "dorefa:4"),
    "gdrq": ("gdrq:4", "gdrq:4"),
    "gdrq+pact": ("gdrq:4", "pact:4"),
    "lsq": ("lsq:4", "lsq:4"),
    "qil": ("qil:4", "qil:4"),
}
NEEDS = {"torch_ao": "torch.ao.quantization", "torchao_pt2e": "torchao.quantization.pt2e", "brevitas": "brevitas.graph"}
WARM_UP = 3  # steps of each kind before the clock runs


@dataclass(frozen=True)
class StepConfig:
    nets: tuple[str, ...] = option(tuple(NETS), "networks")
    methods: tuple[str, ...] = option(("int8",), "our methods")
    others: tuple[str, ...] = option(tuple(NEEDS), "other libraries; 'none' for none")
    rounds: int = option(20, "steps of each kind that are timed")
    threads: int | None = option(None, "threads (default: torch's choice)")
    device: str = option("cpu", "cpu or cuda")
    memory: bool = option(False, "measure the peak memory too, each kind in a process of its own")
    memory_of: str = option("", "only print the peak memory of NET/KIND in this process (used by --memory)")

    def __post_init__(self):
        for field, known in (("nets", NETS), ("methods", METHODS), ("others", (*NEEDS, "none"))):
            for name in getattr(self, field):
                if name not in known:
                    raise UserError(f"{field}: {name!r} is not one of {', '.join(known)}")
        if self.rounds < 1:
            raise UserError(f"rounds: {self.rounds}, must be at least 1")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device: this machine has no CUDA device; choose cpu")

    def kinds(self) -> list[str]:
        return ["float", *self.methods, *(name for name in self.others if name in NEEDS)]


@guard(errors=(quant.QuantError,))
def main(argv=None) -> dict:
    """Measure; returns what the last line says."""
    config = parse(StepConfig, argv, "qat_step.py", __doc__)
    warnings.simplefilter("ignore")  # torch.ao and torch.jit announce their end at each call
    logging.disable(logging.WARNING)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.memory_of:
        return print_peak(config)
    peaks = {net: peak_memory(config, net) for net in config.nets} if config.memory else {}
    results = {}
    for name in config.nets:
        steps, missing = built(config, name)
        results[name] = summary(config, timed(steps, config), missing) | ({"peak_mib": peaks[name]} if peaks else {})
        del steps
        gc.collect()
        show(config, name, results[name])
    print(json.dumps(results))
    return results


def built(config: StepConfig, name: str) -> tuple[dict[str, "Step"], dict[str, str]]:
    """A ready step of each kind, and why the missing ones are missing."""
    steps, missing = {}, {}
    for kind in config.kinds():
        try:
            steps[kind] = Step(NETS[name], kind, config.device)
            for _ in range(WARM_UP):
                steps[kind]()
        except UserError as error:
            missing[kind] = str(error)
            steps.pop(kind, None)
    return steps, missing


def timed(steps: dict[str, "Step"], config: StepConfig) -> dict[str, list[float]]:
    """Milliseconds of each step, a step of every kind a round; each round begins with another kind."""
    times = {kind: [] for kind in steps}
    order = list(steps)
    for round_ in range(config.rounds):
        turn = round_ % len(order)
        for kind in order[turn:] + order[:turn]:
            started = time.perf_counter()
            steps[kind]()
            times[kind].append(1e3 * (time.perf_counter() - started))
    return times


def summary(config: StepConfig, times: dict[str, list[float]], missing: dict[str, str]) -> dict:
    """Ratios of medians. `ours` is our int8 (or the first of our methods that was asked for)."""
    ms = {kind: median(values) for kind, values in times.items()}
    ours = "int8" if "int8" in config.methods else config.methods[0]
    ratios = {f"ours_over_{kind}": round(ms[ours] / ms[kind], 3) for kind in ("float", *NEEDS) if kind in ms}
    over_float = {kind: round(value / ms["float"], 3) for kind, value in ms.items() if kind != "float"}
    return ratios | {"over_float": over_float, "ms": {k: round(v, 2) for k, v in ms.items()}, "missing": missing}


def show(config: StepConfig, name: str, result: dict) -> None:
    net = NETS[name]
    where = (
        f"{config.device}, {torch.get_num_threads()} threads"
        if config.device == "cpu"
        else torch.cuda.get_device_name()
    )
    print(
        f"\n{name}: {net.input_size} px, batch {net.batch}, {config.rounds} rounds, torch {torch.__version__}, {where}"
    )
    columns = {"ms": result["ms"], "over float": {"float": 1.0} | result["over_float"]}
    if "peak_mib" in result:
        columns["peak MiB"] = result["peak_mib"]
    print(pandas.DataFrame(columns, index=list(result["ms"])).to_string(float_format="{:.2f}".format))
    for kind, why in result["missing"].items():
        print(f"missing: {kind} ({why})")


# ---- one step of each kind ---------------------------------------------------------------------------------


class Step:
    """A network, its optimizer and one batch; calling it trains one step and waits for the device."""

    def __init__(self, net: Net, kind: str, device: str):
        torch.manual_seed(0)
        x = torch.randn(net.batch, 3, net.input_size, net.input_size, device=device)
        self.x, self.y = (
            x.contiguous(memory_format=torch.channels_last),
            torch.randint(0, 10, (net.batch,), device=device),
        )
        model = float_network(net).to(device, memory_format=torch.channels_last).train()
        self.model = model if kind == "float" else quantized(model, self.x, kind)
        self.optimizer = torch.optim.SGD(parameter_groups(self.model), lr=1e-3, momentum=0.9)
        self.wait: Callable = torch.cuda.synchronize if device == "cuda" else lambda: None

    def __call__(self) -> None:
        loss = F.cross_entropy(self.model(self.x), self.y) + quant.extra_loss(self.model)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.wait()


def float_network(net: Net) -> nn.Module:
    if net.width is None:
        return zoo.build(net.name, 10, net.input_size)
    model = importlib.import_module("torchvision.models").mobilenet_v2(num_classes=10, width_mult=net.width)
    model.features[0][0].stride = (1, 1)  # as the zoo does up to 64 px
    return model


def parameter_groups(model: nn.Module) -> list[dict]:
    """Weights, and the quantizers' own parameters with the learning rates they ask for."""
    own = quant.quantizer_parameters(model)
    taken = {id(p) for group in own for p in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [{"params": rest}, *({"params": group["params"], "lr": 1e-3 * group["lr_scale"]} for group in own)]


def quantized(model: nn.Module, x: Tensor, kind: str) -> nn.Module:
    """The training form of a kind. UserError where a library is missing or cannot take the network."""
    if kind in METHODS:
        weight, activation = METHODS[kind]
        return quant.attach(model, x, quant.QuantConfig(weight=weight, activation=activation)).train()
    try:
        importlib.import_module(NEEDS[kind])
    except ImportError as error:
        raise UserError(f"does not import: {error}") from error
    try:
        return {"torch_ao": torch_ao, "torchao_pt2e": torchao_pt2e, "brevitas": brevitas}[kind](model, x)
    except Exception as error:  # whatever a library raises, the others are measured
        raise UserError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error


def torch_ao(model: nn.Module, x: Tensor) -> nn.Module:
    """FX QAT as torch documents it."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    return prepare_qat_fx(model, get_default_qat_qconfig_mapping("fbgemm"), (x,)).train()


def torchao_pt2e(model: nn.Module, x: Tensor) -> nn.Module:
    """PT2E QAT for the x86 inductor backend."""
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    return move_exported_model_to_train(prepare_qat_pt2e(torch.export.export(model, (x,)).module(), quantizer))


def brevitas(model: nn.Module, x: Tensor) -> nn.Module:
    """brevitas' layer-wise quantization with its 8-bit defaults: weights and inputs of convolutions and linear layers.
    (Its whole-graph pass does not come to an end on networks that concatenate.)"""
    from brevitas.graph.quantize import layerwise_quantize

    graph = layerwise_quantize(model)
    for module in graph.modules():
        if hasattr(module, "collect_stats_steps"):
            # else the first 300 steps sort every activation, and nothing but that is measured
            module.collect_stats_steps = 1
    return graph.to(x.device, memory_format=torch.channels_last).train()


# ---- memory ------------------------------------------------------------------------------------------------


def peak_memory(config: StepConfig, name: str) -> dict[str, float]:
    """MiB of each kind, measured in a process of its own; a kind that does not run is left out."""
    found = {}
    for kind in config.kinds():
        words = [sys.executable, __file__, "--memory-of", f"{name}/{kind}", "--device", config.device]
        words += ["--threads", str(config.threads)] if config.threads else []
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
        if done.returncode == 0:
            found[kind] = json.loads(done.stdout.splitlines()[-1])["peak_mib"]
    return found


def print_peak(config: StepConfig) -> dict:
    """On a CPU the process' peak above what it held when torch and the library were imported; on a GPU, of the
    allocator.
    """
    name, kind = config.memory_of.split("/")
    if kind in NEEDS:
        importlib.import_module(NEEDS[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = Step(NETS[name], kind, config.device)
    for _ in range(WARM_UP):
        step()
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # Linux counts in KiB
    mib = torch.cuda.max_memory_allocated() / 2**20 if config.device == "cuda" else kib / 2**10
    result = {"peak_mib": round(mib, 1)}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
