"""Tables of a report."""

import re

from nas.report.html import table


def test_the_numbers_of_a_column_have_the_same_decimals_where_that_loses_nothing():
    def cells(*values):
        return re.findall("<td[^>]*>(.*?)</td>", table("", [{"x": v} for v in values]))

    assert cells(1.5, 12.25, 0.0) == ["1.50", "12.25", "0.00"]
    assert cells(1.5, 1e-6) == ["1.5", "1e-06"]
    assert cells(1.5, None, "x") == ["1.500", "–", "x"]


def test_the_chosen_network_stands_out():
    html = table("", [{"name": "a", "ms": 1.0}, {"name": "b", "ms": 2.0}], chosen="b")
    assert '<tr class="chosen"><td>b</td>' in html and html.count("chosen") == 1
