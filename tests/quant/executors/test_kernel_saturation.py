"""Kernel traps: sums of pairs of 8-bit products in 16 bits, which saturate where weights are large."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

import quant
from tests import ROOT
from tests.quant.executors.kernels import ENGINES, compared, each_engine

X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def steps_at_worst_codes(engine, channels, groups, limits_of=None):
    """How far an engine is off where all activations are 255 and all weights at one end of the range of `limits_of`."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.weight[1::2] = -1.0
    x = torch.ones(2, channels, 6, 6)
    x[1] = 0
    executor, report = compared(nn.Sequential(conv), x, engine, limits_of)
    layer = next(op for op in executor.graph.ops if op.kind == "conv")
    assert layer.weight.abs().min() == quant.weight_qmax(limits_of or engine)
    assert executor.graph.op(layer.inputs[0]).qparams.quantize(x[:1]).min() == 255
    return report.worst.engine_steps


WORST = [(16, 1), (64, 4), (16, 16), (58, 58), (100, 100), (104, 104), (128, 128)]  # channels and groups


@each_engine
@pytest.mark.parametrize(("channels", "groups"), WORST)
def test_nothing_saturates_at_the_worst_codes(channels, groups, engine):
    assert steps_at_worst_codes(engine, channels, groups) <= 1


@pytest.mark.skipif(not X86, reason="vpmaddubsw, which adds pairs of products in 16 bits, is an instruction of x86")
@pytest.mark.parametrize(("engine", "channels"), [("fbgemm", 16), ("fbgemm", 104), ("x86", 104), ("x86", 128)])
def test_without_the_limit_on_weights_depthwise_convolutions_saturate(engine, channels):
    """The trap is real, on CPUs with VNNI too; should it go away, the limit can."""
    if engine not in ENGINES:
        pytest.skip(f"{engine} does not run here")
    assert steps_at_worst_codes(engine, channels, channels, limits_of="reference") > 10


AVX2_CODE = """
import json, torch
torch.set_num_threads(1)
from tests.quant.executors.test_kernel_saturation import WORST, steps_at_worst_codes
engines = [e for e in ("fbgemm", "x86", "onednn") if e in torch.backends.quantized.supported_engines]
print(json.dumps({f"{e} {limits_of}": {str(c): steps_at_worst_codes(e, *c, limits_of) for c in WORST}
                  for e in engines for limits_of in ("fbgemm", "reference")}))
"""


@pytest.fixture(scope="module")
def on_avx2():
    """{"engine limits": {"(channels, groups)": steps}} on this CPU held down to AVX2, which has no VNNI."""
    if not X86:
        pytest.skip("AVX2 is of x86")
    environment = os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AVX2_CODE], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("engine", ["fbgemm", "x86", "onednn"])
def test_weights_up_to_63_saturate_nothing_on_avx2(on_avx2, engine):
    if engine not in ENGINES:
        pytest.skip(f"{engine} does not run here")
    assert len(on_avx2[f"{engine} fbgemm"]) == len(WORST)
    assert max(on_avx2[f"{engine} fbgemm"].values()) <= 1, on_avx2[f"{engine} fbgemm"]


@pytest.mark.parametrize(
    ("engine", "case"), [("fbgemm", "(16, 16)"), ("fbgemm", "(104, 104)"), ("onednn", "(16, 1)"), ("onednn", "(64, 4)")]
)
def test_full_weights_do_on_avx2(on_avx2, engine, case):
    """fbgemm in depthwise, onednn in dense and grouped convolutions: why weight_qmax depends on VNNI."""
    if engine not in ENGINES:
        pytest.skip(f"{engine} does not run here")
    assert on_avx2[f"{engine} reference"][case] > 10, on_avx2
