"""benchmarks/ptq_study.py: the order of its work and the numbers on its page, from cells of known results."""

import functools

import pytest

from benchmarks import ptq_study
from benchmarks.ptq_study import Cell, PtqConfig
from common.errors import UserError
from common.files import read_json
from tasks.engine import _diverged


def cell(network, column, int8, fake_quant=None, bits=8, seed=0, **rest):
    shared = {"agreement": 0.99, "agreement_float": 0.9, "float_ops": 1, "refused": None, "engines": {}, "seconds": 1.0}
    fake_quant = int8 if fake_quant is None else fake_quant
    return (
        {"seed": seed, "network": network, "bits": bits, "column": column, "int8": int8, "fake_quant": fake_quant}
        | shared
        | rest
    )


def test_every_stage_needs_only_what_came_before_and_scratch_comes_last():
    config = PtqConfig("data", networks=("resnet20",), bits=(8, 4), seeds=(0, 1))
    kinds = [
        {job.func.__name__ if job.func is ptq_study.train_float else job.args[1].column for job in s}
        for s in ptq_study.stages(config)
    ]
    others = {"minmax", "percentile", "mse", "qat"}
    assert kinds == [{"train_float"}, others, {"train_float"}, others, {"scratch"}]


def test_scratch_has_one_width():
    cells = ptq_study.planned(PtqConfig("data", networks=("resnet20",), bits=(8, 4), seeds=(0,)))
    assert [c for c in cells if c.column == "scratch"] == [Cell(0, "resnet20", 8, "scratch")]
    assert len(cells) == 9


def test_differences_are_paired_by_network_and_seed():
    accuracy = {
        ("a", 0, "qat"): 0.80,
        ("a", 0, "minmax"): 0.70,
        ("b", 0, "qat"): 0.50,
        ("b", 0, "minmax"): 0.48,
        ("b", 1, "qat"): 0.9,
    }
    assert ptq_study.difference(accuracy, "qat", "minmax") == "+6.00 (+2.00 to +10.00, 2 pairs)"
    assert ptq_study.difference(accuracy, "mse", "minmax") == ""


def test_the_table_gives_mean_and_spread_of_int8_and_fake_quants_mean():
    floats = [{"network": "a", "seed": s, "top1": 0.8} for s in (0, 1)]
    cells = [
        cell("a", "minmax", 0.70, 0.71),
        cell("a", "minmax", 0.72, 0.73, seed=1),
        cell("a", "qat", None, refused="diverged"),
    ]
    lines = ptq_study.table(cells, floats, 8)
    assert lines[0] == "| network | float | minmax | qat |"
    assert lines[2] == "| a | 80.0 ± 0.0 | 71.0 ± 1.4 (72.0) | diverged |"


def test_every_engine_is_judged_by_its_worst_network():
    engines = [{"fbgemm": {"int8": 0.80, "agreement": 0.999}}, {"fbgemm": {"int8": 0.69, "agreement": 0.990}}]
    cells = [cell("a", "qat", 0.8, 0.8, engines=engines[0]), cell("b", "qat", 0.7, 0.7, engines=engines[1])]
    (line,) = ptq_study.by_engine(cells)
    assert "99.00 %" in line and "mean 99.45 %" in line and "at most 1.00 points" in line


def test_engines_that_only_some_networks_ran_on_are_judged_by_those():
    cells = [
        cell("a", "qat", 0.8, engines={"fbgemm": {"int8": 0.8, "agreement": 0.99}}),
        cell("b", "qat", 0.7, engines={"openvino": {"int8": 0.7, "agreement": 0.98}}),
    ]
    first, second = ptq_study.by_engine(cells)
    assert "On fbgemm" in first and "99.00 %" in first and "1 networks" in first
    assert "On openvino" in second and "98.00 %" in second


def test_only_a_training_that_diverged_is_a_result(tmp_path, monkeypatch):
    def failing(error, *_):
        raise error

    config, wanted = PtqConfig("data", runs=str(tmp_path)), Cell(0, "resnet20", 8, "qat")
    file = tmp_path / wanted.name / ptq_study.RESULT
    for error in (
        UserError("checkpoint.pt: cannot be written (the disk is full)"),
        ptq_study.quant.QuantError("conv: no place"),
    ):
        monkeypatch.setattr(ptq_study, "make", functools.partial(failing, error))
        with pytest.raises(type(error), match=str(error)[:9]):
            ptq_study.run_cell(config, wanted)
        assert not file.exists()
    monkeypatch.setattr(ptq_study, "make", functools.partial(failing, _diverged("the loss became nan", 3, "float")))
    assert "the loss became nan" in ptq_study.run_cell(config, wanted) and read_json(file)["int8"] is None
    monkeypatch.setattr(ptq_study, "make", lambda *_: pytest.fail("trained again"))
    assert "the loss became nan" in ptq_study.run_cell(config, wanted)


def test_a_folder_with_other_settings_is_refused_and_free_ones_may_differ(tmp_path):
    ptq_study.claim(PtqConfig("data", runs=str(tmp_path)), ptq_study.FREE)
    ptq_study.claim(PtqConfig("elsewhere", runs=str(tmp_path), bits=(8,), smoke=True), ptq_study.FREE)
    with pytest.raises(UserError, match="tune_lr: 0.01 then, 0.1 now"):
        ptq_study.claim(PtqConfig("data", runs=str(tmp_path), tune_lr=0.1), ptq_study.FREE)


@pytest.mark.parametrize("wrong", [{"columns": ("kl",)}, {"bits": (9,)}])
def test_unknown_columns_and_bits_are_refused(wrong):
    with pytest.raises(ptq_study.UserError, match="is not one of"):
        PtqConfig("data", **wrong)
