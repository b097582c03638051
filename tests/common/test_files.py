"""Files are written whole or not at all, and read with errors that name them."""

import errno
import os
from pathlib import Path

import pytest

import common.files
from common.errors import UserError
from common.files import read_json, write_bytes, write_json


def _full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_json_there_and_back(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"c": "é"}, "rows": [{"i": i} for i in range(50)]}
    write_json(tmp_path / "deep" / "x.json", value)
    assert read_json(tmp_path / "deep" / "x.json") == value


def test_numbers_that_are_not_finite_become_null_and_paths_strings(tmp_path):
    write_json(tmp_path / "x.json", {"loss": float("nan"), "best": (float("inf"), 1.0), "at": Path("a/b")})
    assert read_json(tmp_path / "x.json") == {"loss": None, "best": [None, 1.0], "at": "a/b"}


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", 1)
    monkeypatch.setattr(common.files.os, "fsync", _full_disk)
    with pytest.raises(UserError, match=r"x\.json: cannot be written \(the disk is full: free some space"):
        write_json(tmp_path / "x.json", 2)
    assert read_json(tmp_path / "x.json") == 1
    assert os.listdir(tmp_path) == ["x.json"]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_bytes(tmp_path / "x", b"old")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(common.files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a part of the path is a file"):
        write_json(tmp_path / "file" / "x.json", 1)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("text", [b'{"a": 1', b"", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000])
def test_a_file_that_is_not_json_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(UserError, match=r"x\.json: not a whole JSON file"):
        read_json(tmp_path / "x.json")
