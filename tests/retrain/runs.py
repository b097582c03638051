"""Runs of retrain.py on a tiny network: arguments, metrics, refusals."""

import json

import pytest

from nas import Architecture, BlockSpec, HeadSpec, StemSpec
from retrain import main


def tiny(channels: int) -> Architecture:
    frost = BlockSpec("frost", 3, channels, 16, 2, 3, 2, "relu")
    return Architecture(
        "tiny",
        16,
        StemSpec(3, channels, 3, 1, "relu"),
        (frost, BlockSpec("mb", 5, 16, 16, 1, 3, 0, "relu")),
        HeadSpec(16, 32, 5, 0.2, "relu"),
    )


def arguments(folder, runs, *more, epochs=3) -> list[str]:
    data = ["--data", "imagefolder", "--data-root", str(folder), "--arch", str(folder / "tiny.json")]
    return [*data, "--runs", str(runs), "--epochs", str(epochs), "--batch-size", "12", "--lr", "0.1", *more]


def metrics(path) -> dict:
    return {k: v for k, v in json.loads((path / "metrics.json").read_text()).items() if k != "train_seconds"}


def results(path) -> dict:
    """The metrics that do not depend on the process; torch numbers the names in a frozen file through."""
    return {k: v for k, v in metrics(path).items() if k != "file_bytes"}


def refused(capsys, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def zoo_arguments(folder, runs, *more, epochs=2) -> list[str]:
    return [*arguments(folder, runs, *more, epochs=epochs), "--arch", "resnet20", "--input-size", "16"]
