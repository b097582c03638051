"""Tests mirror the tree: tests/quant/integer tests quant/integer."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
