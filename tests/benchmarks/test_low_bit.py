"""The bookkeeping of benchmarks/low_bit.py: which cells, in which order, until when, and the page."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

import quant
import zoo
from benchmarks import low_bit
from benchmarks.low_bit import Cell, LowBitConfig
from common.errors import UserError
from common.files import write_json


def config(tmp_path, **changes):
    return LowBitConfig(
        **{"data_root": "pictures", "runs": str(tmp_path / "runs"), "output": str(tmp_path / "out")} | changes
    )


def store(config, name, **result):
    write_json(f"{config.runs}/{name}/result.json", result)


def cell(seed, row, column, fake_quant, int8, refused=None):
    return {
        "seed": seed,
        "row": row,
        "column": column,
        "fake_quant": fake_quant,
        "int8": int8,
        "float_layers": int8 and 0,
        "refused": refused,
    }


def test_two_bits_come_first_seed_by_seed_and_no_cell_twice(tmp_path):
    cells = low_bit.planned(config(tmp_path))
    columns = len(low_bit.METHODS)
    assert len(cells) == len(set(cells)) == 2 * (4 * columns - 1)
    assert [c.row for c in cells[: columns + 1]] == ["2"] * columns + ["4"]
    assert [c.seed for c in cells] == sorted(c.seed for c in cells)
    assert Cell(0, "w3a4", "pact") not in cells and Cell(0, "w3a4", "lsq") in cells


@pytest.mark.parametrize("field", ["columns", "rows"])
def test_an_unknown_name_is_named(tmp_path, field):
    with pytest.raises(UserError, match=f"{field}: 'nonsense' is not one of"):
        config(tmp_path, **{field: ("nonsense",)})


def test_no_job_begins_after_the_time_is_up(monkeypatch):
    """The clock of this test jumps from 0 to 1 as soon as two jobs run."""
    begun, now, two_run = [], [0.0], threading.Barrier(2)
    monkeypatch.setattr(low_bit, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def job(name):
        begun.append(name)
        two_run.wait(60)
        now[0] = 1.0
        return name

    jobs = [lambda name=name: job(name) for name in "abcdef"]
    with ThreadPoolExecutor(2) as pool:
        late = list(low_bit.in_parallel(pool, jobs, at_once=2, until=0.5))
        assert sorted(late) == sorted(begun) == ["a", "b"]
        assert sorted(low_bit.in_parallel(pool, jobs, 2, until=float("inf"))) == list("abcdef")


def test_a_folder_takes_one_protocol(tmp_path):
    low_bit.claim(config(tmp_path))
    low_bit.claim(config(tmp_path, seeds=(0, 1, 2), rows=("2",), minutes=1.0))  # more cells, the same protocol
    with pytest.raises(UserError, match="tune_lr: 0.02 then, 0.1 now"):
        low_bit.claim(config(tmp_path, tune_lr=0.1))


def test_progressive_bits_divide_the_fine_tuning(tmp_path):
    for row, bits in {"4": (5, 4), "w3a4": (5, 4, 3), "3": (5, 4, 3), "2": (5, 4, 3, 2)}.items():
        schedule = low_bit.recipe(config(tmp_path), Cell(0, row, "qil progressive")).schedule
        assert schedule.bits == bits and schedule.epochs % len(bits) == 0
        assert low_bit.recipe(config(tmp_path), Cell(0, row, "lsq")).schedule.bits == ()


def test_a_row_gives_its_bits_and_the_ends_eight():
    for weight_bits, activation_bits in low_bit.ROWS.values():
        config = low_bit.quant_config(low_bit.METHODS["dorefa+pact"], weight_bits, activation_bits, "fbgemm")
        graph = quant.attach(zoo.build("resnet20", 10, 32), low_bit.example(), config)
        quant.set_bits(graph, weight_bits)  # as the last part of a progressive schedule does
        layers = [row for row in graph.plan_rows if row.op in ("conv", "linear")]
        assert {row.name for row in layers if row.weight == "int8:8"} == {"conv", "fc"}
        for row in layers:
            wide = row.name in ("conv", "fc")
            assert graph.get_submodule(row.name).weight_quant.bits == (8 if wide else weight_bits)
            assert graph.get_submodule(row.reads).bits == (8 if wide else activation_bits)


def test_the_page_says_what_it_knows(tmp_path):
    study = config(tmp_path)
    low_bit.claim(study)
    low_bit.write(study)  # nothing yet
    whole = len(low_bit.planned(study))
    assert f"0 of {whole} cells" in (tmp_path / "out" / "low_bit.md").read_text()
    for seed, top1 in ((0, 0.80), (1, 0.82)):
        store(study, f"float_{seed}", seed=seed, top1=0.7, tuned=top1, pictures=6000, seconds=9.0)
        store(study, f"lsq_2_{seed}", **cell(seed, "2", "lsq", top1 - 0.1, top1 - 0.11))
        store(study, f"pact_4_{seed}", **cell(seed, "4", "pact", top1, None, "conv1: float weights"))
    store(study, "int8_2_0", **cell(0, "2", "int8", None, None, "the loss became nan"))
    low_bit.write(study)
    page = (tmp_path / "out" / "low_bit.md").read_text()
    assert f"5 of {whole} cells so far" in page
    assert "| float, fine-tuned alike | 81.0 ± 1.4 | 81.0 ± 1.4 | 81.0 ± 1.4 |" in page
    assert "| 4 | 81.0 ± 1.4* | - | - |" in page and "| w3a4 | 81.0 ± 1.4* | - | - |" in page
    assert "| 2 | - | - | 70.0 ± 1.4 |" in page
    assert "*pact* (4 bits) has no integer network: conv1: float weights." in page
    assert "the loss became nan" in page
    assert (tmp_path / "out" / "low_bit.png").stat().st_size > 5000


def test_the_spread_is_over_seeds():
    cells = [cell(0, "2", "lsq", 0.7, 0.6), cell(1, "2", "lsq", 0.7, 0.8), cell(0, "2", "qil progressive", 0.5, 0.5)]
    table = low_bit.table(cells)["2"]
    assert table["lsq"]["mean"] == pytest.approx(0.7) and table["lsq"]["std"] == pytest.approx(0.2 / 2**0.5)
    assert table["qil progressive"]["std"] is None
