"""The floors of the house: a package imports only packages on strictly lower floors."""

import ast
from pathlib import Path

import pytest

from tests import ROOT

FLOORS = {
    "common": 0,
    "quant": 1,
    "nas": 1,
    "frostnet": 2,
    "zoo": 3,
    "latency_lut": 4,
    "supernet": 4,
    "tasks": 4,
    "search": 5,
    "retrain": 5,
}


def sources(name: str) -> list[Path]:
    folder = ROOT / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{name}.py"]


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", FLOORS)
def test_imports_go_down(name):
    assert sources(name)
    for path in sources(name):
        for other in (imported(path) & FLOORS.keys()) - {name}:
            assert FLOORS[other] < FLOORS[name], f"{path.relative_to(ROOT)} imports {other}"


def test_every_package_has_a_floor():
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests"}
    modules = {p.stem for p in ROOT.glob("*.py")}
    assert packages | modules == FLOORS.keys()


def test_nothing_imports_torchs_own_quantization_front_end():
    for path in [p for name in FLOORS for p in sources(name)]:
        assert "torch.ao" not in path.read_text(), path
