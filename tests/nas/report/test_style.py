"""Figures as inline SVG and as files; no global state is left."""

import re

import matplotlib
import pytest

from common.errors import UserError
from nas.report.architecture import architecture_figure
from nas.report.front import front_figure
from nas.report.style import inline_svg, save
from tests.nas.report.pages import FRONT, NET


def test_an_inline_svg_keeps_its_ids_apart_and_its_text_as_text():
    one, two = (inline_svg(front_figure(FRONT), name, "a <front>") for name in ("one", "two"))
    assert one.startswith('<svg class="plot" role="img" aria-label="a &lt;front&gt;"') and one.rstrip().endswith(
        "</svg>"
    )
    ids = [set(re.findall(' id="([^"]*)"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    assert ">target 3 ms</text>" in one
    assert inline_svg(front_figure(FRONT), "one", "a <front>") == one


def test_a_figure_is_saved_as_svg_where_the_name_says_so(tmp_path):
    save(architecture_figure(NET), tmp_path / "a.SVG")
    assert "<svg" in (tmp_path / "a.SVG").read_text()
    with pytest.raises(UserError, match=r"picture: '.*a\.pdf', must end in \.png or \.svg"):
        save(architecture_figure(NET), tmp_path / "a.pdf")


def test_a_figure_is_saved_as_png_and_no_global_figure_is_left(tmp_path):
    save(architecture_figure(NET), tmp_path / "figures" / "a.png")
    assert (tmp_path / "figures" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not matplotlib._pylab_helpers.Gcf.get_all_fig_managers()
