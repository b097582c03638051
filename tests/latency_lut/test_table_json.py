"""Files of latency tables: what is saved comes back, and a changed field cannot stay unnoticed."""

import copy
import json
import math
from dataclasses import replace

import pytest

from common.errors import UserError
from common.files import read_json, write_json
from latency_lut import LatencyTable
from latency_lut.timing import Timing
from tests.latency_lut.tables import SECTION, made_up

ENTRY = "stem_k3_relu_3-16_s1@32"
BROKEN = [  # where, what a hand put there, what the message must name
    (("version",), 1, "version: 1, must be 2.*measure into another one"),
    (("unit",), "s", "unit: 's', must be 'ms'"),
    (("extra",), 1, "extra: unknown"),
    (("meta",), [], "meta: "),
    (("meta", "engine"), "tflite", "meta.engine: 'tflite'"),
    (("meta", "threads"), 0, "meta.threads: 0"),
    (("meta", "threads"), True, "meta.threads: True"),
    (("meta", "flags"), "avx", "meta.flags: 'avx'"),
    (("meta", "more"), 1, "meta.more: unknown"),
    (("entries",), [], "entries: "),
    (("entries", ENTRY), 3.0, f"entries.{ENTRY}: 3.0"),
    (("entries", ENTRY, "ms"), 0, f"entries.{ENTRY}.ms: 0"),
    (("entries", ENTRY, "ms"), -1.0, f"entries.{ENTRY}.ms: -1.0"),
    (("entries", ENTRY, "ms"), "3", f"entries.{ENTRY}.ms: '3'"),
    (("entries", ENTRY, "ms"), None, f"entries.{ENTRY}.ms: None"),
    (("entries", ENTRY, "ms"), 7.0, f"entries.{ENTRY}.ms: 7.0, must be .*smallest of its rounds"),
    (("entries", ENTRY, "rounds"), [], f"entries.{ENTRY}.rounds: "),
    (("entries", ENTRY, "rounds"), [0.0], rf"entries.{ENTRY}.rounds\[0\]: 0.0"),
    (("entries", ENTRY, "rounds"), [-1.0], rf"entries.{ENTRY}.rounds\[0\]: -1.0"),
    (("entries", ENTRY, "rounds"), [1e9], rf"entries.{ENTRY}.rounds\[0\]: 1000000000.0"),
    (("entries", ENTRY, "rel_spread"), 0.5, f"entries.{ENTRY}.rel_spread: 0.5"),
    (("entries", ENTRY, "status"), 1, f"entries.{ENTRY}.status: unknown"),
    (("sections", SECTION, "width"), 1.0, f"sections.{SECTION}: its fields say 'frostnet_1_32'"),
    (("sections", SECTION, "input_size"), 4, f"sections.{SECTION}.input_size: 4"),
    (("sections", SECTION, "ratio"), 0.0, f"sections.{SECTION}.ratio: 0.0"),
    (("sections", SECTION, "ratio"), 77, f"sections.{SECTION}.ratio: 77"),
    (("sections", SECTION, "parts"), [3], rf"sections.{SECTION}.parts\[0\]: 3"),
    (("sections", SECTION, "parts"), ["stem"], "entries.stem: missing, though"),
    (("sections", SECTION, "validation"), None, f"sections.{SECTION}.validation: None"),
    (("sections", SECTION, "validation", "mape"), -0.1, f"sections.{SECTION}.validation.mape: -0.1"),
    (("sections", SECTION, "validation", "spearman"), 1.5, f"sections.{SECTION}.validation.spearman: 1.5"),
    (("sections", SECTION, "validated", "figures", "mape"), -0.1, f"sections.{SECTION}.validated.figures.mape: -0.1"),
    (("sections", SECTION, "validated", "seed"), -1, f"sections.{SECTION}.validated.seed: -1"),
    (
        ("sections", SECTION, "validated", "networks", "random_00", "timing"),
        None,
        "validated.networks.random_00.timing: missing",
    ),
    (("meta", "revision"), 3, "meta.revision: 3"),
    (
        ("sections", SECTION, "networks", "random_00", "timing"),
        None,
        f"sections.{SECTION}.networks.random_00.timing: missing",
    ),
    (
        ("sections", SECTION, "networks", "random_00", "parts"),
        "stem",
        f"sections.{SECTION}.networks.random_00.parts: 'stem'",
    ),
    (("sections", SECTION, "conditions"), [{}], rf"sections.{SECTION}.conditions\[0\].date: missing"),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    table = made_up(tmp_path_factory.mktemp("lut") / "fbgemm.json")
    table.save()
    return table


def test_a_saved_table_is_the_same_table(table):
    again = LatencyTable.load(table.path)
    assert again == table and again.hash == table.hash


def test_the_hash_changes_with_any_figure(table):
    key = next(iter(table.entries))
    other = replace(table, entries={**table.entries, key: Timing((*table.entries[key].rounds, 99.0))})
    assert other.hash != table.hash and len(table.hash) == 64


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(
        UserError, match=r"none.json: no such file; .*python -m latency_lut --engine fbgemm --output \S*none.json"
    ):
        LatencyTable.load(tmp_path / "none.json")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(table, tmp_path, share):
    text = table.path.read_text()
    (tmp_path / "cut.json").write_text(text[: int(share * len(text))])
    with pytest.raises(UserError, match="cut.json: not a whole JSON file"):
        LatencyTable.load(tmp_path / "cut.json")


@pytest.mark.parametrize("foreign", [[], 3, "text", None, {}, {"format": "architecture", "version": 1}])
def test_foreign_json_is_refused(tmp_path, foreign):
    write_json(tmp_path / "foreign.json", foreign)
    with pytest.raises(UserError, match="foreign.json: (format: .*'latency_lut'|the file: .*an object)"):
        LatencyTable.load(tmp_path / "foreign.json")


@pytest.mark.parametrize("where, value, message", BROKEN, ids=lambda v: ".".join(v) if isinstance(v, tuple) else None)
def test_a_hand_broken_field_is_named(table, tmp_path, where, value, message):
    data = copy.deepcopy(read_json(table.path))
    inner = data
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    write_json(tmp_path / "broken.json", data)
    with pytest.raises(UserError, match=message):
        LatencyTable.load(tmp_path / "broken.json")


def fields_of(data, path=()):
    """Paths of all fields of an object, the free-named ones of one entry, network and section only."""
    for key, value in data.items():
        yield (*path, key)
        if isinstance(value, dict) and (path or key != "meta"):
            names = list(value)[:1] if key in ("entries", "sections", "networks") else list(value)
            yield from fields_of({k: value[k] for k in names}, (*path, key))
        elif isinstance(value, dict):
            yield from fields_of(value, (*path, key))


def test_no_field_may_be_missing(table, tmp_path):
    whole = read_json(table.path)
    section = ("sections", SECTION)
    free = {section, (*section, "networks", "random_00"), (*section, "validated", "networks", "random_00")}
    tried = 0
    for path in fields_of(whole):
        data = copy.deepcopy(whole)
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        if path in free:
            continue  # a table with one section or network less is a table
        write_json(tmp_path / "less.json", data)
        with pytest.raises(UserError, match="less.json"):
            LatencyTable.load(tmp_path / "less.json")
        tried += 1
    assert tried > 40


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(table, tmp_path, value):
    data = read_json(table.path)
    data["entries"][ENTRY]["ms"] = value
    (tmp_path / "nan.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="is not a JSON number"):
        LatencyTable.load(tmp_path / "nan.json")
