"""Building a table: small spaces really measured, interruptions and additions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import quant
from common.errors import UserError
from latency_lut import LatencyTable, build, fitting, prepare
from latency_lut.build import build_section, sample_networks
from latency_lut.fitting import refitted_since
from latency_lut.report import odd_pairs, table_text
from latency_lut.sections import CALL
from latency_lut.timing import Timing
from nas import cost, frostnet_space
from tests.latency_lut.small import ENGINE, small_space


@pytest.fixture
def table(tmp_path):
    return LatencyTable.new(ENGINE, 1, tmp_path / "lut.json")


# ---- the networks ------------------------------------------------------------------------------------------


def test_random_networks_span_the_range_of_the_space():
    space = frostnet_space(1.0, 32, 10)
    archs = sample_networks(space, 24, seed=0)
    macs = np.array([cost(arch).macs for arch in archs.values()])
    assert len(archs) == 24 and len({arch.blocks for arch in archs.values()}) == 24
    assert (np.diff(macs) >= 0).all() and macs[-1] > 2.5 * macs[0]
    steps = np.diff(np.log(macs))
    assert steps.max() < 6 * steps.mean()  # evenly spread, no crowd in the middle
    assert all(space.architecture(space.choice_of(arch), arch.name) == arch for arch in archs.values())


def test_the_same_seed_draws_the_same_networks():
    space = small_space()
    assert sample_networks(space, 6, 1) == sample_networks(space, 6, 1) != sample_networks(space, 6, 2)


def test_more_networks_than_the_space_holds_are_refused():
    lonely = replace(small_space(), stages=small_space().stages[:1], head=replace(small_space().head, in_channels=8))
    with pytest.raises(UserError, match="networks: 6, but only 1 different ones"):
        sample_networks(lonely, 6, 0)


# ---- what is timed -----------------------------------------------------------------------------------------


def test_parts_are_fed_quantized_channels_last_tensors_and_give_such():
    spec, size = next(value for key, value in small_space().specs().items() if key.startswith("frost"))
    call = prepare.part(spec, size, ENGINE)
    (codes,) = call.args
    with quant.use_engine(ENGINE), torch.inference_mode():
        out = call()
    assert codes.dtype == out.dtype == torch.quint8
    assert codes.shape == (1, spec.in_channels, size, size) and codes.is_contiguous(memory_format=torch.channels_last)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_networks_are_fed_float_pictures_and_give_logits():
    arch = next(iter(sample_networks(small_space(), 3, 0).values()))
    call = prepare.network(arch, ENGINE)
    (image,) = call.args
    assert image.shape == (1, 3, 16, 16) and image.dtype == torch.float32
    with quant.use_engine(ENGINE), torch.inference_mode():
        assert call().shape == (1, 10)


def test_a_small_space_is_really_measured(table):
    space = small_space()
    table = build_section(table, space, (10, 3), networks=6, rounds=3)
    again = LatencyTable.load(table.path)
    assert again == table and again.sections["frostnet_0.35_16"].complete
    assert set(again.entries) == {
        CALL,
        *space.specs(),
        *replace(space, head=replace(space.head, num_classes=3)).specs(),
    }
    arch = space.architecture(space.random(torch.Generator().manual_seed(3)))
    deeper = max(
        (space.architecture(space.random(torch.Generator().manual_seed(i))) for i in range(9)),
        key=lambda a: len(a.blocks),
    )
    assert 0 < again.predict(arch).latency_ms < 100
    assert len(again.for_space(space).blocks) == len(space.stages)
    assert again.predict(deeper).latency_ms > again.for_space(space).stem_ms
    assert again.sections["frostnet_0.35_16"].conditions[0]["seconds"] > 0


# ---- interruptions and additions ---------------------------------------------------------------------------


def test_what_was_measured_before_an_interruption_is_kept_and_not_measured_again(table, fakes, monkeypatch):
    visits = []

    def stop_after(count):
        def add(journal, name, ms):
            real_add(journal, name, ms)
            visits.append(name)
            if len(visits) == count:
                raise KeyboardInterrupt

        return add

    real_add = build.Journal.add
    monkeypatch.setattr(build.Journal, "add", stop_after(40))
    with pytest.raises(KeyboardInterrupt):
        build_section(table, small_space(), (10,), networks=6, rounds=4)
    stopped = LatencyTable.load(table.path)
    kept = sum(len(t.rounds) for t in stopped.entries.values())
    kept += sum(len(n.timing.rounds) for n in stopped.sections["frostnet_0.35_16"].networks.values() if n.timing)
    assert kept == 40 and not stopped.sections["frostnet_0.35_16"].complete

    monkeypatch.setattr(build.Journal, "add", real_add)
    finished = build_section(stopped, small_space(), (10,), networks=6, rounds=4)
    assert finished.sections["frostnet_0.35_16"].complete and len(finished.sections["frostnet_0.35_16"].conditions) == 2
    for key, timing in stopped.entries.items():
        assert finished.entries[key].rounds[: len(timing.rounds)] == timing.rounds


def test_the_file_is_saved_while_it_is_measured(table, fakes, monkeypatch):
    monkeypatch.setattr(build, "SAVE_SECONDS", 0.0)
    sizes = []
    real_add = build.Journal.add

    def add(self, name, ms):
        real_add(self, name, ms)
        sizes.append(sum(len(t.rounds) for t in LatencyTable.load(table.path).entries.values()))

    monkeypatch.setattr(build.Journal, "add", add)
    build_section(table, small_space(), (10,), networks=6, rounds=3)
    assert sizes == sorted(sizes) and sizes[0] <= 1 and sizes[-1] >= 3 * len(small_space().specs()) + 2


def test_another_number_of_networks_starts_them_afresh_and_keeps_the_blocks(table, fakes, monkeypatch):
    monkeypatch.setattr(build, "calibrated", lambda table, section: section)  # as if stopped just before the end
    stopped = build_section(table, small_space(), (10,), networks=6, rounds=3)
    monkeypatch.undo()
    fakes.clear()
    again = build.begun(stopped, small_space(), networks=9, seed=0)
    assert len(again.networks) == 9 and all(n.timing is None for n in again.networks.values())
    assert set(stopped.entries) == {CALL, *small_space().specs()}


def test_a_finished_section_is_left_alone(table, fakes):
    done = build_section(table, small_space(), (10,), networks=6, rounds=3)
    fakes.clear()
    assert build_section(done, small_space(), (10,), networks=6, rounds=3) == done
    assert fakes == []


def test_a_further_class_count_measures_that_head_only(table, fakes):
    done = build_section(table, small_space(), (10,), networks=6, rounds=3)
    fakes.clear()
    more = build_section(done, small_space(num_classes=100), (100,), networks=6, rounds=3)
    assert fakes == ["head_relu_24-32-100@4"]
    assert more.sections["frostnet_0.35_16"].num_classes == 10
    assert {k: v for k, v in more.entries.items() if k != fakes[0]} == done.entries
    assert more.for_space(small_space(num_classes=100)).head_ms > 0


def test_a_further_head_that_was_interrupted_is_measured_to_the_end(table, fakes):
    done = build_section(table, small_space(), (10,), networks=6, rounds=5)
    head = "head_relu_24-32-100@4"
    stopped = replace(done, entries={**done.entries, head: Timing((1.0, 1.0, 1.0))})
    fakes.clear()
    more = build_section(stopped, small_space(num_classes=100), (100,), networks=6, rounds=5)
    assert fakes == [head] and len(more.entries[head].rounds) >= 5
    fakes.clear()
    assert build_section(more, small_space(num_classes=100), (100,), networks=6, rounds=5) == more and fakes == []


def test_a_section_is_fitted_anew_where_another_space_measures_its_parts_quicker(table, fakes):
    """The second space measures all parts of the first again: ratio and figures follow, also if it stops midway."""
    done = build_section(table, small_space(), (10,), networks=6, rounds=3)
    slow = {key: Timing(tuple(100 * ms for ms in timing.rounds)) for key, timing in done.entries.items() if key != CALL}
    first = replace(done.sections["frostnet_0.35_16"], ratio=done.sections["frostnet_0.35_16"].ratio / 100)
    late = replace(done, entries={**done.entries, **slow}).with_section(first)
    other = replace(small_space(), name="other")
    both = build_section(late, other, (10,), networks=6, rounds=6)
    assert all(both.entries[key].ms < late.entries[key].ms / 10 for key in slow)
    assert both.sections["frostnet_0.35_16"].ratio == fitting.calibrated(both, first).ratio > 10 * first.ratio
    assert LatencyTable.load(table.path) == both

    untouched = refitted_since(late, late)
    assert untouched == late


def test_a_further_input_size_measures_only_what_is_new(table, fakes):
    done = build_section(table, small_space(16), (10,), networks=6, rounds=3)
    fakes.clear()
    more = build_section(done, small_space(24), (10,), networks=6, rounds=3)
    assert set(more.sections) == {"frostnet_0.35_16", "frostnet_0.35_24"}
    assert {key: more.entries[key] for key in done.entries} == done.entries


def test_a_changed_space_is_refused(table, fakes):
    done = build_section(table, small_space(), (10,), networks=6, rounds=3)
    changed = replace(small_space(), stem=replace(small_space().stem, kernel_size=5))
    with pytest.raises(UserError, match="hash: the space has changed since; add --restart"):
        build_section(done, changed, (10,), networks=6, rounds=3)


def test_networks_that_disagree_wildly_with_their_blocks_are_refused(table, fakes, monkeypatch):
    monkeypatch.setattr(prepare, "network", lambda arch, engine, batch: lambda: sum(range(300 * 20 * len(arch.blocks))))
    with pytest.raises(UserError, match="times the sum of their blocks, which cannot be true"):
        build_section(table, small_space(), (10,), networks=6, rounds=3)


# ---- report ------------------------------------------------------------------------------------------------


def test_the_report_has_a_line_for_every_section(table, fakes):
    done = build_section(table, small_space(), (10,), networks=6, rounds=3)
    lines = table_text(done).splitlines()
    assert ENGINE in lines[0] and "Spearman" in lines[1] and lines[2].startswith("frostnet_0.35_16")
    unfinished = done.with_section(replace(done.sections["frostnet_0.35_16"], ratio=None))
    assert table_text(unfinished).splitlines()[2].split()[4:] == ["-"] * 10


def test_a_larger_kernel_that_was_measured_faster_is_remarked(table):
    space = small_space()
    timings = {key: Timing((1.0, 1.0, 1.0)) for key in space.specs()}
    assert odd_pairs(replace(table, entries=timings), space) == []
    large = next(key for key in timings if "_k5_e3" in key)
    odd = odd_pairs(replace(table, entries={**timings, large: Timing((0.5, 0.5, 0.5))}), space)
    assert len(odd) == 1 and odd[0].startswith(f"{large} takes 0.5000 ms, less than {large.replace('_k5', '_k3')}")
