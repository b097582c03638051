"""Heat maps of the alphas over time."""

import base64
import io
import json
import re

import numpy as np
from PIL import Image

from tests.nas.report.pages import ROW, page_of


def _maps(page) -> dict[str, np.ndarray]:
    """Title of each heat map -> its opacities in [0, 1], (candidates, times)."""
    titles = [a.removeprefix("probabilities over time: ") for a in page.values("alt")]
    pixels = [np.array(Image.open(io.BytesIO(base64.b64decode(s.split(",")[1])))) for s in page.values("src")]
    return {title: p[..., 3] / 255 for title, p in zip(titles, pixels)}


def test_heat_maps_show_probabilities_over_time(moved):
    page = page_of(moved)
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
    page = page_of(moved)
    assert list(_maps(page)) == ["candidates"]
    assert {"mb", "frost", "90%"} <= set(page.words)


def test_long_histories_are_thinned(moved):
    (moved.path / "alphas.jsonl").write_text(
        "\n".join(json.dumps(ROW | {"step": i}) for i in range(1000)) + '\n{"step": 1000, "op'
    )
    assert {m.shape[1] for m in _maps(page_of(moved)).values()} == {120}
