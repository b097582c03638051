"""Contact sheets: which pixel lands where, and what stands beside the pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from tasks.sheets import EDGE, GAP, LEAST, LINE, contact_sheet


def flat(value, height=32, width=32):
    return torch.full((3, height, width), float(value))


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def tile(sheet, row, column, height, width):
    y, x = EDGE + LINE + row * (height + GAP), EDGE + column * (width + GAP)
    return sheet[y : y + height, x : x + width]


def test_every_pixel_is_a_square_in_its_place(tmp_path):
    pictures = torch.randint(256, (4, 3, 20, 32), generator=torch.Generator().manual_seed(0))
    a, b, c, d = pictures / 127.5 - 1
    contact_sheet([{"input": a, "made": b}, {"input": c, "made": d}], tmp_path / "sheet.png")
    sheet, scale = pixels(tmp_path / "sheet.png"), LEAST // 20
    assert sheet.shape == (2 * EDGE + LINE + 2 * 20 * scale + GAP, 2 * EDGE + 2 * 32 * scale + GAP, 3)
    for number, picture in enumerate(pictures):
        found = tile(sheet, number // 2, number % 2, 20 * scale, 32 * scale)
        assert (found == picture.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)).all()


def test_large_pictures_are_shown_pixel_by_pixel(tmp_path):
    picture = torch.randint(256, (3, LEAST + 1, LEAST + 7), generator=torch.Generator().manual_seed(0))
    contact_sheet([{"a": picture / 127.5 - 1}], tmp_path / "sheet.png")
    assert (tile(pixels(tmp_path / "sheet.png"), 0, 0, LEAST + 1, LEAST + 7) == picture.permute(1, 2, 0).numpy()).all()


def test_what_is_missing_or_smaller_leaves_white(tmp_path):
    contact_sheet([{"a": flat(-1), "b": flat(-1, 16, 24)}, {"b": flat(-1)}], tmp_path / "sheet.png")
    sheet = pixels(tmp_path / "sheet.png")
    assert (tile(sheet, 0, 0, 160, 160) == 0).all() and (tile(sheet, 1, 0, 160, 160) == 255).all()
    small = tile(sheet, 0, 1, 160, 160)
    assert (small[40:120, 20:140] == 0).all() and (small == 0).mean() == 0.5 * 0.75


def test_values_beyond_the_range_are_its_ends(tmp_path):
    contact_sheet([{"a": flat(-7), "b": flat(7), "c": flat(torch.nan)}], tmp_path / "sheet.png")
    colours = [int(tile(pixels(tmp_path / "sheet.png"), 0, i, 160, 160).mean()) for i in range(3)]
    assert colours == [0, 255, 128]


def test_titles_and_a_note_are_written(tmp_path):
    row, note = (
        {"input": flat(1), "a network's name " * 5: flat(1)},
        f"{'made by a network, ' * 20} $\\frac{{1}}$ \u20ac",
    )
    contact_sheet([row], tmp_path / "without.png")
    contact_sheet([row], tmp_path / "with.png", note)  # no mathematics, and letters that the font may lack
    without, sheet = (pixels(tmp_path / f"{name}.png") for name in ("without", "with"))
    assert (without[:EDGE] == 255).all() and (without[EDGE + LINE :] == 255).all()
    for left in (EDGE, EDGE + 160 + GAP):
        assert (without[EDGE : EDGE + LINE, left : left + 160] < 128).any()
    # within their columns
    assert (without[:, EDGE + 160 : EDGE + 160 + GAP] == 255).all() and (without[:, -EDGE:] == 255).all()
    below = sheet[without.shape[0] - EDGE :]
    assert len(below) > 5 * LINE and (below < 160).any() and (below[:, -EDGE:] == 255).all()  # wrapped


def test_the_same_sheet_is_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        contact_sheet([{"input": flat(0.5)}], tmp_path / "new folder" / name, "note")
    assert (tmp_path / "new folder" / "a.png").read_bytes() == (tmp_path / "new folder" / "b.png").read_bytes()
    assert len(list((tmp_path / "new folder").iterdir())) == 2  # no temporary file stays


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="must end in .png"):
        contact_sheet([{"input": flat(0)}], tmp_path / "sheet.jpg")


def test_a_failed_write_leaves_the_old_sheet(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    contact_sheet([{"input": flat(0)}], path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(UserError, match="disk is full"):
        contact_sheet([{"input": flat(1)}], path)
    assert path.read_bytes() == before
