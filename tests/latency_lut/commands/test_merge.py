"""merge: what several tables hold keeps the rounds of all, in any order."""

from dataclasses import replace

import pytest

from common.errors import UserError
from latency_lut import LatencyTable
from latency_lut.__main__ import main
from latency_lut.commands.merge import joined_rounds, merge
from latency_lut.machine import FINGERPRINT
from latency_lut.sections import CALL
from latency_lut.timing import Timing
from nas import frostnet_space
from tests.latency_lut.tables import OTHERWISE, SECTION, made_up, random_arch

KEY_48 = "frostnet_0.5_48"


def test_a_merged_table_predicts_what_both_did(tables, tmp_path):
    main(["merge", "--lut", *(str(t.path) for t in tables), "--output", str(tmp_path / "both.json")])
    both = LatencyTable.load(tmp_path / "both.json")
    assert set(both.sections) == {SECTION, KEY_48} and set(both.entries) == {*tables[0].entries, *tables[1].entries}
    for table, arch in ((tables[0], random_arch(1)), (tables[1], random_arch(1).for_input(48))):
        assert both.predict(arch).latency_ms == pytest.approx(table.predict(arch).latency_ms)


def test_what_both_hold_keeps_the_rounds_of_both_and_is_calibrated_anew(tables, tmp_path):
    first = tables[0]
    quicker = replace(
        first, entries={key: Timing(tuple(0.8 * r for r in t.rounds)) for key, t in first.entries.items()}
    )
    both = merge([first, quicker], tmp_path / "both.json")
    key = next(key for key in first.entries if key != CALL)
    assert sorted(both.entries[key].rounds) == sorted(first.entries[key].rounds + quicker.entries[key].rounds)
    assert both.sections[SECTION].ratio == pytest.approx(
        1.25 / 0.8
    )  # networks took as long as before, their blocks less
    assert both.sections[SECTION].validated.figures["mape"] == pytest.approx(0, abs=1e-6)


def slower(table, factor=1.1):
    """The table of an hour in which everything took longer."""

    def longer(networks):
        return {name: replace(n, timing=scaled(n.timing)) for name, n in networks.items()}

    def scaled(timing):
        return Timing(tuple(round(factor * ms, 9) for ms in timing.rounds))

    table = replace(table, entries={key: scaled(timing) for key, timing in table.entries.items()})
    for s in table.sections.values():
        table = table.with_section(
            replace(
                s, networks=longer(s.networks), validated=replace(s.validated, networks=longer(s.validated.networks))
            )
        )
    return table


def measurements(table, key=SECTION):
    """What must not depend on the order of the files: ratio, figures, entries, networks."""
    section = table.sections[key]
    validated = section.validated and (section.validated.figures, section.validated.networks)
    return section.ratio, section.validation, section.networks, validated, table.entries, table.meta


def test_networks_that_both_timed_keep_the_rounds_of_both_in_any_order(tables, tmp_path):
    """A table in which all took a tenth longer adds only rounds: quicker networks and parts go together."""
    pair = [tables[0], slower(tables[0])]
    ab, ba = (merge(order, tmp_path / "both.json") for order in (pair, pair[::-1]))
    assert measurements(ab) == measurements(ba)
    assert ab.sections[SECTION].ratio == pytest.approx(tables[0].sections[SECTION].ratio)
    own, joined = tables[0].sections[SECTION].networks, ab.sections[SECTION].networks
    assert {name: n.parts for name, n in own.items()} == {name: n.parts for name, n in joined.items()}
    assert all(len(n.timing.rounds) == 6 for n in joined.values())


def test_networks_that_one_alone_timed_stand_beside_the_others(tables, tmp_path):
    section = tables[0].sections[SECTION]
    names = list(section.networks)

    def with_networks(table, kept, fresh):
        s = table.sections[SECTION]
        networks = {name: s.networks[name] for name in kept}
        return table.with_section(
            replace(s, networks=networks, validated=replace(s.validated, networks={n: s.networks[n] for n in fresh}))
        )

    a = with_networks(tables[0], names[:5], names[7:])
    b = with_networks(slower(tables[0]), names[3:8], names[8:])  # its eighth calibrates here what was fresh there
    ab, ba = (merge(order, tmp_path / "both.json") for order in ([a, b], [b, a]))
    assert measurements(ab) == measurements(ba)
    joined = ab.sections[SECTION]
    rounds = {n.parts: len(n.timing.rounds) for n in joined.networks.values()}
    assert [rounds[section.networks[name].parts] for name in names[:8]] == [3, 3, 3, 6, 6, 3, 3, 3]
    assert list(joined.networks) == [f"random_{i:02}" for i in range(8)]
    sums = [sum(ab.entries[key].ms for key in n.parts) for n in joined.networks.values()]
    assert sums == sorted(sums)
    assert [n.parts for n in joined.validated.networks.values()] == [section.networks[names[8]].parts]
    assert joined.validated.figures["networks"] == 1


@pytest.mark.parametrize("flip", [1, -1])
def test_an_interrupted_section_adds_rounds_and_no_networks(tables, tmp_path, flip):
    other = slower(tables[0])
    section = replace(other.sections[SECTION], ratio=None, validation=None, fitted_on=(), validated=None)
    names = list(section.networks)
    networks = {**section.networks, names[-1]: replace(section.networks[names[-1]], timing=None)}
    networks["further"] = replace(
        networks[names[0]], parts=networks[names[0]].parts[:-2] + networks[names[0]].parts[-1:]
    )
    pair = [tables[0], other.with_section(replace(section, networks=networks))][::flip]
    joined = merge(pair, tmp_path / "both.json").sections[SECTION]
    assert joined.complete and list(joined.networks) == names
    assert [len(n.timing.rounds) for n in joined.networks.values()] == [6] * (len(names) - 1) + [3]


def test_an_interrupted_section_can_be_gone_on_with_after_a_merge(tables, tmp_path):
    """Its networks are found again by name, number and seed: none is renamed and none comes from elsewhere."""
    blank = {"ratio": None, "validation": None, "fitted_on": (), "validated": None}
    one, two = (
        table.with_section(replace(table.sections[SECTION], **blank)) for table in (tables[0], slower(tables[0]))
    )
    fewer = dict(list(two.sections[SECTION].networks.items())[1:])
    joined = merge(
        [two.with_section(replace(two.sections[SECTION], networks=fewer, seed=5)), one], tmp_path / "both.json"
    ).sections[SECTION]
    assert not joined.complete and joined.seed == 0
    assert {name: n.parts for name, n in joined.networks.items()} == {
        name: n.parts for name, n in one.sections[SECTION].networks.items()
    }


def test_a_file_under_two_names_is_not_counted_twice(tables, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tables[0].path.parent)
    (tmp_path / "link.json").symlink_to(tables[0].path)
    for again in (f"./{tables[0].path.name}", str(tmp_path / "link.json")):
        with pytest.raises(SystemExit) as refused:
            main(["merge", "--lut", tables[0].path.name, again, "--output", str(tmp_path / "both.json")])
        assert refused.value.code == 2 and "names a file twice" in capsys.readouterr().err


def test_a_copy_and_what_a_table_was_merged_from_are_refused(tables, tmp_path):
    copy = replace(tables[0], path=tmp_path / "copy.json")
    both = merge([tables[0], slower(tables[0])], tmp_path / "both.json")
    for pair in ([tables[0], copy], [tables[0], both], [both, tables[0]]):
        with pytest.raises(UserError, match=r"holds every measurement of \S+ already"):
            merge(pair, tmp_path / "out.json")


def test_copies_that_were_added_to_apart_count_what_they_share_once(tables, tmp_path):
    first, other = (
        merge([tables[0], made_up(tmp_path / "x.json", frostnet_space(0.5, size, 10))], tmp_path / "y.json")
        for size in (48, 64)
    )
    joined = merge([first, other], tmp_path / "both.json")
    assert set(joined.sections) == {SECTION, KEY_48, "frostnet_0.5_64"}
    assert all(len(timing.rounds) == 3 for timing in joined.entries.values())
    assert joined.sections[SECTION].networks == tables[0].sections[SECTION].networks


@pytest.mark.parametrize("field, value", {"engine": "qnnpack", "threads": 2, **OTHERWISE}.items())
def test_tables_of_unlike_identity_are_not_merged(tables, tmp_path, field, value):
    other = replace(tables[1], meta={**tables[1].meta, field: value})
    with pytest.raises(UserError) as error:
        merge([tables[0], other], tmp_path / "both.json")
    assert (
        str(error.value).startswith(f"{field}: ")
        and str(tables[0].meta[field]) in str(error.value)
        and str(value) in str(error.value)
    )
    assert "measure one of them anew" in str(error.value)


def test_every_part_of_the_identity_was_tried():
    assert set(FINGERPRINT) == {"engine", "threads", *OTHERWISE}


def test_unlike_spaces_of_one_name_are_not_merged(tables, tmp_path):
    other = slower(tables[0]).with_section(replace(slower(tables[0]).sections[SECTION], hash="0" * 64))
    with pytest.raises(UserError, match=f"sections.{SECTION}.hash: .*unlike spaces"):
        merge([tables[0], other], tmp_path / "both.json")


def test_merge_does_not_write_over_a_third_file(tables, tmp_path, capsys):
    (tmp_path / "dear.json").write_text("{}")
    for words in (
        ["--lut", *(str(t.path) for t in tables), "--output", str(tmp_path / "dear.json")],
        ["--lut", "a.json", "--output", "b"],
    ):
        with pytest.raises(SystemExit) as refused:
            main(["merge", *words])
        assert refused.value.code == 2
    assert (tmp_path / "dear.json").read_text() == "{}" and "output: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "several", [[(1.0, 2.0), (9.0, 1.0, 2.0)], [(9.0, 1.0, 2.0), (1.0, 2.0)], [(9.0, 1.0, 2.0)] * 2]
)
def test_rounds_that_are_a_run_of_others_count_once(several):
    assert joined_rounds(several) == (9.0, 1.0, 2.0)
    assert joined_rounds([*several, (2.0, 9.0)]) == (9.0, 1.0, 2.0, 2.0, 9.0)
