"""A small search through search.main(argv): a tiny space, a made-up table and small images."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import search
from nas import SPACES
from nas.derive import latency_range
from tests.latency_lut.tables import made_up
from tests.spaces import tiny_space

SMALL = (
    "--base-steps 3 --float-steps 3 --quant-steps 3 --joint-steps 6 --batch-size 8 --rescored 2 --controls 2 "
    "--score-images 8 --tune-steps 2 --input-size 16"
).split()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four classes that differ in brightness."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 4)):
        for c in range(4):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 60, (16, 16, 3)) + 60 * c
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"class{c}" / f"{i}.png")
    return root


@pytest.fixture
def world(tmp_path, pictures, monkeypatch):
    """argv of a small search: a tiny space, networks take 90 % of what the table says, no report is drawn."""
    return made_world(tmp_path, pictures, monkeypatch)


@pytest.fixture(scope="module")
def once(tmp_path_factory, pictures):
    """The folder of the search of `world`, run to its end. Tests read it and leave it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        return search.main(made_world(tmp_path_factory.mktemp("once"), pictures, patch))


@pytest.fixture
def ended(once, world, tmp_path):
    """A copy of the folder of that search, where the argv of `world` finds it."""
    return shutil.copytree(once, tmp_path / "runs" / once.name)


def made_world(tmp_path, pictures, monkeypatch):
    monkeypatch.setitem(SPACES, "frostnet", lambda width, size, num_classes: tiny_space(size, num_classes))
    monkeypatch.setattr(search, "write_report", lambda path: (path / "report.html").touch())
    space = tiny_space(16, 4)
    table = made_up(tmp_path / "table.json", space)
    table.save()
    fastest, slowest = latency_range(space, table.for_space(space))
    target = (fastest + slowest) / 2
    monkeypatch.setattr(search, "measure", lambda networks, *_: dict.fromkeys(networks, 0.9 * target))
    argv = [
        "--latency-lut",
        str(tmp_path / "table.json"),
        "--data",
        "imagefolder",
        "--data-root",
        str(pictures),
        "--runs",
        str(tmp_path / "runs"),
    ]
    return [*argv, "--target-ms", str(target), *SMALL]


def refused(capsys, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        search.main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def log(path):
    return (path / "log.jsonl").read_text()


def arch_without_provenance(path):
    return {k: v for k, v in json.loads((path / "arch.json").read_text()).items() if k != "provenance"}
