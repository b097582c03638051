"""Benchmarks of whole networks: what is timed, the figures made of it, the files, going on after a stop, and
mistakes.
"""

import csv
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import frostnet
import quant
from common.errors import UserError
from common.files import read_json, write_json
from latency_lut.__main__ import main
from latency_lut.bench import contenders as forms
from latency_lut.bench import report
from latency_lut.bench.contenders import EAGER, FLOATS, FROZEN, SESSION, Contender, contenders
from latency_lut.bench.profile import Event, onnx_kind, profile_rows, rows
from latency_lut.bench.results import Results, file_prefix, latency_ms, median_ms
from latency_lut.commands import bench
from nas import cost

ENGINE = quant.available()[0]
OPERATION = {"op": "conv", "kind": "integer", "calls": 1, "ms": 1.0, "share": 0.5}


def row(name: str, *rounds_ms: float, float_ops=None, file_bytes=1_000_000) -> dict:
    ops = float_ops if name not in FLOATS else None
    return {
        "name": name,
        "rounds_ms": list(rounds_ms),
        "file_bytes": file_bytes,
        "float_ops": ops,
        "float_convs": 0,
        "reason": None,
    }


def result(arch="net", threads=1, batch=1, rows=(), **fields) -> dict:
    about = {
        "arch": arch,
        "input_size": 32,
        "classes": 10,
        "threads": threads,
        "batch": batch,
        "params": 5,
        "macs": 7,
        "fingerprint": "f",
    }
    seen = {"date": "2020-01-01 00:00:00", "seconds": 1.0, "load": 0.5, "steal": None}
    rows = list(rows) or [row(FROZEN, 4.0, 4.0, 4.1), row(ENGINE, 2.0, 2.0, 2.1, float_ops=[])]
    return {**about, "rounds": 3, "rows": rows, "profile": {}, "seen": seen, **fields}


def job(**fields) -> bench.Job:
    about = result(**fields)
    return bench.Job(**{field: about[field] for field in bench.Job._fields})


class Small(nn.Module):
    """Two convolutions with batch norm, (N, 3, H, W) -> (N, 5)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.pool(self.body(x)).flatten(1))


@pytest.fixture
def images():
    return torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(images):
    torch.manual_seed(0)
    small = Small()
    quant.recalibrate(small.eval(), [images])
    return small


# ---- batch norms before anything is timed ------------------------------------------------------------------


def test_settling_gives_batch_norms_the_pictures_statistics(images):
    small = Small()
    quant.recalibrate(small.eval(), [images])
    made = small.body[0](images)
    first = small.body[1]
    assert torch.allclose(first.running_mean, made.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(first.running_var, made.var((0, 2, 3)), rtol=1e-4)
    assert first.momentum == 0.1 and not any(module.training for module in small.modules())


def test_deep_networks_keep_tensors_of_ordinary_size(images):
    deep = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)) for _ in range(30))
    )
    for conv, _ in deep:
        nn.init.constant_(conv.weight, 0.0)
        nn.init.dirac_(conv.weight)
        conv.weight.data *= 0.5
    with torch.no_grad():
        faded = deep.eval()(images).std().item()
        quant.recalibrate(deep.eval(), [images])
        assert faded < 1e-8 and 0.5 < deep(images).std().item() < 2


# ---- what is timed -----------------------------------------------------------------------------------------


def test_all_forms_of_a_network_compute_it(model, images):
    names = (*FLOATS, *quant.available())
    with quant.use_engine("reference"), torch.inference_mode():
        ready, reasons = contenders(model, images[:2], names)
        outputs = {name: contender() for name, contender in ready.items()}
        expected = model(images[:2])
    assert {name for name in names if name not in reasons} == set(ready) and ENGINE in ready and FROZEN in ready
    for name, output in outputs.items():
        assert torch.allclose(output, expected, atol=1e-5 if name in FLOATS else 0.1), name
    assert all(not reason.startswith("Assert") for reason in reasons.values())


def test_each_runtime_is_fed_the_layout_that_it_runs_without_a_copy(model, images):
    with quant.use_engine("reference"):
        ready, _ = contenders(model, images, (EAGER, FROZEN, ENGINE, "onnxruntime"))
    for name, contender in ready.items():
        assert contender.image.is_contiguous(memory_format=torch.channels_last) == (name != "onnxruntime")
        assert contender.image.is_contiguous() == (name == "onnxruntime")
    assert next(ready[EAGER].network.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_the_eager_form_is_unfolded_and_the_frozen_one_is_not(model, images):
    with quant.use_engine("reference"):
        ready, _ = contenders(model, images, (EAGER, FROZEN))
    assert any(isinstance(module, nn.BatchNorm2d) for module in ready[EAGER].network.modules())
    assert "batch_norm" not in str(ready[FROZEN].network.module.inlined_graph)


def test_a_form_that_cannot_run_has_a_reason_and_the_others_run(model, images, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such kernel\nand much more")

    monkeypatch.setattr(quant, "freeze", refuse)
    with quant.use_engine("reference"):
        ready, reasons = contenders(model, images, (FROZEN, ENGINE))
    assert list(ready) == [FROZEN] and reasons == {ENGINE: "RuntimeError: no such kernel"}


@pytest.mark.skipif(len(quant.available()) < 2, reason="needs two engines")
def test_a_contender_runs_on_its_own_engine():
    def network(name):
        def asked(image):
            return torch.backends.quantized.engine

        asked_on = type("Network", (), {"__call__": staticmethod(asked), "engine": name})
        return asked_on()

    first, second = [name for name in quant.available() if name not in forms.SESSIONS][:2]
    with quant.use_engine("reference"):
        calls = [Contender(name, network(name), torch.zeros(1)) for name in (first, second)]
        assert [call() for call in (*calls, *calls)] == [first, second, first, second]


def test_a_file_is_as_large_as_the_weights(model, images):
    with quant.use_engine("reference"):
        ready, _ = contenders(model, images, (EAGER, ENGINE))
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert weights < ready[EAGER].file_bytes < weights + 8192
    assert 0 < ready[ENGINE].file_bytes


def test_convolutions_left_in_float_are_counted():
    functions = {"a": nn.Conv2d(1, 1, 1), "b": nn.ReLU(), "c": torch.conv2d, "d": nn.ConvTranspose2d(1, 1, 1)}
    graph = SimpleNamespace(op=lambda name: SimpleNamespace(attrs={"call": SimpleNamespace(function=functions[name])}))
    assert forms._graph_convs(graph, tuple(functions)) == 3
    assert forms._graph_convs(graph, ("b",)) == 0


# ---- figures -----------------------------------------------------------------------------------------------


def test_the_table_has_the_statistics_and_the_share_of_each_baseline():
    made = result(
        batch=8,
        rows=[
            row(EAGER, 9.0, 8.0, 8.0),
            row(FROZEN, 4.0, 4.0, 4.0),
            row(SESSION, 2.5, 2.5, 2.5),
            row(ENGINE, 2.0, 2.2, 2.1, 3.0, float_ops=["pool"], file_bytes=2_500_000),
        ],
    )
    line = report.frame(made).set_index("engine").loc[ENGINE]
    assert (line["latency ms"], line["median ms"], line["images/s"]) == pytest.approx((2.0, 2.15, 4000))
    assert line["spread %"] == pytest.approx(10) and line["note"] == "unstable"
    assert (line["of eager"], line["of float torch"], line["of float ort"]) == pytest.approx((0.25, 0.5, 0.8))
    assert line["cut %"] == pytest.approx(20)  # against 2.5 ms, the fastest float form, whatever the eager one takes
    assert (line["float ops"], line["float convs"], line["file MB"]) == (1, 0, 2.5)


def test_a_missing_baseline_leaves_its_column_empty_and_a_missing_engine_says_why():
    made = result(
        rows=[
            row(FROZEN, 4.0, 4.0, 4.0),
            row("x86", 5.0, 5.0, 5.0, float_ops=[]),
            {"name": ENGINE, "reason": "QuantError: no"},
        ]
    )
    table = report.frame(made).set_index("engine")
    assert table["of eager"].isna().all() and table.loc["x86", "cut %"] == pytest.approx(-25)
    assert table.loc[ENGINE, "note"] == "QuantError: no" and table.loc[ENGINE].drop("note").isna().all()
    assert "QuantError: no" in report.text(made) and "nan" not in report.text(made)


def test_the_text_says_under_which_conditions():
    text = report.text(result(threads=2, batch=4, profile={ENGINE: rows([Event("conv", "integer", 1, 500.0)])}))
    assert "2 threads" in text and "batch 4" in text and "load 0.5, steal unknown" in text
    assert f"{ENGINE}, by operation" in text and "0.5" in text


# ---- profiles ----------------------------------------------------------------------------------------------


def test_operations_are_added_up_and_the_longest_come_first():
    events = [
        Event("a", "float", 2, 100.0),
        Event("b", "integer", 1, 250.0),
        Event("a", "float", 1, 50.0),
        Event("a", "integer", 1, 100.0),
    ]
    assert rows(events, top=2) == [
        {"op": "b", "kind": "integer", "calls": 1, "ms": 0.25, "share": 0.5},
        {"op": "a", "kind": "float", "calls": 3, "ms": 0.15, "share": 0.3},
    ]
    assert rows([]) == []


@pytest.mark.parametrize(
    "name, types, kind",
    [
        ("QLinearConv", ["uint8"], "integer"),
        ("QGemm", ["float"], "integer"),
        ("MaxPool", ["uint8"], "integer"),
        ("Conv", ["float"], "float"),
        ("QuantizeLinear", ["uint8"], "convert"),
        ("DequantizeLinear", ["float"], "convert"),
    ],
)
def test_onnxruntime_operators_are_told_apart(name, types, kind):
    assert onnx_kind({"op_name": name, "output_type_shape": [{t: [1, 2]} for t in types]}) == kind


def test_a_profile_names_what_ran(model, images):
    with quant.use_engine("reference"):
        ready, _ = contenders(model, images, (FROZEN, ENGINE, "onnxruntime"))
        found = {name: profile_rows(contender) for name, contender in ready.items()}
    assert all(0.5 < sum(line["share"] for line in lines) <= 1.001 for lines in found.values())
    kinds = {line["op"]: line["kind"] for line in found[ENGINE]}
    if ENGINE not in forms.SESSIONS:
        assert (
            kinds["quantized::conv2d"] == "integer"
            and {line["op"]: line["calls"] for line in found[ENGINE]}["quantized::conv2d"] == 2
        )
    if "onnxruntime" in found:
        assert {"op": "QLinearConv", "calls": 2}.items() <= next(
            r for r in found["onnxruntime"] if r["op"] == "QLinearConv"
        ).items()


def test_nothing_profiles_openvino():
    with pytest.raises(UserError, match="'openvino' has no profile"):
        profile_rows(Contender("openvino", None, None))


# ---- files -------------------------------------------------------------------------------------------------


def test_results_come_back_from_their_file_and_one_replaces_another_of_its_kind(tmp_path):
    results = Results.new(tmp_path / "b")
    for made in (result("a"), result("b"), result("a", threads=2), result("a", macs=9)):
        results.put(made)
    results.save()
    again = Results.open(tmp_path / "b.json")  # the file's own name is understood too
    assert again.results == results.results and again.meta == results.meta and again.prefix == tmp_path / "b"
    assert [(r["arch"], r["threads"], r["macs"]) for r in again.results] == [("b", 1, 7), ("a", 2, 7), ("a", 1, 9)]


def test_a_result_is_found_again_under_equal_settings_only(tmp_path):
    results, names = Results.new(tmp_path / "b"), [FROZEN, ENGINE]
    results.put(result())
    assert results.find(job(), 3, names, False) is results.results[0]
    for other in (job(batch=2), job(threads=2), job(fingerprint="g"), job(arch="other")):
        assert results.find(other, 3, names, False) is None
    assert results.find(job(), 4, names, False) is None and results.find(job(), 3, names[:1], False) is None
    assert results.find(job(), 3, names, profiled=True) is None
    results.put(result(profile={ENGINE: []}))
    assert results.find(job(), 3, names, profiled=True) is not None


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(format="x"), "format: must be 'latency_bench'"),
        (lambda d: d.update(version=2), "version: 2"),
        (lambda d: d["meta"].update(cpu="Other CPU"), "meta.cpu: measured with Other CPU"),
        (lambda d: d["meta"].pop("flags"), "meta.flags: missing"),
        (lambda d: d["results"][0].pop("macs"), r"results\[0\].macs: missing"),
        (lambda d: d["results"][0].update(threads=0), r"results\[0\].threads: 0"),
        (lambda d: d["results"][0]["rows"][0].update(rounds_ms=[-1.0]), r"rows\[0\].rounds_ms\[0\]: -1"),
        (lambda d: d["results"][0]["rows"][0].update(rounds_ms=[]), r"rounds_ms: \[\]"),
        (lambda d: d["results"][0]["rows"][0].update(file_bytes="x"), "file_bytes: 'x'"),
        (lambda d: d["results"][0]["rows"][1].update(float_ops=None), r"rows\[1\].float_ops: None"),
        (lambda d: d["results"][0]["rows"].append({"name": "x86", "reason": 5}), r"rows\[2\].reason: 5"),
        (
            lambda d: d["results"][0]["rows"].append({"name": "x86", "reason": "no", "rounds_ms": 3}),
            r"rows\[2\].rounds_ms: unknown",
        ),
        (lambda d: d["results"][0]["seen"].update(load="busy"), r"seen.load: 'busy'"),
        (lambda d: d["results"][0]["seen"].update(date=None), r"seen.date: None"),
        (lambda d: d["results"][0]["profile"].update(x86={}), r"profile.x86: {}, must be a list"),
        (lambda d: d["results"][0]["profile"].update(x86=[{"op": "conv"}]), r"profile.x86\[0\].kind: missing"),
        (
            lambda d: d["results"][0]["profile"].update(x86=[{**OPERATION, "share": None}]),
            r"profile.x86\[0\].share: None",
        ),
        (lambda d: d["meta"].update(flags="avx2"), "meta.flags: 'avx2', must be a list"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_field(tmp_path, change, message):
    results = Results.new(tmp_path / "b")
    results.put(result())
    results.save()
    data = read_json(tmp_path / "b.json")
    change(data)
    write_json(tmp_path / "b.json", data)
    with pytest.raises(UserError, match=f"b.json: .*{message}"):
        Results.open(tmp_path / "b")


def test_results_of_another_machine_can_be_read_where_nothing_is_measured(tmp_path):
    results = Results.new(tmp_path / "b")
    results.meta["cpu"] = "Other CPU"
    results.put(result(profile={ENGINE: [OPERATION]}))
    results.save()
    assert Results.open(tmp_path / "b", any_machine=True).meta["cpu"] == "Other CPU"
    with pytest.raises(UserError, match="meta.cpu: measured with Other CPU"):
        Results.open(tmp_path / "b")


@pytest.mark.parametrize("prefix", ["", ".", "..", "folder", "folder/", "folder/.json", "new/", ".json"])
def test_an_output_without_a_file_name_is_refused(tmp_path, monkeypatch, prefix):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="output: .* is a folder or no name"):
        file_prefix(prefix)
    assert str(file_prefix("folder/b.json")) == "folder/b"


def test_half_a_file_is_refused(tmp_path):
    (tmp_path / "b.json").write_text('{"format": ')
    with pytest.raises(UserError, match="b.json: not a whole JSON file"):
        Results.open(tmp_path / "b")


def test_all_files_are_written(tmp_path):
    results = Results.new(tmp_path / "b")
    results.put(result())
    results.put(result("other", threads=2, rows=[row(FROZEN, 400.0), {"name": ENGINE, "reason": "no"}]))
    report.save(results)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.csv", "b.json", "b.png"]
    lines = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert [(line["arch"], line["threads"], line["engine"]) for line in lines] == [
        ("net", "1", FROZEN),
        ("net", "1", ENGINE),
        ("other", "2", FROZEN),
        ("other", "2", ENGINE),
    ]
    assert float(lines[1]["latency ms"]) == 2 and float(lines[1]["cut %"]) == 50 and lines[3]["note"] == "no"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_panel_for_each_condition_and_a_bar_for_each_contender():
    figure = report.figure(
        [result("a"), result("b"), result("a", batch=8, rows=[row(FROZEN, 100.0), row(ENGINE, 2.0, float_ops=[])])]
    )
    first, second = figure.axes
    assert len(first.patches) == 4 and len(second.patches) == 2
    assert [patch.get_height() for patch in second.patches] == [100, 2]
    assert (first.get_yscale(), second.get_yscale()) == ("linear", "log")


def test_the_latency_is_the_best_round():
    assert median_ms(row(FROZEN, 3.0, 2.0, 2.5)) == 2.5 and median_ms({"name": ENGINE, "reason": "no"}) is None
    assert latency_ms(row(FROZEN, 3.0, 2.0)) == 2.0 and latency_ms({"name": ENGINE, "reason": "no"}) is None


# ---- command line ------------------------------------------------------------------------------------------


def run(tmp_path, *words):
    about = ["--input-size", "32", "--classes", "10", "--rounds", "3", "--output", str(tmp_path / "b")]
    return main(["bench", "--arch", "frostnet_small_0_35", *about, *words])


def test_a_network_is_measured_once_and_then_shown_again(tmp_path, capsys, monkeypatch):
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
        (["--threads", "0"], "threads: 0, must be 1 to"),
        (["--threads", "100000"], "(the CPUs here)"),
        (["--batch", ","], "batch: an empty list"),
        (["--batch", "1;2"], "invalid int value: '1;2'"),
        (["--output", "."], "output: '.' is a folder or no name"),
        (["--rounds", "2"], "rounds: 2, must be 3 to 1000"),
        (["--input-size", "8"], "input_size: 8, must be 16"),
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
