"""What the machine says about itself, on made-up /proc files."""

import pytest

from latency_lut import machine

CPUINFO = """processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu sse4_1 avx2 avx fma avx512_vnni amx_int8 lm

processor\t: 1
model name\t: AMD EPYC
"""


@pytest.fixture
def files(monkeypatch):
    content = {"/proc/cpuinfo": CPUINFO, "/proc/stat": "cpu  10 0 10 60 0 0 0 20 0 0\ncpu0 1 2\n"}
    monkeypatch.setattr(machine, "_read", lambda path: content.get(path, ""))
    return content


def test_the_cpu_is_its_model_and_the_instruction_sets_that_kernels_use(files):
    assert machine.cpu_model() == "AMD EPYC"
    assert machine.cpu_flags() == ("amx_int8", "avx", "avx2", "avx512_vnni", "fma", "sse4_1")


def test_an_arm_cpu_lists_features_instead(files):
    files["/proc/cpuinfo"] = "CPU implementer : 0x41\nFeatures : fp asimd asimddp i8mm crc32\n"
    assert machine.cpu_flags() == ("asimd", "asimddp", "i8mm")
    assert machine.cpu_model() != ""


def test_steal_is_the_share_of_the_time_since_the_watch_began(files):
    watch = machine.Watch()
    files["/proc/stat"] = "cpu  60 0 20 70 0 0 0 50 0 0\n"  # 50 + 10 + 10 of work and rest, 30 stolen
    assert watch.seen()["steal"] == 0.3


def test_without_proc_there_is_no_steal_and_no_flags(files):
    files.clear()
    assert machine.Watch().seen()["steal"] is None
    assert machine.cpu_flags() == ()


def test_the_watch_notes_seconds_and_load():
    seen = machine.Watch().seen()
    assert seen["seconds"] >= 0 and seen["load"] >= 0
