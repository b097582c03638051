"""The report is one self-contained page made of what the run's folder holds, whatever that is."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.runs import Run
from frostnet import architecture
from frostnet import main as show_main
from nas.__main__ import main
from nas.cost import cost
from nas.report.html import POLICY, table
from nas.report.page import write_report
from tests.synthetic import search_run

NET = architecture("small", 0.5, 10, 32)
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "frostnet_a")
    run.write_json(
        "config.json", {"command": "python search.py --data <x>&", "seed": 0, "name": "<script>alert(1)</script>"}
    )
    NET.save(run.path / "arch.json")
    parts = {row.name: 0.1 for row in cost(NET).rows}
    run.write_json("latency.json", {"parts": parts, "predicted_ms": 1.6, "measured_ms": 1.58})
    run.append_log({"step": 1, "loss": 2.0})
    run.append_log({"step": 2, "loss": 1.0})
    run.write_json(
        "front.json", {"points": [{"latency_ms": 1.0, "score": 1.0}], "networks": [{"name": "n<1>", "latency_ms": 1.0}]}
    )
    run.write_json(
        "metrics.json",
        {
            "agreement": 0.99321,
            "steps": 12345,
            "resumed": False,
            "models": {"float": {"top1": 0.7}, "int8": {"top1": None, "ms": 1.5}},
        },
    )
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of a search that left everything, its front of 20,000 networks included."""
    run = search_run(tmp_path_factory.mktemp("runs") / "frostnet_a", points=20_000)
    write_report(run.path)
    return run


class _Page(HTMLParser):
    """Collects tags, attributes and visible text, and checks that what opens closes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.tags, self.attributes = [], [], [], []
        self.text = text
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def values(self, *names):
        return [value for name, value in self.attributes if name in names]

    def headings(self):
        return re.findall("<h2>(.*?)</h2>", self.text)


def _page(run):
    return _Page(write_report(run.path).read_text())


def _harmless(page):
    """Nothing in the page runs or is fetched: no such tag, no handler, no address but data and places in the page
    itself.
    """
    assert not {"script", "link", "iframe", "object", "embed", "form", "base", "foreignobject"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for value in page.values("src", "href", "xlink:href"):
        assert value.startswith(("data:image/png;base64,", "#")), value
    assert "@import" not in page.text and not re.search(r"url\((?!#)", page.text)


# ---- the whole page ----------------------------------------------------------------------------------------


def test_a_search_has_every_section(whole):
    page = _Page((whole.path / "report.html").read_text())
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
    page = _Page((whole.path / "report.html").read_text())
    _harmless(page)
    assert POLICY == "default-src 'none'; img-src data:; style-src 'unsafe-inline'" and POLICY in page.values("content")


def test_a_front_of_20_000_networks_stays_a_small_page(whole):
    assert (whole.path / "report.html").stat().st_size < 400_000


def test_no_id_stands_twice_and_each_reference_is_to_one(whole):
    page = _Page((whole.path / "report.html").read_text())
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    uses = [v for v in page.values("href", "xlink:href") if v.startswith("#")] + re.findall(
        r"url\((#[^)]*)\)", page.text
    )
    assert uses and {use[1:] for use in uses} <= set(ids)


def test_figures_take_their_colours_from_the_page(whole):
    text = (whole.path / "report.html").read_text()
    figures = "".join(re.findall(r'<svg class="plot".*?</svg>', text, re.DOTALL))
    assert not re.findall("#[0-9a-f]{6}", figures)
    used, known = set(re.findall(r"var\((--\w+)\)", text)), set(re.findall(r"(--\w+):", text))
    assert {"--ink", "--accent", "--line0"} <= used <= known


def test_a_small_run_shows_only_what_it_has(run):
    page = _page(run)
    assert page.headings() == ["Architecture", "Pareto front", "Metrics", "Curves", "Configuration"]
    assert {p.name for p in run.figure("").iterdir()} == {"architecture.png", "front.png", "curves.png"}


def test_a_run_with_only_a_log_has_a_page_too(tmp_path):
    run = Run(tmp_path / "r")
    run.append_log({"step": 1, "loss": 2.0})
    assert _page(run).headings() == ["Curves"]


def test_a_retraining_shows_its_network_its_result_and_its_warnings(tmp_path):
    run = Run(tmp_path / "r")
    run.write_json("network.json", {"name": "mobilenet_v2", "input_size": 32})
    rows = [
        {"network": "float", "top1_test": 0.8, "latency_ms": 3.0},
        {"network": "int8", "top1_test": 0.75, "latency_ms": 1.25},
    ]
    run.write_json("metrics.json", {"params": 2236106, "macs": 6300000, "networks": rows, "warnings": ["a < b"]})
    page = _page(run)
    assert page.headings() == ["Network", "Metrics"]
    for text in ("mobilenet_v2", "2,236,106", "top1 test, int8", "0.75", "1.25 ms", "a < b", "float"):
        assert text in page.words


# ---- text from outside -------------------------------------------------------------------------------------


def test_a_segmenter_shows_itself_and_its_architecture_as_a_backbone(tmp_path):
    run = Run(tmp_path / "lraspp")
    run.write_json("network.json", {"task": "segmentation", "name": "lraspp:small", "input_size": 96})
    run.write_json(
        "metrics.json",
        {"params": 777, "macs": 888, "networks": [{"network": "int8", "miou_test": 0.5, "latency_ms": 2.0}]},
    )
    NET.save(run.path / "arch.json")
    text = " ".join(_page(run).words)
    assert "Backbone" in text and "Architecture" not in text and "lraspp:small" in text and "777" in text
    total = cost(NET)
    assert f"{total.params / 1e6:.2f} M" not in text and "miou test, int8" in text and "2 ms" in text


def test_values_are_escaped_and_the_command_shown_as_typed(run):
    page = _page(run)
    assert "python search.py --data <x>&" in "".join(page.words)
    assert "<script>alert(1)</script>" in page.words
    _harmless(page)


def test_no_file_of_a_hostile_run_can_put_a_script_into_the_page(tmp_path):
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
    page = _page(run)
    _harmless(page)
    assert "alert(1)" in page.text and page.values("title") and "img" in page.tags  # the heat maps


def test_odd_names_are_drawn_without_a_word_from_the_libraries(tmp_path):
    run, odd = Run(tmp_path), ["$x", "$x^{$", "a\u0000b", "\ud800", "日本", "_hidden", "\\", "x" * 5000]
    networks = [
        {"name": t, "kind": t, "latency_ms": 1.0, "score": 1.0, "accuracy": 0.5, "measured_ms": 1.0} for t in odd
    ]
    rows = [{"step": i, f"loss {t}": 1.0, "phase": t} for i, t in enumerate(odd * 2)]
    (tmp_path / "front.json").write_text(json.dumps({"networks": networks, "chosen": odd[0]}))
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _harmless(_page(run))


def test_numbers_that_cannot_be_drawn_are_left_out(tmp_path):
    run = Run(tmp_path)
    rows = [
        '{"step": 1, "loss": NaN}',
        '{"step": 2, "loss": 1e999}',
        '{"step": 3, "loss": 1%s}' % ("0" * 400),
        '{"step": 4, "loss": 1}',
    ]
    (run.path / "log.jsonl").write_text("\n".join([*rows, "[" * 100_000, "{torn"]))
    assert "Curves" in _page(run).headings()


# ---- what is wrong with a file is said ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "nothing/here"])
def test_a_folder_without_a_run_is_refused_and_not_made(tmp_path, name):
    with pytest.raises(UserError, match="no run in this folder"):
        write_report(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_latencies_of_another_network_are_refused(run):
    for parts in ({"stem": 1.0}, ["stem"], "stem"):
        run.write_json("latency.json", {"parts": parts})
        with pytest.raises(UserError, match=r"latency\.json: parts: stem, must be those of arch\.json"):
            write_report(run.path)


@pytest.mark.parametrize("value", [0, -1.0, None, True, "1", 1e40])
def test_a_latency_that_is_none_is_refused(run, value):
    run.write_json("latency.json", {"parts": {row.name: 1.0 for row in cost(NET).rows} | {"head": value}})
    with pytest.raises(UserError, match=r"latency\.json: parts\.head: .*, must be milliseconds above 0"):
        write_report(run.path)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "front.json", "latency.json"])
def test_a_file_that_holds_no_object_is_named(run, name):
    run.write_json(name, [1])
    with pytest.raises(UserError, match=f"{name}: a list, must be an object"):
        write_report(run.path)


@pytest.mark.parametrize(
    "data, words",
    [
        ({"points": 1}, "points: must be a list of objects"),
        ({"networks": [1]}, "networks: must be a list of objects"),
        ({"points": [{"latency_ms": 1.0}]}, r"points\[0\]\.score: None, must be a number"),
        ({"networks": [{"latency_ms": "1"}]}, r"networks\[0\]\.latency_ms: '1', must be a number"),
        ({"networks": [{"latency_ms": 1.0, "kind": ["x"]}]}, r"networks\[0\]\.kind: \['x'\], must be a text"),
    ],
)
def test_a_broken_front_is_refused(run, data, words):
    run.write_json("front.json", data)
    with pytest.raises(UserError, match=rf"front\.json: {words}"):
        write_report(run.path)


@pytest.mark.parametrize(
    "health, words",
    [
        (1, "health: a int, must be an object"),
        ({"warnings": "x"}, "warnings: 'x', must be a list of texts"),
        ({"warnings": [1]}, r"warnings: \[1\], must"),
    ],
)
def test_a_broken_health_is_refused(run, health, words):
    run.write_json("metrics.json", {"health": health})
    with pytest.raises(UserError, match=rf"metrics\.json: {words}"):
        write_report(run.path)


# ---- alphas ------------------------------------------------------------------------------------------------

SPACE = {
    "tied": False,
    "stages": [{"min_depth": 1, "slots": [["only"]]}, {"min_depth": 1, "slots": [["a", "b"], ["c", "d", "e"]]}],
}
ROW = {"step": 10, "ops": [[[1.0]], [[0.5, 0.5], [0.2, 0.3, 0.5]]], "depths": [[1.0], [0.25, 0.75]]}
LATER = {"step": 20, "ops": [[[1.0]], [[1.0, 0.0], [0.1, 0.1, 0.8]]], "depths": [[1.0], [0.4, 0.6]]}


@pytest.fixture
def moved(tmp_path):
    run = Run(tmp_path / "r")
    run.write_json("space.json", SPACE)
    run.write_json("metrics.json", {})
    for row in (ROW, LATER):
        run.append_log(row, "alphas.jsonl")
    return run


def _maps(page) -> dict[str, np.ndarray]:
    """Title of each heat map -> its opacities in [0, 1], (candidates, times)."""
    titles = [a.removeprefix("probabilities over time: ") for a in page.values("alt")]
    pixels = [np.array(Image.open(io.BytesIO(base64.b64decode(s.split(",")[1])))) for s in page.values("src")]
    return {title: p[..., 3] / 255 for title, p in zip(titles, pixels)}


def test_heat_maps_show_probabilities_over_time(moved):
    page = _page(moved)
    maps = _maps(page)
    assert list(maps) == ["depth", "slot 1, runs 100%", "slot 2, runs 60%"]
    np.testing.assert_allclose(maps["depth"] ** 2, [[0.25, 0.4], [0.75, 0.6]], atol=0.01)
    np.testing.assert_allclose(maps["slot 2, runs 60%"] ** 2, [[0.2, 0.1], [0.3, 0.1], [0.5, 0.8]], atol=0.01)
    assert re.findall("<li class=best>(.*?)</li>", page.text) == ["2 blocks", "60%", "a", "100%", "e", "80%"]
    assert "only" not in page.words and "Stage 1" not in page.words and "Stage 2" in page.words


def test_a_tied_space_has_one_map_for_all_slots_with_the_labels_that_differ(moved):
    slots = [["only"], ["mb", "mb"], ["mb", "frost"]]
    moved.write_json("space.json", {"tied": True, "stages": [{"min_depth": 3, "slots": slots}]})
    row = {"step": 1, "ops": [[[1.0], [0.1, 0.9], [0.1, 0.9]]], "depths": [[1.0]]}
    (moved.path / "alphas.jsonl").write_text(json.dumps(row))
    page = _page(moved)
    assert list(_maps(page)) == ["candidates"]
    assert {"mb", "frost", "90%"} <= set(page.words)


def test_long_histories_are_thinned(moved):
    (moved.path / "alphas.jsonl").write_text(
        "\n".join(json.dumps(ROW | {"step": i}) for i in range(1000)) + '\n{"step": 1000, "op'
    )
    assert {m.shape[1] for m in _maps(_page(moved)).values()} == {120}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"step": "x"}, "row 2: step: 'x', must be a number"),
        ({"ops": [[[1.0]]]}, "row 2: ops: must be a list for each of the 2 stages"),
        ({"depths": None}, "row 2: depths: must be a list for each of the 2 stages"),
        ({"ops": [[[1.0]], [[0.5, 0.5]]]}, r"row 2: ops\[1\]: must be a list for each of the 2 slots"),
        ({"ops": [[[1.0]], [[0.5, 0.5], [0.5, 0.5]]]}, r"row 2: ops\[1\]\[1\]: must be 3 probabilities"),
        ({"ops": [[[1.0]], [[0.5, 0.5], [0.5, "x", 0]]]}, r"row 2: ops\[1\]\[1\]: must be 3 probabilities"),
        ({"depths": [[1.0], [0.5, 1.5]]}, r"row 2: depths\[1\]: must be 2 probabilities"),
        ({"depths": [[1.0], [0.5, float("nan")]]}, r"row 2: depths\[1\]: must be 2 probabilities"),
    ],
)
def test_alphas_that_do_not_fit_the_space_are_refused(moved, change, words):
    (moved.path / "alphas.jsonl").write_text(f"{json.dumps(ROW)}\n{json.dumps(LATER | change)}")
    with pytest.raises(UserError, match=rf"alphas\.jsonl: {words}"):
        write_report(moved.path)


@pytest.mark.parametrize(
    "space, words",
    [
        ([], "a list, must be an object"),
        ({}, "stages: must be a list of objects"),
        ({"stages": []}, "stages: none, must be one or more"),
        (
            {"stages": [{"min_depth": 1, "slots": [[1]]}]},
            r"stages\[0\]\.slots: must be lists of the candidates' labels",
        ),
        (
            {"stages": [{"min_depth": 2, "slots": [["a"]]}]},
            r"stages\[0\]\.min_depth: 2, must be a whole number from 0 to 1",
        ),
    ],
)
def test_a_broken_space_is_refused(moved, space, words):
    moved.write_json("space.json", space)
    with pytest.raises(UserError, match=rf"space\.json: {words}"):
        write_report(moved.path)


# ---- figures and tables ------------------------------------------------------------------------------------


def test_health_shows_the_gap_and_warnings_come_first(tmp_path):
    run = Run(tmp_path)
    run.write_json(
        "metrics.json", {"health": {"entropy": 0.5, "mixed_top1": 0.75, "derived_top1": 0.5, "warnings": ["collapse"]}}
    )
    page = _page(run)
    assert page.words[page.words.index("gap") + 1] == "0.25"
    assert page.words.index("collapse") < page.words.index("gap") and "Metrics" not in page.headings()


def test_predictions_are_judged_against_what_was_measured(tmp_path):
    run = Run(tmp_path)
    pairs = [(1.0, 1.0), (1.04, 1.0), (0.9, 1.0), (2.2, 2.0), (5.0, None)]
    networks = [{"name": f"n{i}", "latency_ms": p, "measured_ms": m} for i, (p, m) in enumerate(pairs)]
    run.write_json("front.json", {"networks": networks})
    words = _page(run).words
    shown = {name: words[words.index(name) + 1] for name in ("networks", "mean error", "bias", "within 5 %")}
    assert shown == {"networks": "4", "mean error": "6.0%", "bias": "+1.0%", "within 5 %": "50%"}


def test_metrics_become_readable_tables(run):
    words = _page(run).words
    for text in ("0.9932", "12,345", "no", "models", "float", "int8", "top1", "–"):
        assert text in words


def test_the_numbers_of_a_column_have_the_same_decimals_where_that_loses_nothing():
    def cells(*values):
        return re.findall("<td[^>]*>(.*?)</td>", table("", [{"x": v} for v in values]))

    assert cells(1.5, 12.25, 0.0) == ["1.50", "12.25", "0.00"]
    assert cells(1.5, 1e-6) == ["1.5", "1e-06"]
    assert cells(1.5, None, "x") == ["1.500", "–", "x"]


def test_the_chosen_network_stands_out():
    html = table("", [{"name": "a", "ms": 1.0}, {"name": "b", "ms": 2.0}], chosen="b")
    assert '<tr class="chosen"><td>b</td>' in html and html.count("chosen") == 1


# ---- python -m nas, python frostnet.py ---------------------------------------------------------------------


def test_show_prints_rows_and_totals(run, capsys):
    main(["show", str(run.path), "--picture", str(run.path / "a.png")])
    text = capsys.readouterr().out
    total = cost(NET)
    assert "frostnet_small_0_5, 32 px, 10 classes" in text
    assert f"{total.params:,}" in text and f"{total.macs:,}" in text
    assert sum(line.startswith("blocks.") for line in text.splitlines()) == 14
    assert (run.path / "a.png").is_file()


def test_show_draws(run, capsys):
    main(["show", str(run.path)])
    bars = [line.count("█") for line in capsys.readouterr().out.splitlines() if "█" in line]
    macs = [row.macs for row in cost(NET).rows]
    assert bars == [max(1, round(40 * m / max(macs))) for m in macs]


def test_show_at_another_input_size(run, capsys):
    main(["show", str(run.path / "arch.json"), "--input-size", "224"])
    assert f"{cost(NET.for_input(224)).macs:,}" in capsys.readouterr().out


def test_show_of_a_published_network(capsys):
    show_main(["frostnet_large_1_0"])
    assert "5,807,056" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["show", "nope"], ["report", "nope"], ["show", "nope.json"]])
def test_a_wrong_name_is_one_line_and_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "nope" in capsys.readouterr().err


def test_a_picture_of_another_kind_is_refused(run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["show", str(run.path), "--picture", "a.jpg"])
    assert stop.value.code == 2 and "must end in .png or .svg" in capsys.readouterr().err


def test_report_prints_where_the_page_is(run, capsys):
    main(["report", str(run.path)])
    assert capsys.readouterr().out.strip() == str(run.path / "report.html")
