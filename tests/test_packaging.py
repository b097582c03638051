"""What pyproject.toml ships: every package, top-level module and data file, and console scripts that exist."""

import importlib
import tomllib

import pytest
from setuptools import find_packages

from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
SHIPPED = set(find_packages(str(ROOT), **SETUPTOOLS["packages"]["find"]))
NOT_SHIPPED = {"tests", "benchmarks"}
PACKAGES = sorted({path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / name for name in NOT_SHIPPED})
DATA_SUFFIXES = {".json", ".css", ".html"}


def folders_of(pattern: str) -> set[str]:
    """Dotted names of the folders in packages that hold a file of this pattern."""
    return {".".join(path.parent.relative_to(ROOT).parts) for top in PACKAGES for path in top.rglob(pattern)}


def test_every_package_is_shipped_and_nothing_else():
    assert folders_of("__init__.py") == SHIPPED


def test_every_folder_with_modules_is_a_package():
    """find_packages skips a folder without __init__.py, although Python imports it from a checkout."""
    assert folders_of("*.py") == SHIPPED


def test_tests_and_benchmarks_are_not_shipped():
    assert {name.split(".")[0] for name in SHIPPED}.isdisjoint(NOT_SHIPPED)


def test_the_top_level_modules_are_those_at_the_root():
    assert set(SETUPTOOLS["py-modules"]) == {path.stem for path in ROOT.glob("*.py")}


def test_every_data_file_of_a_package_is_shipped():
    declared = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
    }
    present = {path for top in PACKAGES for path in top.rglob("*") if path.suffix in DATA_SUFFIXES}
    assert present and present == declared


@pytest.mark.parametrize("package, pattern", [(p, g) for p, gs in SETUPTOOLS["package-data"].items() for g in gs])
def test_no_pattern_of_package_data_is_empty(package, pattern):
    assert list((ROOT / package).glob(pattern))


@pytest.mark.parametrize("target", PROJECT["project"]["scripts"].values())
def test_a_console_script_calls_a_function_that_exists(target):
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert module in SETUPTOOLS["py-modules"] or module.rpartition(".")[0] in SHIPPED
