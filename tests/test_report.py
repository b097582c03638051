"""The report is one self-contained page made of what the run's folder holds."""

from html.parser import HTMLParser

import pytest

from frostnet import architecture
from frostnet import main as show_main
from nas import Run, UserError
from nas.__main__ import main
from nas.cost import cost
from nas.report import write_report

NET = architecture("small", 0.5, 10, 32)


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "frostnet_a")
    run.write_json("config.json", {"command": "python search.py --data <x>&", "seed": 0, "name": "<script>alert(1)</script>"})
    NET.save(run.path / "arch.json")
    parts = {row.name: 0.1 for row in cost(NET).rows}
    run.write_json("latency.json", {"parts": parts, "predicted_ms": 1.6, "measured_ms": 1.58})
    run.append_log({"step": 1, "loss": 2.0})
    run.append_log({"step": 2, "loss": 1.0})
    run.write_json("front.json", {"points": [{"latency_ms": 1.0, "score": 1.0}], "networks": [{"name": "n<1>", "latency_ms": 1.0}]})
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


class _Page(HTMLParser):
    """Collects tags, visible text and sources, and checks that what opens closes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.words, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def _page(run):
    page = _Page(write_report(run.path).read_text())
    assert page.open == []
    return page


def test_the_page_shows_every_section_of_a_whole_run(run):
    page = _page(run)
    for heading in ("frostnet_a", "Architecture", "Metrics", "Pareto front", "Curves", "Configuration"):
        assert heading in page.words
    assert page.tags.count("img") == 3
    assert {p.name for p in run.figure("").iterdir()} == {"architecture.png", "front.png", "curves.png"}


def test_the_page_needs_no_other_file(run):
    page = _page(run)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link"} & set(page.tags)


def test_values_are_escaped_and_the_command_shown_as_typed(run):
    page = _page(run)
    assert "python search.py --data <x>&" in "".join(page.words)
    assert "<script>alert(1)</script>" in page.words
    assert "script" not in page.tags


def test_metrics_become_readable_tables(run):
    words = _page(run).words
    for text in ("0.9932", "12,345", "no", "models", "float", "int8", "top1", "–"):
        assert text in words


def test_a_run_with_only_a_log_has_a_page_too(tmp_path):
    run = Run(tmp_path / "r")
    run.append_log({"step": 1, "loss": 2.0})
    page = _page(run)
    assert "Curves" in page.words and "Architecture" not in page.words


@pytest.mark.parametrize("name", ["", "nothing/here"])
def test_a_folder_without_a_run_is_refused_and_not_made(tmp_path, name):
    with pytest.raises(UserError, match="no run in this folder"):
        write_report(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_latencies_of_another_network_are_refused(run):
    run.write_json("latency.json", {"parts": {"stem": 1.0}})
    with pytest.raises(UserError, match=r"latency\.json: parts: stem, must be those of arch\.json"):
        write_report(run.path)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "front.json", "latency.json"])
def test_a_file_that_holds_no_object_is_named(run, name):
    run.write_json(name, [1])
    with pytest.raises(UserError, match=f"{name}: a list, must be an object"):
        write_report(run.path)


# ---- python -m nas, python frostnet.py ----


def test_show_prints_rows_and_totals(run, capsys):
    main(["show", str(run.path), "--picture", str(run.path / "a.png")])
    text = capsys.readouterr().out
    total = cost(NET)
    assert "frostnet_small_0_5, 32 px, 10 classes" in text
    assert f"{total.params:,}" in text and f"{total.macs:,}" in text
    assert sum(line.startswith("blocks.") for line in text.splitlines()) == 14
    assert (run.path / "a.png").is_file()


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


def test_report_prints_where_the_page_is(run, capsys):
    main(["report", str(run.path)])
    assert capsys.readouterr().out.strip() == str(run.path / "report.html")
