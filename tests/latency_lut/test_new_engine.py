"""A new engine is its executor and one row in quant.ENGINES: tables and benchmarks take it as it comes."""

import subprocess
import sys

from tests import ROOT

PROGRAM = """
import quant.engines as engines

row = engines.Engine("mirror", "numpy", "quant.executors.reference:Reference", "never")
engines.ENGINES["mirror"] = row

from latency_lut import LatencyTable, build
from latency_lut.bench import measure, profile
from latency_lut.__main__ import main
from latency_lut.build import build_section
from tests.spaces import tiny_space

build.MAX_ROUNDS = measure.MAX_ROUNDS = profile.RUNS = profile.WARM_UP = 1  # what is measured is not the point
table = build_section(LatencyTable.new("mirror", 1, "lut.json"), tiny_space(), (4,), networks=3, rounds=3)
assert LatencyTable.load("lut.json") == table and table.meta["runtime"].startswith("numpy ")
network = "frostnet_small_0_35"
words = ["--engine", "mirror", "--input-size", "32", "--classes", "5", "--rounds", "3", "--profile"]
results = main(["bench", "--arch", network, *words])
rows = {row["name"]: row for row in results.results[0]["rows"]}
assert rows["mirror"]["rounds_ms"] and results.meta["numpy"] and results.results[0]["profile"]["mirror"], rows
assert rows["float numpy"]["rounds_ms"], rows
"""


def test_a_new_engine_is_measured_and_benchmarked_with_its_float_form(tmp_path):
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
