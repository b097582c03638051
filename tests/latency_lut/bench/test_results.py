"""The JSON file of a benchmark: what comes back, and what is refused."""

import pytest

from common.errors import UserError
from common.files import read_json, write_json
from latency_lut.bench.contenders import FROZEN
from latency_lut.bench.results import Results, file_prefix, latency_ms, median_ms
from tests.latency_lut.bench.rows import ENGINE, OPERATION, job, result, row


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
        (lambda d: d.update(format="x"), "format: 'x', must be 'latency_bench'"),
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


def test_the_latency_is_the_best_round():
    assert median_ms(row(FROZEN, 3.0, 2.0, 2.5)) == 2.5 and median_ms({"name": ENGINE, "reason": "no"}) is None
    assert latency_ms(row(FROZEN, 3.0, 2.0)) == 2.0 and latency_ms({"name": ENGINE, "reason": "no"}) is None
