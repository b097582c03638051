"""Nothing that a run's files hold can run in the page, break it, or make the drawing libraries complain."""

import json

from common.runs import Run
from tests.nas.report.pages import assert_harmless, page_of
from tests.synthetic import search_run

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def test_values_are_escaped_and_the_command_shown_as_typed(run):
    page = page_of(run)
    assert "python search.py --data <x>&" in "".join(page.words)
    assert "<script>alert(1)</script>" in page.words
    assert_harmless(page)


def test_no_file_of_a_hostile_run_can_put_a_script_into_thepage_of(tmp_path):
    run = search_run(tmp_path / "r", points=50)
    front, space, metrics = run.read_json("front.json"), run.read_json("space.json"), run.read_json("metrics.json")
    for i, network in enumerate(front["networks"]):
        network |= {"name": f"{EVIL}{i}", "kind": EVIL, EVIL: EVIL}
    front["chosen"] = f"{EVIL}0"
    for stage in space["stages"]:
        stage["slots"] = [[EVIL for _ in labels] for labels in stage["slots"]]
    metrics |= {
        EVIL: EVIL,
        "t": {EVIL: {EVIL: EVIL}},
        "u": [{EVIL: [EVIL]}],
        "networks": [{"network": EVIL, f"top1{EVIL}": EVIL}],
    }
    metrics["health"] |= {EVIL: EVIL, "warnings": [EVIL]}
    latency = run.read_json("latency.json") | {f"{EVIL}_ms": EVIL, EVIL: {EVIL: EVIL}}
    for name, value in (("front", front), ("space", space), ("metrics", metrics), ("latency", latency)):
        run.write_json(f"{name}.json", value)
    run.write_json("config.json", {"program": EVIL, "command": EVIL, EVIL: EVIL})
    (run.path / "log.jsonl").write_text(
        "\n".join(json.dumps({"step": i, "phase": f"{EVIL}{i}", f"loss {EVIL}": i}) for i in range(4))
    )
    page = page_of(run)
    assert_harmless(page)
    assert "alert(1)" in page.text and page.values("title") and "img" in page.tags  # the heat maps


def test_odd_names_are_drawn_without_a_word_from_the_libraries(tmp_path):
    run, odd = Run(tmp_path), ["$x", "$x^{$", "a\u0000b", "\ud800", "日本", "_hidden", "\\", "x" * 5000]
    networks = [
        {"name": t, "kind": t, "latency_ms": 1.0, "score": 1.0, "accuracy": 0.5, "measured_ms": 1.0} for t in odd
    ]
    rows = [{"step": i, f"loss {t}": 1.0, "phase": t} for i, t in enumerate(odd * 2)]
    (tmp_path / "front.json").write_text(json.dumps({"networks": networks, "chosen": odd[0]}))
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert_harmless(page_of(run))


def test_numbers_that_cannot_be_drawn_are_left_out(tmp_path):
    run = Run(tmp_path)
    rows = [
        '{"step": 1, "loss": NaN}',
        '{"step": 2, "loss": 1e999}',
        '{"step": 3, "loss": 1%s}' % ("0" * 400),
        '{"step": 4, "loss": 1}',
    ]
    (run.path / "log.jsonl").write_text("\n".join([*rows, "[" * 100_000, "{torn"]))
    assert "Curves" in page_of(run).headings()
