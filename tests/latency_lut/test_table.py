"""The latency table: look-ups and refusals. Figures are made up; nothing is timed."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import frostnet
from common.errors import UserError
from latency_lut.machine import FINGERPRINT
from latency_lut.sections import CALL, parts
from latency_lut.timing import Timing
from nas import Bottleneck, cost, frostnet_space
from tests.latency_lut.tables import CALL_MS, OTHERWISE, SECTION, SPACE, made_up, random_arch
from tests.strategies import examples


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    table = made_up(tmp_path_factory.mktemp("lut") / "fbgemm.json")
    table.save()
    return table


# ---- look-ups ----------------------------------------------------------------------------------------------


@examples(20)
@given(seed=st.integers(0, 10**6))
def test_a_prediction_is_the_ratio_times_the_sum_of_the_parts(table, seed):
    arch = random_arch(seed)
    prediction = table.predict(arch)
    raw = sum(row.macs / 1e6 + 0.01 for row in cost(arch).rows) - (len(cost(arch).rows) - 1) * CALL_MS
    assert prediction.latency_ms == pytest.approx(1.25 * raw)
    assert list(prediction.rows) == [row.name for row in cost(arch).rows]
    assert sum(prediction.rows.values()) == pytest.approx(prediction.latency_ms)


@examples(20)
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


@examples(20)
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


@pytest.mark.parametrize("field, value", OTHERWISE.items())
def test_every_other_part_of_the_identity_is_refused_with_both_values(table, field, value):
    other = replace(table, meta={**table.meta, field: value})
    shown = " ".join(value) if isinstance(value, list) else str(value)
    with pytest.raises(UserError) as error:
        other.check()
    assert f"{field}: the table was measured with {shown}, wanted is " in str(error.value)
    assert "python -m latency_lut --engine fbgemm --output" in str(error.value)  # the command that fixes it


def test_the_identity_is_covered_by_these_tests():
    assert set(FINGERPRINT) == {"engine", "threads", *OTHERWISE}


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
    assert held.advice.add_sizes((96,)).startswith(
        f"python -m latency_lut --engine fbgemm --output {table.path} --width 0.5 --input-size 96 --num-classes 10 &&"
    )
