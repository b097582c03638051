"""The report is one self-contained page made of what the run's folder holds."""

import re

import pytest

from common.errors import UserError
from common.runs import Run
from nas.cost import cost
from nas.report.html import POLICY
from nas.report.page import write_report
from tests.nas.report.pages import NET, Page, assert_harmless, page_of
from tests.synthetic import search_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of a search that left everything, its front of 20,000 networks included."""
    run = search_run(tmp_path_factory.mktemp("runs") / "frostnet_a", points=20_000)
    write_report(run.path)
    return run


def test_a_search_has_every_section(whole):
    page = Page((whole.path / "report.html").read_text())
    assert page.headings() == [
        "Architecture",
        "Latency",
        "Alphas over time",
        "Health",
        "Pareto front",
        "Predicted against measured",
        "Metrics",
        "Curves",
        "Configuration",
    ]
    figures = {p.name for p in whole.figure("").iterdir()}
    assert figures == {"architecture.png", "front.png", "curves.png", "prediction.png"}


def test_the_page_needs_nothing_and_forbids_the_rest(whole):
    page = Page((whole.path / "report.html").read_text())
    assert_harmless(page)
    assert POLICY == "default-src 'none'; img-src data:; style-src 'unsafe-inline'" and POLICY in page.values("content")


def test_a_front_of_20_000_networks_stays_a_smallpage_of(whole):
    assert (whole.path / "report.html").stat().st_size < 400_000


def test_no_id_stands_twice_and_each_reference_is_to_one(whole):
    page = Page((whole.path / "report.html").read_text())
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    uses = [v for v in page.values("href", "xlink:href") if v.startswith("#")] + re.findall(
        r"url\((#[^)]*)\)", page.text
    )
    assert uses and {use[1:] for use in uses} <= set(ids)


def test_figures_take_their_colours_from_thepage_of(whole):
    text = (whole.path / "report.html").read_text()
    figures = "".join(re.findall(r'<svg class="plot".*?</svg>', text, re.DOTALL))
    assert not re.findall("#[0-9a-f]{6}", figures)
    used, known = set(re.findall(r"var\((--\w+)\)", text)), set(re.findall(r"(--\w+):", text))
    assert {"--ink", "--accent", "--line0"} <= used <= known


def test_a_small_run_shows_only_what_it_has(run):
    page = page_of(run)
    assert page.headings() == ["Architecture", "Pareto front", "Metrics", "Curves", "Configuration"]
    assert {p.name for p in run.figure("").iterdir()} == {"architecture.png", "front.png", "curves.png"}


def test_a_run_with_only_a_log_has_a_page_too(tmp_path):
    run = Run(tmp_path / "r")
    run.append_log({"step": 1, "loss": 2.0})
    assert page_of(run).headings() == ["Curves"]


def test_a_retraining_shows_its_network_its_result_and_its_warnings(tmp_path):
    run = Run(tmp_path / "r")
    run.write_json("network.json", {"name": "mobilenet_v2", "input_size": 32})
    rows = [
        {"network": "float", "top1_test": 0.8, "latency_ms": 3.0},
        {"network": "int8", "top1_test": 0.75, "latency_ms": 1.25},
    ]
    run.write_json("metrics.json", {"params": 2236106, "macs": 6300000, "networks": rows, "warnings": ["a < b"]})
    page = page_of(run)
    assert page.headings() == ["Network", "Metrics"]
    for text in ("mobilenet_v2", "2,236,106", "top1 test, int8", "0.75", "1.25 ms", "a < b", "float"):
        assert text in page.words


def test_a_segmenter_shows_itself_and_its_architecture_as_a_backbone(tmp_path):
    run = Run(tmp_path / "lraspp")
    run.write_json("network.json", {"task": "segmentation", "name": "lraspp:small", "input_size": 96})
    run.write_json(
        "metrics.json",
        {"params": 777, "macs": 888, "networks": [{"network": "int8", "miou_test": 0.5, "latency_ms": 2.0}]},
    )
    NET.save(run.path / "arch.json")
    text = " ".join(page_of(run).words)
    assert "Backbone" in text and "Architecture" not in text and "lraspp:small" in text and "777" in text
    total = cost(NET)
    assert f"{total.params / 1e6:.2f} M" not in text and "miou test, int8" in text and "2 ms" in text


def test_metrics_become_readable_tables(run):
    words = page_of(run).words
    for text in ("0.9932", "12,345", "no", "models", "float", "int8", "top1", "–"):
        assert text in words


def test_health_shows_the_gap_and_warnings_come_first(tmp_path):
    run = Run(tmp_path)
    run.write_json(
        "metrics.json", {"health": {"entropy": 0.5, "mixed_top1": 0.75, "derived_top1": 0.5, "warnings": ["collapse"]}}
    )
    page = page_of(run)
    assert page.words[page.words.index("gap") + 1] == "0.25"
    assert page.words.index("collapse") < page.words.index("gap") and "Metrics" not in page.headings()


def test_predictions_are_judged_against_what_was_measured(tmp_path):
    run = Run(tmp_path)
    pairs = [(1.0, 1.0), (1.04, 1.0), (0.9, 1.0), (2.2, 2.0), (5.0, None)]
    networks = [{"name": f"n{i}", "latency_ms": p, "measured_ms": m} for i, (p, m) in enumerate(pairs)]
    run.write_json("front.json", {"networks": networks})
    words = page_of(run).words
    shown = {name: words[words.index(name) + 1] for name in ("networks", "mean error", "bias", "within 5 %")}
    assert shown == {"networks": "4", "mean error": "6.0%", "bias": "+1.0%", "within 5 %": "50%"}


@pytest.mark.parametrize("name", ["", "nothing/here"])
def test_a_folder_without_a_run_is_refused_and_not_made(tmp_path, name):
    with pytest.raises(UserError, match="no run in this folder"):
        write_report(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
