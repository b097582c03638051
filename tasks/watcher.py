"""Sheets of sample pictures while generators train, and one of all their forms at the end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.runs import CONTACT, Run
from tasks.samples import Samples
from tasks.sheets import contact_sheet

SAMPLES = 4  # pictures on a sheet, evenly spaced in the validation part
FLOAT_PHASE = "float_phase.pt"


@dataclass(frozen=True)
class Watcher:
    """Draws what a model makes of a few images into the run's figures.

    task      has `rows(models by name, samples)` -> images by column, a row a sample
    build     makes the float model, of which the weights at the end of the float phase are kept
    every     steps between two figures sheet_STEP.png; contact.png compares all models in the end
    """

    run: Run
    task: Any
    pictures: Samples
    build: Callable[[], nn.Module]
    every: int

    def show(self, model: nn.Module, step: int, float_ends: bool) -> None:
        """Draw a sheet; at the end of the float phase keep the model for `compare`."""
        if float_ends:
            self.run.save_checkpoint({"model": model.state_dict()}, FLOAT_PHASE)
        note = f"step {step:,}" + (", end of the float phase" if float_ends else "")
        contact_sheet(self.task.rows({"made": model}, self._some()), self.run.figure(f"sheet_{step:07d}.png"), note)

    def compare(self, models: dict[str, nn.Module]) -> Path:
        """Draw what several models make, and the float model at the end of its phase, if there was one.

        All of them on the CPU.
        """
        if self.run.has(FLOAT_PHASE) and "float" not in models:
            before = self.build()
            before.load_state_dict(self.run.load_checkpoint(FLOAT_PHASE)["model"])
            models = {"float": before.eval(), **models}
        path = self.run.figure(CONTACT)
        contact_sheet(self.task.rows(models, self._some()), path)
        return path

    def _some(self) -> Samples:
        count = min(SAMPLES, len(self.pictures))
        return self.pictures.select(torch.linspace(0, len(self.pictures) - 1, count + 2)[1:-1].round().long())
