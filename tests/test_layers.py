"""The import rule: a package imports only packages in rows above it, and no modules import one another in a circle."""

import ast
from pathlib import Path

import networkx
import pytest

from tests import ROOT

LAYERS = (
    "common",
    "quant",
    "nas",
    "frostnet",
    "zoo",
    "supernet",
    "latency_lut",
    "tasks",
    "search",
    "retrain",
    "benchmarks",
)
PROGRAMS = {"search", "retrain"}  # nothing but benchmarks imports them


def sources(name: str) -> list[Path]:
    folder = ROOT / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{name}.py"]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(nodes) -> set[str]:
    """Dotted names that import statements among the nodes name: of `from a import b` both a and a.b."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_a_package_imports_only_those_above_it(name):
    above = set(LAYERS[: LAYERS.index(name)]) - (PROGRAMS if name != "benchmarks" else set())
    assert sources(name)
    for path in sources(name):
        others = {dotted.split(".")[0] for dotted in imported(ast.walk(ast.parse(path.read_text())))} & set(LAYERS)
        assert others <= above | {name}, f"{path.relative_to(ROOT)} imports {', '.join(others - above - {name})}"


def test_every_package_and_program_has_a_layer():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert packages | modules | {"benchmarks"} == set(LAYERS)


def test_no_modules_import_one_another_in_a_circle():
    """Imports at the top of a module; one inside a function runs later and is no part of a circle."""
    modules = {module_name(path): path for name in LAYERS for path in sources(name)}
    edges = [
        (module, other)
        for module, path in modules.items()
        for other in imported(ast.parse(path.read_text()).body) & modules.keys()
        if other != module and not (module + ".").startswith(other + ".")  # its own package's __init__
    ]
    assert not list(networkx.simple_cycles(networkx.DiGraph(edges)))


def test_nothing_imports_torchs_own_quantization_front_end():
    for path in [path for name in LAYERS if name != "benchmarks" for path in sources(name)]:
        assert "torch.ao" not in path.read_text(), path
