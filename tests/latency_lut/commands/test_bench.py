"""bench: the command line, going on after a stop, and mistakes."""

import pytest

import frostnet
import quant
from common.files import write_json
from common.processes import cpu_count
from latency_lut.__main__ import main
from latency_lut.bench.contenders import EAGER, FLOATS, FROZEN
from latency_lut.bench.results import Results, latency_ms
from latency_lut.commands import bench
from nas import cost
from tests.latency_lut.bench.rows import ENGINE, result, row


def run(tmp_path, *words):
    about = ["--input-size", "32", "--classes", "10", "--rounds", "3", "--output", str(tmp_path / "b")]
    return main(["bench", "--arch", "frostnet_small_0_35", *about, *words])


def test_a_network_is_measured_once_and_then_shown_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("latency_lut.bench.profile.RUNS", 1)
    monkeypatch.setattr("latency_lut.bench.profile.WARM_UP", 1)
    monkeypatch.setattr("latency_lut.bench.measure.MAX_ROUNDS", 1)
    results = run(tmp_path, "--engine", "all", "--batch", "2", "--profile")
    (only,) = results.results
    assert only["params"] == cost(frostnet.architecture("small", 0.35, 10, 32)).params and only["batch"] == 2
    names = [line["name"] for line in only["rows"]]
    assert names == [*FLOATS, *(name for name in quant.available() if name != "openvino")]
    assert all(latency_ms(line) > 0 for line in only["rows"] if line["name"] in (EAGER, FROZEN, ENGINE))
    assert only["seen"]["seconds"] > 0 and set(only["profile"]) == {
        line["name"] for line in only["rows"] if not line["reason"]
    }
    shown = capsys.readouterr().out
    assert f"{ENGINE}, by operation" in shown and "cut %" in shown

    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured again"))
    assert run(tmp_path, "--batch", "2,2").results == results.results
    assert capsys.readouterr().out.count("frostnet_small_0_35: ") == 1


@pytest.fixture
def counted(monkeypatch):
    """Networks that are only counted. Returns what was measured."""
    measured = []

    def measure(job, names, rounds, profiled, progress):
        measured.append(job)
        kept = [row(name, 1.0, 1.0, 1.0, float_ops=[]) for name in names]
        return {**result(), **job._asdict(), "rounds": rounds, "rows": kept}

    monkeypatch.setattr(bench, "measure", measure)
    return measured


def test_all_conditions_are_measured_and_restart_measures_them_again(tmp_path, counted):
    run(tmp_path, "--engine", ENGINE, "--batch", "1", "4")
    assert [(job.threads, job.batch) for job in counted] == [(1, 1), (1, 4)]
    run(tmp_path, "--engine", ENGINE, "--batch", "4")
    assert len(counted) == 2
    again = run(tmp_path, "--engine", ENGINE, "--batch", "4", "--restart")
    assert len(counted) == 3 and len(again.results) == 1


def test_a_mistyped_name_costs_no_old_results(tmp_path, counted):
    run(tmp_path, "--engine", ENGINE)
    with pytest.raises(SystemExit):
        main(["bench", "--arch", "nosuch", "--output", str(tmp_path / "b"), "--restart"])
    assert len(Results.open(tmp_path / "b").results) == 1


def test_other_settings_measure_anew_in_the_old_results_place(tmp_path, counted):
    run(tmp_path, "--engine", ENGINE)
    results = run(tmp_path, "--engine", ENGINE, "--rounds", "5")
    assert len(counted) == 2 and [r["rounds"] for r in results.results] == [5]


def test_what_was_finished_before_ctrl_c_is_kept(tmp_path, counted, monkeypatch, capsys):
    whole = bench.measure

    def stop_at_the_second(job, *rest):
        if counted:
            raise KeyboardInterrupt
        return whole(job, *rest)

    monkeypatch.setattr(bench, "measure", stop_at_the_second)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--engine", ENGINE, "--batch", "1,4", "--restart")
    said = capsys.readouterr().err
    assert stopped.value.code == 130 and " bench --arch frostnet_small_0_35" in said and "--restart" not in said
    assert [r["batch"] for r in Results.open(tmp_path / "b").results] == [1]


def test_a_run_of_a_comparison_network_is_measured_as_that_network(tmp_path, counted, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "--engine", ENGINE, "--input-size", "32", "--classes", "10", "--output", "b", "--arch"]
    write_json(tmp_path / "runs" / "mine" / "network.json", {"name": "resnet20", "input_size": 32})
    main([*words, "runs/mine", "mine", "resnet20"])
    assert [job.arch for job in counted] == ["resnet20"]
    for broken in ([], {"name": ["resnet20"]}, {"name": "nosuch"}):
        write_json(tmp_path / "runs" / "mine" / "network.json", broken)
        with pytest.raises(SystemExit):
            main([*words, "mine"])
        assert "arch: mine is a run, but the name in its runs/mine/network.json" in capsys.readouterr().err


def test_openvino_has_to_be_named():
    assert "openvino" not in bench.BenchConfig(arch=("a",)).engines()
    if "openvino" in quant.available():
        assert bench.BenchConfig(arch=("a",), engine=("all", "openvino")).engines()[-1] == "openvino"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--engine", "foo"], "engine: 'foo' is not one of all, fbgemm"),
        (["--engine", "reference"], "engine: 'reference' is not one of"),
        (["--threads", "0"], "threads: 0, must be a number from 1 to"),
        (["--threads", "100000"], f"threads: 100000, must be a number from 1 to {cpu_count()}"),
        (["--batch", ","], "batch: an empty list"),
        (["--batch", "1;2"], "invalid int value: '1;2'"),
        (["--output", "."], "output: '.' is a folder or no name"),
        (["--rounds", "2"], "rounds: 2, must be a number from 3 to 1000"),
        (["--input-size", "8"], "input_size: 8, must be a number from 16"),
        (["--arch", "nosuch"], "arch: 'nosuch' is neither a file"),
        (["--arch", "vgg16", "--input-size", "16"], "input_size: 16 does not suit vgg16"),
    ],
)
def test_mistakes_exit_with_2_and_name_the_field(tmp_path, words, message, capsys):
    with pytest.raises(SystemExit) as refused:
        run(tmp_path, *words)
    assert refused.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_engine_that_is_not_here_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quant, "available", lambda: ("fbgemm",))
    with pytest.raises(SystemExit):
        run(tmp_path, "--engine", "openvino")
    assert "engine: 'openvino' does not run here; choose from all, fbgemm" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_found_before_anything_is_measured(tmp_path, counted, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as refused:
        run(tmp_path, "--output", str(tmp_path / "file" / "b"))
    assert refused.value.code == 2 and "cannot be written" in capsys.readouterr().err and not counted
