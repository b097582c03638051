"""benchmarks/latency_tables.py, inference_memory.py, parity.py: bars, pages, resuming; memory of known weights."""

import json
import math

import pytest

import quant
from benchmarks import inference_memory, latency_tables, parity
from benchmarks.inference_memory import MemoryConfig
from benchmarks.latency_tables import NAMES, ORT, TablesConfig, bars, cut, slower, where, worth_a_profile
from common.errors import UserError
from common.files import read_json, write_json
from latency_lut.bench.contenders import EAGER, FLOATS, FROZEN, SESSION
from latency_lut.bench.results import Results

# eager, frozen, ort; fbgemm, qnnpack, x86, onednn; ort
MS = dict(zip(NAMES, (10.0, 8.0, 5.0, 4.5, 20.0, 3.0, 4.0, 2.0)))


def rows(ms=MS, missing=(), convs=0) -> list[dict]:
    made = []
    for name in NAMES:
        int8 = name not in FLOATS
        size = 2_700_000 if int8 else 10_000_000
        row = {
            "name": name,
            "rounds_ms": [ms[name]] * 3,
            "file_bytes": size,
            "float_ops": [] if int8 else None,
            "float_convs": convs * int8,
        }
        made.append({"name": name, "reason": "QuantError: no place"} if name in missing else {**row, "reason": None})
    return made


def result(job=None, arch="frostnet_small_1_0", **fields) -> dict:
    about = {
        "arch": arch,
        "input_size": 224,
        "classes": 1000,
        "threads": 1,
        "batch": 1,
        "params": 5_000_000,
        "macs": 10**9,
        "fingerprint": "f",
    }
    about |= job._asdict() if job else {}
    seen = {"date": "2020-01-01 00:00:00", "seconds": 1.0, "load": 0.5, "steal": 0.01}
    profile = {"qnnpack": [{"op": "quantized::conv2d", "kind": "integer", "calls": 9, "ms": 1.0, "share": 0.912}]}
    return {**about, "rounds": 12, "rows": rows(), "profile": profile, "seen": seen, **fields}


# ---- what the figures say ----------------------------------------------------------------------------------


def test_the_bars_of_a_frostnet():
    values = {b["bar"]: (b["value"], b["met"]) for b in bars([result()])}
    assert values == {
        "best torch engine / eager float": (0.3, True),
        "best torch engine / frozen float": (0.375, True),
        "onnxruntime INT8 / float": (0.4, True),
        "convolutions left float": (0, True),
        "frozen INT8 file / float file": (0.27, True),
        "int8.onnx / float file": (0.27, True),
    }
    assert bars([result(arch="resnet18")]) == []


def test_bars_that_are_missed():
    slow = {**MS, "x86": 7.0, "fbgemm": 7.0, "onednn": 6.5, ORT: 4.9}
    missed = {b["bar"]: b["value"] for b in bars([result(rows=rows(slow, convs=2))]) if not b["met"]}
    assert missed == {
        "best torch engine / eager float": 0.65,
        "best torch engine / frozen float": 0.812,
        "onnxruntime INT8 / float": 0.98,
        "convolutions left float": 2,
    }


def test_medians_decide_and_minima_stand_beside_them(tmp_path):
    made = rows({**MS, "fbgemm": 9.0, "onednn": 9.0})
    made[NAMES.index("x86")]["rounds_ms"] = [3.0, 7.0, 7.0]  # the quietest round alone would meet the bar
    judged = {b["bar"]: b for b in bars([result(rows=made)])}
    torch_bar = judged["best torch engine / eager float"]
    assert (torch_bar["value"], torch_bar["minimum"], torch_bar["met"]) == (0.7, 0.3, False)
    assert judged["convolutions left float"]["minimum"] is None
    page = written(tmp_path, result(rows=made))
    assert "| frostnet_small_1_0 | best torch engine / eager float | 0.7 | 0.3 | 0.4 | **missed** |" in page
    assert (
        "| frostnet_small_1_0 | convolutions left float | 0 | - | 0 | met |" in page
        and "median of the interleaved rounds" in page
    )


def test_what_could_not_be_measured_meets_no_bar():
    judged = {b["bar"]: b for b in bars([result(rows=rows(missing=(ORT,)))])}
    assert not judged["onnxruntime INT8 / float"]["met"] and math.isnan(judged["onnxruntime INT8 / float"]["value"])
    assert judged["best torch engine / eager float"]["met"]


def test_engines_are_compared_with_float_on_their_own_runtime():
    assert slower(rows()) == {"qnnpack": 2.5}  # 20 ms against 8
    assert slower(rows({**MS, ORT: 6.0})) == {"qnnpack": 2.5, ORT: 1.2}
    assert slower(rows(missing=(FROZEN,))) == {}


def test_profiles_are_taken_where_int8_disappoints():
    assert worth_a_profile(rows()) == {"qnnpack"}
    beaten = {**MS, ORT: 5.5, "x86": 5.2}
    assert worth_a_profile(rows({**beaten, "fbgemm": 6.0, "onednn": 6.0})) == {"qnnpack", ORT, "x86", SESSION}


def test_cuts_have_a_sign():
    assert (cut(3.0, 10.0), cut(12.0, 10.0), cut(None, 10.0), cut(3.0, None)) == ("-70 %", "+20 %", "-", "-")


def test_a_profile_in_words():
    assert where(result()["profile"]["qnnpack"]) == "quantized::conv2d x9 91 %" and where([]) == "-"


# ---- the page ----------------------------------------------------------------------------------------------


def written(tmp_path, *results) -> str:
    kept = Results.new(tmp_path / "latency")
    for one in results:
        kept.put(one)
    config = TablesConfig(networks=tuple(r["arch"] for r in results), output=str(tmp_path / "latency"))
    latency_tables.write(kept, config, 3)
    return (tmp_path / "latency.md").read_text()


def test_the_page_shows_each_network_beside_the_published_numbers(tmp_path):
    page = written(tmp_path, result(), result(arch="shufflenet_v2_x1_0"))
    assert "**2 of 3 networks so far.**" in page and "Highest load 0.5, highest steal 1.0%" in page
    line = "10.00 | 8.00 | 5.00 | 4.50 | 20.00 | 3.00 | 4.00 | **2.00** | 0 | -80 % | -75 % | -60 % |"
    assert f"| frostnet_small_1_0 | 5.00 | 1000 | {line}" in page
    assert "| frostnet_small_1_0 | 185 | 62 | -66 % | 10.0 | 3.0 | -70 % | -62 % | -60 % |" in page
    assert (
        "| shufflenet_v2_x1_0 | 255 | 372 | +46 % | +36 % | 26.4 % | 10.0 | 4.5 | -55 % | +100 % | -44 % | 27.0 % |"
        in page
    )
    assert "| frostnet_small_1_0 | qnnpack | 2.50 | quantized::conv2d x9 91 % |" in page
    assert "On every network the fastest INT8 engine beats every float form." in page
    assert "| frostnet_small_1_0 | 10.00 | 2.70 | 2.70 | 27.0 % | 27.0 % |" in page
    assert "Memory" not in page and (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_says_plainly_where_float_wins_and_what_has_no_figure(tmp_path):
    lost = dict.fromkeys(NAMES, 6.0) | {SESSION: 5.0}
    page = written(tmp_path, result(rows=rows(lost)), result(arch="resnet18", rows=rows(missing=("onednn",))))
    assert "The fastest float form beats every INT8 engine on: frostnet_small_1_0." in page
    assert "+20 % |" in page and "- resnet18, onednn: QuantError: no place" in page and "nan" not in page


def test_the_memory_table_is_put_into_the_page(tmp_path):
    row = {"network": "resnet18", "batch": 8, "form": "fbgemm", "peak_mib": 20.04, "running_mib": 17.5}
    write_json(tmp_path / "latency_memory.json", {"repeats": 3, "rows": [row]})
    assert "| resnet18 | 8 | fbgemm | 20.0 | 17.5 |" in written(tmp_path, result())
    write_json(tmp_path / "latency_memory.json", {"repeats": 3, "rows": [{}]})
    with pytest.raises(UserError, match="latency_memory.json: not what benchmarks/inference_memory.py writes"):
        written(tmp_path, result())


# ---- the run -----------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    measured = []

    def measure(job, names, rounds, profiled, progress):
        measured.append((job.arch, rounds))
        return result(job, rounds=rounds)

    monkeypatch.setattr(latency_tables, "measure", measure)
    return measured


def run(tmp_path, *words):
    return latency_tables.main(
        ["--networks", "frostnet_small_0_35", "resnet18", "--output", str(tmp_path / "latency"), *words]
    )


def test_a_run_goes_on_where_it_was_and_ends_with_a_line_of_json(tmp_path, counted, capsys):
    assert run(tmp_path, "--minutes", "0")["networks"] == 0 and not counted
    run(tmp_path)
    assert counted == [("frostnet_small_0_35", 12), ("resnet18", 12)]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["networks"], last["planned"], last["slower_than_own_float"]["resnet18"]) == (2, 2, {"qnnpack": 2.5})
    run(tmp_path)
    assert len(counted) == 2
    run(tmp_path, "--restart")
    assert len(counted) == 4


def test_the_page_is_made_anew_from_another_machines_json_without_measuring(tmp_path, counted):
    run(tmp_path)
    data = read_json(tmp_path / "latency.json")
    data["meta"]["cpu"] = "Other CPU"
    write_json(tmp_path / "latency.json", data)
    (tmp_path / "latency.md").unlink()
    assert run(tmp_path, "--minutes", "0", "--rounds", "5")["networks"] == 2 and len(counted) == 2
    page = (tmp_path / "latency.md").read_text()
    assert (
        "Machine: Other CPU" in page
        and "12 interleaved rounds" in page
        and read_json(tmp_path / "latency.json") == data
    )
    with pytest.raises(SystemExit):
        run(tmp_path)


@pytest.mark.parametrize(
    "words, message", [(["--large-rounds", "0"], "large_rounds: 0, must be 3"), (["--output", "."], "output: '.'")]
)
def test_settings_that_cannot_be_are_refused(words, message, counted, capsys):
    with pytest.raises(SystemExit):
        latency_tables.main(words)
    assert message in capsys.readouterr().err and not counted


def test_the_largest_networks_get_few_rounds(tmp_path, counted):
    latency_tables.main(["--networks", "vgg16_bn", "--output", str(tmp_path / "latency")])
    assert counted == [("vgg16_bn", 4)]


def test_an_unknown_network_is_refused_and_costs_no_old_results(tmp_path, counted, capsys):
    kept = run(tmp_path)
    with pytest.raises(SystemExit):
        latency_tables.main(["--networks", "nosuch", "--output", str(tmp_path / "latency"), "--restart"])
    assert "arch: 'nosuch' is neither" in capsys.readouterr().err
    assert run(tmp_path) == kept and len(counted) == 2


# ---- memory ------------------------------------------------------------------------------------------------


def test_memory_of_a_network_is_that_of_its_weights_and_little_more(tmp_path):
    config = MemoryConfig(
        networks=("alexnet",), forms=(EAGER,), input_size=64, repeats=1, output=str(tmp_path / "m.json")
    )
    row = inference_memory.measured(config, "alexnet", 1, EAGER)
    weights = 61.1e6 * 4 / 2**20  # 233 MiB
    assert weights < row["running_mib"] < 1.2 * weights and row["running_mib"] <= row["peak_mib"] < 1.5 * weights


def test_memory_rows_are_kept_and_gone_on_with(tmp_path, monkeypatch, capsys):
    measured = []

    def fake(config, network, batch, form):
        measured.append((network, batch, form))
        return {"network": network, "batch": batch, "form": form, "peak_mib": 2.0, "running_mib": 1.0}

    monkeypatch.setattr(inference_memory, "measured", fake)
    words = ["--networks", "resnet18", "--forms", EAGER, "fbgemm", "--output", str(tmp_path / "m.json")]
    inference_memory.main([*words, "--batch", "1"])
    inference_memory.main([*words, "--batch", "1,8"])
    assert [kind[1:] for kind in measured] == [(1, EAGER), (1, "fbgemm"), (8, EAGER), (8, "fbgemm")]
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]) == 4
    with pytest.raises(SystemExit):
        inference_memory.main([*words, "--batch", "1", "--repeats", "2"])
    assert (
        "m.json: repeats: measured with 3, here is 2; choose another --output" in capsys.readouterr().err
        and len(measured) == 4
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["meta"].update(torch="1.0"), "torch: measured with 1.0"),
        (lambda d: d.update(rows={}), "rows: {}, must be a list"),
        (lambda d: d["rows"][0].update(form="nosuch"), r"rows\[0\].form: 'nosuch'"),
        (lambda d: d["rows"][0].update(peak_mib=None), r"rows\[0\].peak_mib: None"),
        (lambda d: d["rows"][0].pop("batch"), r"rows\[0\].batch: missing"),
    ],
)
def test_a_wrong_file_of_memory_is_refused(tmp_path, change, message):
    config = MemoryConfig(output=str(tmp_path / "m.json"))
    row = {"network": "resnet18", "batch": 8, "form": "fbgemm", "peak_mib": 20.04, "running_mib": 17.5}
    data = inference_memory.begun(config) | {"rows": [row]}
    write_json(config.output, data)
    assert inference_memory.begun(config) == data
    change(data)
    write_json(config.output, data)
    with pytest.raises(UserError, match=f"m.json: {message}"):
        inference_memory.begun(config)
    write_json(config.output, [])
    with pytest.raises(UserError, match=r"m.json: the file: \[\], must be an object"):
        inference_memory.begun(config)


def test_a_form_that_does_not_run_here_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(quant, "freeze_float", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(UserError, match="resnet20, float torch: RuntimeError: no"):
        inference_memory.write_form(FROZEN, "nowhere", "resnet20", 10, 32, 1)
    with pytest.raises(SystemExit):
        inference_memory.main(["--forms", "nosuch"])
    assert "forms: 'nosuch' is not one of" in capsys.readouterr().err


# ---- parity ------------------------------------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch):
    calls = []

    def compare(name, wanted, config, train, images):
        calls.append((name, tuple(wanted)))
        figures = {"layers": 9, "layer_steps": 1.0, "worst_layer": "conv", "output_steps": 4.0, "float_ops": 2}
        return {engine: figures for engine in wanted}

    monkeypatch.setattr(parity, "compare", compare)
    monkeypatch.setattr("tasks.data.SCENES", {"train": 32, "val": 32, "test": 32})
    monkeypatch.setattr(quant, "available", lambda: ("fbgemm", "onnxruntime"))
    return calls


def compare_on(tmp_path, engines, *models, words=()):
    return parity.main(["--models", *models, "--engines", *engines, "--output", str(tmp_path / "parity"), *words])


def test_parity_compares_only_what_is_missing_and_keeps_the_rest(tmp_path, compared):
    compare_on(tmp_path, ["fbgemm"], "resnet20")
    compare_on(tmp_path, ["onnxruntime"], "resnet32")
    found = compare_on(tmp_path, ["fbgemm", "onnxruntime"], "resnet20")
    assert compared == [("resnet20", ("fbgemm",)), ("resnet32", ("onnxruntime",)), ("resnet20", ("onnxruntime",))]
    assert (
        set(found["networks"]["resnet20"]) == {"fbgemm", "onnxruntime"} and read_json(tmp_path / "parity.json") == found
    )
    page = (tmp_path / "parity.md").read_text()
    assert "| network | layers | fbgemm | onnxruntime |" in page and "| resnet32 | 9 | - | 1 / 4 / 2 |" in page
    assert "| resnet20 | 9 | 1 / 4 / 2 | 1 / 4 / 2 |" in page


def test_parity_of_nothing_holds_nothing_and_writes_nothing(tmp_path, compared, capsys):
    compare_on(tmp_path, ["fbgemm"], "resnet20", words=["--minutes", "0"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        (last["rows"], last["layer_steps"], last["holds"]) == (0, None, False)
        and not list(tmp_path.iterdir())
        and not compared
    )


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "the file: [], must be an object"),
        ({"about": {}}, "networks: missing"),
        ({"about": {}, "networks": {"a": {"x86": {}}}}, "networks.a.x86.layers: missing"),
        ({"about": {}, "networks": {}}, "was made with {}"),
    ],
)
def test_a_foreign_file_of_parity_is_refused(tmp_path, compared, capsys, data, message):
    write_json(tmp_path / "parity.json", data)
    with pytest.raises(SystemExit):
        compare_on(tmp_path, ["fbgemm"], "resnet20")
    said = capsys.readouterr().err
    assert f"parity.json: {message}" in said and "choose another --output" in said and not compared
