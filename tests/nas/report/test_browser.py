"""A report, opened in a browser: whole, readable on a phone, and silent on the console.

Skipped only where no browser is installed.
"""

import html
import json
import re
import shutil
import subprocess

import pytest

from nas.report.page import write_report
from tests.synthetic import search_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update "
    "--disable-sync --hide-scrollbars --virtual-time-budget=10000 --enable-logging=stderr"
).split()
SECTIONS = [
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
PHONE, DESKTOP = 400, 1200

# The report stands in frames of both widths, as it is, policy included; this page looks into them from outside.
MEASURE = """
const frames = [...document.querySelectorAll("iframe")];
const box = e => e.getBoundingClientRect();
const look = frame => {
  const page = frame.contentDocument, all = s => [...page.querySelectorAll(s)];
  const wide = all("body *")
    .filter(e => box(e).right > frame.clientWidth + 1 && !e.closest(".scroll, svg") && box(e).width > 0);
  const clipped = all("svg.plot").flatMap(svg => [...svg.querySelectorAll("text")].filter(text => {
    const a = box(text), b = box(svg);
    return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
  }));
  return {
    headings: all("h2").map(e => e.textContent),
    images: all("img").map(e => [e.complete, e.naturalWidth]),
    beside: all(".heat img").map(e => box(e).bottom - box(e.previousElementSibling.lastElementChild).bottom),
    plots: all("svg.plot").map(e => [box(e).width, box(e).height]),
    parts: all("table.parts td.bar i").map(e => [e.className, box(e).width]),
    scrollWidth: page.documentElement.scrollWidth,
    wide: wide.map(e => e.outerHTML.slice(0, 200)),
    clipped: clipped.map(e => e.textContent),
    soft: page.defaultView.getComputedStyle(page.querySelector("svg.plot text")).fill,
  };
};
addEventListener("load", () => { document.querySelector("pre").textContent = JSON.stringify(frames.map(look)); });
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


def _browse(page, *flags) -> subprocess.CompletedProcess:
    profile = page.parent / f"profile_{page.stem}"  # new and empty
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)


def _console(result) -> list[str]:
    return [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    # few columns: such heat maps could grow out of place
    run = search_run(tmp_path_factory.mktemp("runs") / "frostnet_a", every=150)
    return write_report(run.path)


@pytest.fixture(scope="module")
def seen(report):
    """What the page looks like on a phone and on a desktop: [phone, desktop], see MEASURE."""
    text = html.escape(report.read_text())
    frames = "".join(
        f'<iframe width="{w}" height="800" style="border: 0" srcdoc="{text}"></iframe>' for w in (PHONE, DESKTOP)
    )
    page = report.parent / "frames.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><pre></pre>{frames}<script>{MEASURE}</script>")
    result = _browse(page, "--dump-dom")
    found = re.search(r"<pre>(.*?)</pre>", result.stdout, re.DOTALL)
    assert found and found[1], result.stderr[-3000:]
    return json.loads(html.unescape(found[1]))


def test_every_section_is_there(seen):
    assert [page["headings"] for page in seen] == [SECTIONS] * 2


def test_every_picture_is_decoded_and_drawn(seen):
    for page in seen:
        assert len(page["images"]) > 20 and all(complete and width > 0 for complete, width in page["images"])
        assert len(page["plots"]) == 9 and all(width > 200 and height > 150 for width, height in page["plots"])
        assert page["soft"] == "rgb(95, 109, 122)"  # the page's --soft, not black, which stands for an unknown variable


def test_blocks_are_as_long_as_they_take(seen, report):
    ms = list(json.loads((report.parent / "latency.json").read_text())["parts"].values())
    for page in seen:
        widths = [width for _, width in page["parts"]]
        assert [w / max(widths) for w in widths] == pytest.approx([m / max(ms) for m in ms], abs=0.02)
        assert {"frost", "mb", "ends"} == {name for name, _ in page["parts"]}


def test_heat_maps_are_as_high_as_their_labels(seen):
    for page in seen:
        assert page["beside"] == pytest.approx([0.0] * len(page["images"]), abs=1)


def test_nothing_is_wider_than_the_page(seen):
    for page, width in zip(seen, (PHONE, DESKTOP)):
        assert page["wide"] == []
        assert page["scrollWidth"] <= width


def test_no_label_of_a_figure_is_cut_off(seen):
    assert [page["clipped"] for page in seen] == [[], []]


def test_the_page_opens_without_a_word_on_the_console(report):
    picture = report.parent / "page.png"
    result = _browse(report, f"--screenshot={picture}", "--window-size=1200,3000")
    assert _console(result) == []
    assert picture.stat().st_size > 50_000


def test_the_policy_blocks_what_a_page_would_load_and_the_console_says_so(tmp_path, report):
    page = tmp_path / "loads.html"
    page.write_text(
        report.read_text().replace("<header>", "<header><script>document.title = 'run'</script><img src='other.png'>")
    )
    result = _browse(page, "--dump-dom")
    assert "<title>run" not in result.stdout
    assert sum("Content Security Policy" in line for line in _console(result)) == 2
