"""The latency table: look-ups, refusals, and JSON that cannot lie unnoticed. Figures are made up; nothing is timed."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import frostnet
from common.errors import UserError
from common.files import read_json, write_json
from latency_lut import LatencyTable
from latency_lut.calibration import calibrate
from latency_lut.identity import CALL, IDENTITY, parts
from latency_lut.sections import Network, Section, Validated
from latency_lut.timing import Timing
from nas import Bottleneck, cost, frostnet_space

SPACE = frostnet_space(0.5, 32, 10)
CALL_MS = 0.004


def made_up(path, space=SPACE, ratio=1.25):
    """A complete table of `space` in which a part takes its MACs in nanoseconds and a network `ratio` times the sum,
    less the calls.
    """
    generator = torch.Generator().manual_seed(0)
    archs, others = (
        {f"random_{i:02}": space.architecture(space.random(generator)) for i in range(9)} for _ in range(2)
    )
    entries = {CALL: Timing((CALL_MS,) * 3)}
    for arch in [*archs.values(), *others.values(), *covering(space)]:
        for key, row in zip(parts(arch).values(), cost(arch).rows, strict=True):
            entries[key] = Timing((row.macs / 1e6 + 0.02, row.macs / 1e6 + 0.01, row.macs / 1e6 + 0.03))
    networks, fresh = ({name: timed(arch, entries, ratio) for name, arch in named.items()} for named in (archs, others))
    ms = {key: timing.ms for key, timing in entries.items()}
    fitted, names, validation = calibrate(ms, {name: (n.parts, n.timing.ms) for name, n in networks.items()}, CALL_MS)
    keys = tuple(key for key in space.specs() if not key.startswith("head"))
    conditions = ({"date": "2026-01-01 00:00:00", "seconds": 1.0, "load": 0.5, "steal": None},)
    section = Section(
        space.name,
        space.width,
        space.input_size,
        space.head.num_classes,
        space.hash(),
        keys,
        0,
        networks,
        fitted,
        tuple(names),
        validation,
        conditions,
        Validated(1, fresh, validation, conditions),
    )
    return replace(LatencyTable.new("fbgemm", 1, path), entries=entries).with_section(section)


def timed(arch, entries, ratio):
    keys = tuple(parts(arch).values())
    total = sum(entries[key].ms for key in keys) - (len(keys) - 1) * CALL_MS
    return Network(keys, Timing((ratio * total,) * 3))


def covering(space):
    """Networks that hold every candidate of every slot."""
    most = max(len(slot.candidates) for stage in space.stages for slot in stage.slots)
    for op in range(most):
        blocks = tuple(
            slot.candidates[min(op, len(slot.candidates) - 1)] for stage in space.stages for slot in stage.slots
        )
        yield replace(space.architecture(space.random(torch.Generator().manual_seed(0))), blocks=blocks)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    table = made_up(tmp_path_factory.mktemp("lut") / "fbgemm.json")
    table.save()
    return table


def random_arch(seed, space=SPACE):
    return space.architecture(space.random(torch.Generator().manual_seed(seed)), f"net_{seed}")


# ---- look-ups ----------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_prediction_is_the_ratio_times_the_sum_of_the_parts(table, seed):
    arch = random_arch(seed)
    prediction = table.predict(arch)
    raw = sum(row.macs / 1e6 + 0.01 for row in cost(arch).rows) - (len(cost(arch).rows) - 1) * CALL_MS
    assert prediction.latency_ms == pytest.approx(1.25 * raw)
    assert list(prediction.rows) == [row.name for row in cost(arch).rows]
    assert sum(prediction.rows.values()) == pytest.approx(prediction.latency_ms)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_spaces_latencies_add_up_to_the_prediction(table, seed):
    choice = SPACE.random(torch.Generator().manual_seed(seed))
    latency = table.for_space(SPACE)
    blocks = (
        row[op]
        for stage, depth, ops in zip(latency.blocks, choice.depths, choice.ops)
        for row, op in zip(stage[:depth], ops)
    )
    total = latency.stem_ms + sum(blocks) + latency.head_ms
    assert total == pytest.approx(table.predict(SPACE.architecture(choice)).latency_ms)


def test_the_spaces_latencies_have_its_shape(table):
    shape = [[len(slot.candidates) for slot in stage.slots] for stage in SPACE.stages]
    assert [[len(slot) for slot in stage] for stage in table.for_space(SPACE).blocks] == shape


def test_latencies_are_in_milliseconds(table):
    assert table.to_json()["unit"] == "ms"
    rows = cost(random_arch(1)).rows
    expected = 1.25 * (sum(r.macs / 1e6 + 0.01 for r in rows) - (len(rows) - 1) * CALL_MS)
    assert table.predict(random_arch(1)).latency_ms == pytest.approx(expected)


def test_a_network_pays_one_call(table):
    rows = table.predict(random_arch(1)).rows
    entries = [table.entries[key].ms for key in parts(random_arch(1)).values()]
    assert rows["stem"] == pytest.approx(1.25 * entries[0])
    assert list(rows.values())[1:] == pytest.approx([1.25 * (ms - CALL_MS) for ms in entries[1:]])


def test_a_part_as_quick_as_an_empty_call_is_an_error_and_never_zero(table):
    slow = replace(table, entries={**table.entries, CALL: Timing((10.0,) * 3)})
    for ask in (lambda: slow.for_space(SPACE), lambda: slow.predict(random_arch(1))):
        with pytest.raises(
            UserError,
            match="no more than a call that computes nothing .*cannot be true.*anew: .*fbgemm_new.json --width 0.5",
        ):
            ask()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_calibrated_latency_is_a_positive_number(table, seed):
    rows = table.predict(random_arch(seed)).rows.values()
    assert all(math.isfinite(ms) and ms > 0 for ms in rows)


@pytest.mark.parametrize("first", [0, 1])
def test_a_prediction_for_a_space_is_by_that_spaces_ratio(table, first):
    """A second space with the same blocks and another ratio, before and after the one that is asked for."""
    own, other = table.sections[SECTION], replace(table.sections[SECTION], space="other", ratio=2.5)
    both = replace(table, sections={s.key: s for s in ((own, other), (other, own))[first]})
    choice = SPACE.random(torch.Generator().manual_seed(3))
    arch, latency = SPACE.architecture(choice), both.for_space(SPACE)
    total = sum(
        row[op]
        for stage, depth, ops in zip(latency.blocks, choice.depths, choice.ops)
        for row, op in zip(stage[:depth], ops)
    )
    found = both.predict(arch, space=SPACE)
    assert found.latency_ms == pytest.approx(latency.stem_ms + total + latency.head_ms) and found.section == SECTION
    assert both.predict(arch).latency_ms == pytest.approx(found.latency_ms * (1, 2)[first])
    assert [s.key for s in both.holding(arch)] == list(both.sections)


def test_a_network_of_another_space_is_not_predicted_by_this_one(table):
    wide = frostnet_space(0.75, 32, 10)
    both = replace(
        table,
        sections={**table.sections, **(made := made_up(table.path, wide)).sections},
        entries={**table.entries, **made.entries},
    )
    assert both.predict(random_arch(0, wide), space=wide).section == "frostnet_0.75_32"
    with pytest.raises(UserError, match="sections.frostnet_0.5_32 does not hold the blocks of net_0"):
        both.predict(random_arch(0, wide), space=SPACE)
    with pytest.raises(UserError, match="input_size 96, width 0.5 of the space 'frostnet' was not measured"):
        both.predict(random_arch(0).for_input(96), space=frostnet_space(0.5, 96, 10))


def test_a_published_network_of_the_width_is_found(table):
    assert table.predict(frostnet.architecture("small", 0.5, 10, 32)).latency_ms > 0


def test_a_missing_input_size_names_the_command_that_adds_it(table):
    with pytest.raises(
        UserError,
        match=r"input_size 96.*frostnet_0.5_32.*--output \S*fbgemm.json --width 0.5 --input-size 96 --num-classes 7",
    ):
        table.for_space(frostnet_space(0.5, 96, 7))
    with pytest.raises(UserError, match="--width 0.5 --input-size 96"):
        table.predict(random_arch(0).for_input(96))


def test_a_missing_width_names_the_command_that_adds_it(table):
    with pytest.raises(UserError, match=r"width 1.25.*--width 1.25 --input-size 32"):
        table.predict(frostnet.architecture("base", 1.25, 10, 32))


def test_a_missing_class_count_names_the_command_that_adds_only_the_head(table):
    for ask in (
        lambda: table.for_space(frostnet_space(0.5, 32, 100)),
        lambda: table.predict(random_arch(0).with_classes(100)),
    ):
        with pytest.raises(
            UserError, match=r"no latency of head_relu_160-1280-100@2; measure it: .*--input-size 32 --num-classes 100"
        ):
            ask()


def test_a_block_of_no_space_is_an_error_and_no_guess(table):
    arch = random_arch(0)
    odd = replace(arch, blocks=(*arch.blocks, replace(arch.blocks[-1], in_channels=160, kernel_size=7, stride=1)))
    with pytest.raises(UserError, match="no space that comes with the program"):
        table.predict(odd)


@pytest.mark.parametrize("unlike", [{"op": "se", "squeeze_factor": 4}, {"activation": "hard_swish"}])
def test_a_block_of_another_space_names_that_space(table, unlike):
    space = frostnet_space(
        0.5, 32, 10, bottleneck=Bottleneck(unlike.get("op", "frost"), unlike.get("activation", "relu"))
    )
    arch = space.architecture(space.random(torch.Generator().manual_seed(0)))
    with pytest.raises(UserError, match=f"add it: python .*--space {space.name} --width 0.5"):
        table.predict(arch)


def test_a_space_that_has_changed_is_refused(table):
    changed = replace(SPACE, stages=tuple(replace(s, min_depth=1, slots=s.slots[:1]) for s in SPACE.stages))
    with pytest.raises(UserError, match="hash: the space 'frostnet' has changed.*--restart"):
        table.for_space(changed)


def test_an_unfinished_section_is_refused_with_the_command_that_finishes_it(table):
    section = replace(table.sections["frostnet_0.5_32"], ratio=None, validation=None, fitted_on=())
    unfinished = table.with_section(section)
    with pytest.raises(UserError, match="interrupted.*go on with: python -m latency_lut"):
        unfinished.for_space(SPACE)
    with pytest.raises(UserError, match="add it: python -m latency_lut"):
        unfinished.predict(random_arch(0))


def test_a_hardly_begun_head_is_no_figure(table):
    head = next(key for key in table.entries if key.startswith("head"))
    begun = replace(table, entries={**table.entries, head: Timing((1.0, 1.0))})
    with pytest.raises(UserError, match="was interrupted"):
        begun.for_space(SPACE)


# ---- refusals ----------------------------------------------------------------------------------------------


def test_a_table_of_this_machine_passes(table):
    table.check()
    table.check("fbgemm", 1)
    replace(table, meta={**table.meta, "batch": 8}).check(batch=8)


@pytest.mark.parametrize(
    "asked, words",
    [
        (
            ("qnnpack", 1),
            "engine: the table was measured with fbgemm, wanted is qnnpack; .*--engine qnnpack --output "
            ".*qnnpack_1.json",
        ),
        (("fbgemm", 2), "threads: the table was measured with 1, wanted is 2; .*--output .*fbgemm_2.json --threads 2"),
    ],
)
def test_another_engine_or_thread_count_is_refused(table, asked, words):
    with pytest.raises(UserError, match=words):
        table.check(*asked)


OTHERWISE = {
    "cpu": "Other",
    "flags": ["avx"],
    "torch": "1.0",
    "runtime": "none 1",
    "weight_qmax": 127,
    "batch": 8,
    "memory_format": "contiguous",
}


@pytest.mark.parametrize("field, value", OTHERWISE.items())
def test_every_other_part_of_the_identity_is_refused_with_both_values(table, field, value):
    other = replace(table, meta={**table.meta, field: value})
    shown = " ".join(value) if isinstance(value, list) else str(value)
    with pytest.raises(UserError) as error:
        other.check()
    assert f"{field}: the table was measured with {shown}, wanted is " in str(error.value)
    assert "python -m latency_lut --engine fbgemm --output" in str(error.value)  # the command that mends it


def test_the_identity_is_covered_by_these_tests():
    assert set(IDENTITY) == {"engine", "threads", *OTHERWISE}


def test_another_machine_can_be_allowed_and_says_what_differs(table, capsys):
    elsewhere = {**table.meta, "cpu": "Other", "flags": []}
    replace(table, meta=elsewhere).check(allow_other_cpu=True)
    assert capsys.readouterr().out == ""
    replace(table, meta={**elsewhere, "torch": "1.0+cpu", "runtime": "torch 1.0+cpu"}).check(allow_other_cpu=True)
    said = capsys.readouterr().out.splitlines()
    assert (
        len(said) == 2
        and "torch: measured with 1.0+cpu, here is " in said[0]
        and "runtime: measured with torch 1.0+cpu" in said[1]
    )


@pytest.mark.parametrize("field", ["weight_qmax", "batch", "memory_format"])
def test_what_a_search_would_do_otherwise_cannot_be_allowed(table, field):
    with pytest.raises(UserError, match=f"{field}: .*" + ("quantize otherwise" if field == "weight_qmax" else "")):
        replace(table, meta={**table.meta, field: OTHERWISE[field]}).check(allow_other_cpu=True)


def test_a_refusal_advises_the_commands_of_what_the_table_holds(table):
    """Widths, sizes, spaces and class counts, those of further heads among them; not the default space."""
    further = {key.replace("-10@", "-100@"): timing for key, timing in table.entries.items() if key.startswith("head")}
    other = replace(table.sections[SECTION], space="mine:make", width=0.75, input_size=64)
    held = replace(table.with_section(other), entries={**table.entries, **further}, meta={**table.meta, "cpu": "Other"})
    with pytest.raises(UserError) as refused:
        held.check()
    new = table.path.with_name("fbgemm_new.json")
    start = f"python -m latency_lut --engine fbgemm --output {new}"
    first, second = str(refused.value).split("measure it anew: ")[1].split("; or pass")[0].split(" && ")
    assert first == f"{start} --width 0.5 --input-size 32 --num-classes 10 100"
    assert second == f"{start} --space mine:make --width 0.75 --input-size 64 --num-classes 10 100"
    assert held.go_on((96,)).startswith(
        f"python -m latency_lut --engine fbgemm --output {table.path} --width 0.5 --input-size 96 --num-classes 10 &&"
    )


# ---- JSON --------------------------------------------------------------------------------------------------


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
    with pytest.raises(UserError, match="foreign.json: format: .* not a latency table"):
        LatencyTable.load(tmp_path / "foreign.json")


ENTRY = "stem_k3_relu_3-16_s1@32"
SECTION = "frostnet_0.5_32"
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
