"""What is timed: parts as they stand inside a network, on every engine, and the call that each pays."""

import collections
import time

import onnx
import pytest
import torch
from torch import nn

import quant
from frostnet import FrostNet
from latency_lut import LatencyTable, prepare, time_interleaved, torch_threads
from latency_lut.build import build_section
from latency_lut.sections import parts
from nas import BlockSpec, HeadSpec, SearchSpace, StemSpec
from nas.space import Choice, Slot, Stage
from quant.executors.onnxruntime import optimised
from tests.latency_lut.small import SmallNetwork
from tests.latency_lut.tables import random_arch
from tests.spaces import tiny_space

ENGINES = [engine for engine in quant.available() if engine != "openvino"]
SESSIONS = pytest.mark.skipif("onnxruntime" not in quant.available(), reason="onnxruntime is not installed")
BLOCKS = [
    BlockSpec("mb", 3, 16, 16, 1, 3, 0, "relu"),
    BlockSpec("frost", 5, 16, 24, 2, 3, 2, "relu"),
    BlockSpec("se", 3, 16, 16, 1, 3, 4, "hard_swish"),
    BlockSpec("add", 3, 16, 16, 1, 3, 2, "hard_swish"),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("spec", BLOCKS, ids=lambda s: s.op)
def test_a_part_takes_codes_and_gives_codes(spec, engine):
    with torch_threads(1), quant.use_engine(engine), torch.inference_mode():
        with torch.inference_mode(False):
            call = prepare.part(spec, 8, engine, batch=2)
        (codes,) = call.args
        out = call()
    integer = torch.uint8 if engine == "onnxruntime" else torch.quint8
    assert codes.dtype == out.dtype == integer
    shape = (2, 8, 8, 16) if engine == "onnxruntime" else (2, 16, 8, 8)
    assert codes.shape == shape and codes.numel() == 2 * 16 * 64


@SESSIONS
@pytest.mark.parametrize("spec", [*BLOCKS[:2], StemSpec(3, 16, 3, 2, "relu")], ids=("mb", "frost", "stem"))
def test_a_session_of_a_part_neither_turns_nor_converts_its_tensors(spec):
    with torch_threads(1):
        kinds = collections.Counter(
            node.op_type for node in optimised(onnx.load_from_string(_session(spec).model)).graph.node
        )
    assert set(kinds) <= {"QLinearConv", "QLinearConcat", "QLinearAdd"}, kinds


@SESSIONS
@pytest.mark.parametrize("spec", [BLOCKS[1], HeadSpec(16, 32, 5, 0.0, "relu")], ids=("frost", "head"))
def test_turned_tensors_change_no_code(spec):
    torch.manual_seed(0)
    with torch_threads(1):
        network = prepare.to_int8(prepare.build(spec), 16, 8, "onnxruntime", codes_io=True)
        codes = quant.code_inputs(network, torch.rand(2, 16, 8, 8))
        plain = quant.freeze(network, *codes)
        turned = prepare.OnnxNetwork(prepare.channels_last(plain.model), "onnxruntime")
        expected, got = plain(*codes), turned(*(x.permute(0, 2, 3, 1).contiguous() for x in codes))
    assert torch.equal(expected, got.permute(0, 3, 1, 2) if got.dim() == 4 else got)


def _session(spec):
    return prepare.part(spec, 8, "onnxruntime").func


@SESSIONS
def test_on_one_thread_a_session_works_on_the_calling_thread():
    """Else the thread's CPU time, which is the clock, would miss its work."""
    spec = BlockSpec("mb", 3, 64, 64, 1, 6, 0, "relu")
    with torch_threads(1):
        call = prepare.part(spec, 56, "onnxruntime")
        call()
        process, thread = time.process_time(), time.thread_time()
        for _ in range(20):
            call()
        spent = time.process_time() - process, time.thread_time() - thread
    assert spent[1] > 0.95 * spent[0] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_call_is_quicker_than_a_part(engine):
    with torch_threads(1), quant.use_engine(engine):
        calls = {
            "call": prepare.call(engine),
            "part": prepare.part(BlockSpec("mb", 3, 16, 16, 1, 3, 0, "relu"), 32, engine),
        }
        ms = {name: timing.ms for name, timing in time_interleaved(calls, rounds=6, spacing=0).items()}
    assert 0 < ms["call"] < ms["part"]


def test_parts_that_are_no_codes_are_refused(monkeypatch):
    real = quant.code_inputs
    monkeypatch.setattr(quant, "code_inputs", lambda *a: tuple(x.contiguous() for x in real(*a)))  # NCHW in memory
    engine = next(engine for engine in ENGINES if engine != "onnxruntime")
    with pytest.raises(RuntimeError, match="quantized channels_last"):
        prepare.part(BLOCKS[0], 8, engine)


def test_a_part_in_training_mode_is_refused(monkeypatch):
    real = prepare.to_int8
    monkeypatch.setattr(prepare, "to_int8", lambda *a, **k: real(*a, **k).train())
    with pytest.raises(RuntimeError, match="evaluation mode"):
        prepare.part(BLOCKS[0], 8, ENGINES[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_of_squeeze_and_add_has_live_branches(engine):
    """They begin at zero, which has no range to quantize by."""
    arch = _other_blocks().architecture(Choice((1, 1, 1), ((0,), (0, 0), (2,))))
    torch.manual_seed(0)
    network = prepare.to_int8(FrostNet(arch), 3, 16, engine)
    scales = [op.qparams.scale for op in network.graph.ops if op.qparams]
    assert min(scales) > 1e-4 and arch.blocks[-1].op == "add"


def _other_blocks(input_size: int = 16, num_classes: int = 4) -> SearchSpace:
    """The tiny space with squeeze and excite, squeeze and add, and hard-swish among its candidates."""
    space = tiny_space(input_size, num_classes)
    kinds = (("mb", 0, "relu"), ("se", 4, "hard_swish"), ("add", 2, "relu"))
    slot = Slot(tuple(BlockSpec(op, 3, 16, 24, 2, 3, squeeze, activation) for op, squeeze, activation in kinds))
    stages = (*space.stages[:2], Stage((slot,), 1))
    return SearchSpace("others", 1.0, input_size, space.stem, stages, space.head)


@pytest.mark.parametrize("engine", [e for e in ENGINES if e in ("qnnpack", "onnxruntime")])
def test_a_space_of_other_blocks_is_measured_at_a_batch(engine, tmp_path):
    space = _other_blocks(64)  # blocks that take much longer than a call
    table = build_section(
        LatencyTable.new(engine, 1, tmp_path / "lut.json", batch=2), space, (4,), networks=3, rounds=3
    )
    again = LatencyTable.load(table.path)
    assert again.meta["batch"] == 2 and again.sections["others_1_64"].complete
    latency = again.for_space(space)
    assert all(ms > 0 for stage in latency.blocks for slot in stage for ms in slot)
    again.check(engine, 1, batch=2)


# ---- batch norms before anything is timed ------------------------------------------------------------------


def test_settling_gives_batch_norms_the_images_statistics(images):
    small = SmallNetwork()
    quant.recalibrate(small.eval(), [images])
    made = small.body[0](images)
    first = small.body[1]
    assert torch.allclose(first.running_mean, made.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(first.running_var, made.var((0, 2, 3)), rtol=1e-4)
    assert first.momentum == 0.1 and not any(module.training for module in small.modules())


def test_deep_networks_keep_tensors_of_ordinary_size(images):
    deep = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)) for _ in range(30))
    )
    for conv, _ in deep:
        nn.init.constant_(conv.weight, 0.0)
        nn.init.dirac_(conv.weight)
        conv.weight.data *= 0.5
    with torch.no_grad():
        faded = deep.eval()(images).std().item()
        quant.recalibrate(deep.eval(), [images])
        assert faded < 1e-8 and 0.5 < deep(images).std().item() < 2


def test_parts_name_the_stem_first():
    assert list(parts(random_arch(1)))[0] == "stem"  # LatencyTable.sum_up takes its call to be the network's
