"""benchmarks/style_study.py: what the page says of cells with several seeds and judges, and what is looked at again."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import statassist_study, style_study
from benchmarks.statassist_columns import Cell
from benchmarks.style_study import StyleConfig, eyes_words, look, page, write
from common.files import read_json, write_json
from tests.benchmarks.test_statassist_study import Shown

SCORES = {"l1": 0.1139, "psnr": 16.04, "ssim": 0.4551, "distance": 1.51}


def config(folder, **rest) -> StyleConfig:
    places = {
        "runs": str(folder / "runs"),
        "output": str(folder / "out"),
        "pairs_root": "pairs",
        "unpaired_root": "unpaired",
    }
    return StyleConfig(**places | {"arms": ("pix2pix",)} | rest)


def made(column, seed=0, judge=None, **more):
    return {
        "arm": "pix2pix",
        "seed": seed,
        "column": column,
        "scores": SCORES | more,
        "pictures": 9,
        "seconds": 60.0,
        "judge": judge,
    }


def result(*cells, judge=None, seen=None, eyes="random features"):
    here = StyleConfig(judge=judge)
    before = {"seed": 0, "agreement": {"naive": 50.0}, "ceiling": {}} | (seen or {})
    return {
        "command": "python study",
        "settings": {"engine": "onednn"},
        "machine": "CPU",
        "torch": "2",
        "planned": len(cells),
        "arms": {"pix2pix": statassist_study.row_of(here, "pix2pix")},
        "cells": list(cells),
        "seen": {"pix2pix": before},
        "eyes": eyes,
    }


def row_of(text: str, column: str, seed: int) -> list[str]:
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {column} | {seed} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_what_int8_makes_of_one_seed_is_not_said_of_the_others():
    text = page(result(made("float"), made("naive"), made("naive", seed=1)))
    assert (
        row_of(text, "naive", 0)[-1] == "50.0" and row_of(text, "naive", 1)[-1] == "-" == row_of(text, "float", 0)[-1]
    )
    assert "INT8 to fake-quant and the pictures below are of seed 0." in text
    assert "are of seed 0" not in page(result(made("float"), made("naive")))


def test_cells_with_and_without_a_judge_stand_on_one_page_and_their_features_are_not_mixed():
    judged = made("naive", judge="eyes", fcn_miou=0.29, fcn_pixel_accuracy=0.7)
    text = page(result(made("float"), judged, judge="folder/eyes"))
    assert row_of(text, "float", 0)[2:8] == ["0.1139", "16.04", "0.4551", "-", "-", "-"]
    assert row_of(text, "naive", 0)[5:8] == ["1.51", "29.0", "70.0"] and "by another judge are left out" in text
    text = page(result(made("float"), judged))
    assert row_of(text, "float", 0)[5] == "1.51" and row_of(text, "naive", 0)[5:8] == ["-", "-", "-"]
    assert "another judge" not in page(result(made("float")))


def test_what_the_judge_sees_in_real_photos_stands_below():
    cell = made("float", judge="eyes", fcn_miou=0.29, fcn_pixel_accuracy=0.7)
    seen = {"ceiling": {"fcn_miou": 0.33, "fcn_pixel_accuracy": 0.75, "fcn_counted": 0.783}}
    text = page(result(cell | {"scores": cell["scores"] | {"fcn_counted": 0.783}}, judge="eyes", seen=seen))
    assert "| the real photos | - | - | - | - | - | 33.0 | 75.0 | - |" in text and "over the 78 % of the pixels" in text


def test_the_head_names_whose_features_are_compared(tmp_path, monkeypatch):
    assert eyes_words(config(tmp_path)) == "random features"
    monkeypatch.setattr(
        style_study, "load_network", lambda run: (SimpleNamespace(name=f"lraspp in {run.path.name}"), {})
    )
    assert eyes_words(config(tmp_path, judge="some/folder/eyes")) == "the run *eyes* of lraspp in eyes"
    assert "in the features of the eyes of a cat;" in page(result(made("float"), eyes="the eyes of a cat"))


def test_it_says_how_generators_are_fine_tuned():
    assert "- In pix2pix *finetune* trains the generator at" in page(result(made("float"), made("finetune")))
    assert "*finetune*" not in page(result(made("float")))


# ---- what is looked at -------------------------------------------------------------------------------------


@pytest.fixture
def looked(monkeypatch):
    """How often networks are looked at; nothing is loaded."""
    task = SimpleNamespace(agreement=lambda *_: 50.0, rows=lambda *_: [])
    count = []
    monkeypatch.setattr(style_study, "network", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(style_study, "ceiling", lambda *_: {})
    monkeypatch.setattr(style_study.parts, "convert", lambda model, engine: model)
    monkeypatch.setattr(
        style_study, "contact_sheet", lambda rows, path: (count.append(path.name), write_json(path, []))
    )
    monkeypatch.setattr(statassist_study, "task_of", lambda *_: task)
    monkeypatch.setattr(statassist_study, "load", lambda *_: SimpleNamespace(test=Shown(range(9))))
    return count


def done(here: StyleConfig, column: str) -> None:
    """A cell as it lies on disk."""
    cell = Cell("pix2pix", 0, column)
    run = statassist_study.run_of(here, cell)
    run.write_json("result.json", cell._asdict() | {"scores": SCORES, "refused": None, "pictures": 9, "seconds": 1.0})


def test_networks_are_looked_at_once_for_their_columns_and_their_judge(tmp_path, looked):
    here = config(tmp_path)
    done(here, "float")
    assert look(here, "pix2pix", 0)["agreement"] == {} and looked == ["style_pix2pix.png"]
    assert look(here, "pix2pix", 0) == look(here, "pix2pix", 0) and len(looked) == 1
    done(here, "naive")
    assert look(here, "pix2pix", 0)["agreement"] == {"naive": 50.0} and len(looked) == 2
    judged = config(tmp_path, judge="eyes")
    assert look(judged, "pix2pix", 0)["judge"] == "eyes" and len(looked) == 3
    look(config(tmp_path, judge="eyes", palette="file.json"), "pix2pix", 0)
    assert len(looked) == 4


def test_a_file_of_what_was_seen_before_there_was_a_judge_in_it_is_made_again(tmp_path, looked):
    here = config(tmp_path)
    done(here, "float")
    look(here, "pix2pix", 0)
    path = tmp_path / "runs" / "pix2pix_0_seen.json"
    write_json(path, {name: read_json(path)[name] for name in ("columns", "agreement", "ceiling")})
    look(here, "pix2pix", 0)
    assert len(looked) == 2 and read_json(path)["judge"] is None


def test_the_page_is_written_with_a_first_seed_that_is_not_done(tmp_path, looked):
    here = config(tmp_path, other_seeds=(1, 0))
    write_json(tmp_path / "runs" / "settings.json", {"engine": "onednn"})
    done(here, "float")
    found = read_json(write(here))
    assert found["cells"][0]["judge"] is None and found["arms"]["pix2pix"]["palette"] is False
    assert found["seen"]["pix2pix"]["seed"] == 0 and looked == ["style_pix2pix.png"]
    assert "| float | 0 | 0.1139 | 16.04 |" in (tmp_path / "out" / "style.md").read_text()
