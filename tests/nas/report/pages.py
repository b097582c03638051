"""What tests of the report share: a network, alphas of a small space, a front, and a page that is parsed."""

import re
from html.parser import HTMLParser

from frostnet import architecture
from nas.report.page import write_report

NET = architecture("small", 0.5, 10, 32)
SPACE = {
    "tied": False,
    "stages": [{"min_depth": 1, "slots": [["only"]]}, {"min_depth": 1, "slots": [["a", "b"], ["c", "d", "e"]]}],
}
ROW = {"step": 10, "ops": [[[1.0]], [[0.5, 0.5], [0.2, 0.3, 0.5]]], "depths": [[1.0], [0.25, 0.75]]}
LATER = {"step": 20, "ops": [[[1.0]], [[1.0, 0.0], [0.1, 0.1, 0.8]]], "depths": [[1.0], [0.4, 0.6]]}

FRONT = {
    "target_ms": 3.0,
    "chosen": "a",
    "points": [{"latency_ms": 1.0, "score": 1.0}, {"latency_ms": 3.0, "score": 2.0}],
    "networks": [
        {"name": "a", "kind": "derived", "latency_ms": 3.0, "score": 2.0, "measured_ms": 2.9, "accuracy": 0.6},
        {"name": "b", "kind": "random", "latency_ms": 2.8, "measured_ms": 2.7, "accuracy": 0.5},
    ],
}


def texts(figure) -> list[str]:
    return [t.get_text() for ax in figure.axes for t in ax.texts]


class Page(HTMLParser):
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


def page_of(run):
    return Page(write_report(run.path).read_text())


def assert_harmless(page):
    """Nothing in the page runs or is fetched: no such tag, no handler, no address but data and places in the page."""
    assert not {"script", "link", "iframe", "object", "embed", "form", "base", "foreignobject"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for value in page.values("src", "href", "xlink:href"):
        assert value.startswith(("data:image/png;base64,", "#")), value
    assert "@import" not in page.text and not re.search(r"url\((?!#)", page.text)
