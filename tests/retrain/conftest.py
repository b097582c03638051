"""A small folder of images, and retrain.py without timing and report."""

import numpy as np
import pytest
from PIL import Image

import retrain
from latency_lut import Timing
from tests.retrain.runs import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of pictures that differ in brightness, and a tiny architecture."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        for c, name in enumerate(("dark", "grey", "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (16, 16, 3)) + 60 * c
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    tiny(16).save(root / "tiny.json")
    return root


@pytest.fixture
def quick(monkeypatch):
    """No timing and no report: what most tests look at comes before."""
    monkeypatch.setattr(
        retrain, "time_networks", lambda networks, *_, **__: {name: Timing((1.0, 1.0, 1.0)) for name in networks}
    )
    monkeypatch.setattr(retrain, "write_report", lambda path: path / "report.html")
