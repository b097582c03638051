"""The words show, merge, diff and predict, on made-up tables."""

from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from common.cli import parse
from common.errors import UserError
from latency_lut import LatencyTable
from latency_lut.__main__ import WORDS, Config, main
from latency_lut.commands.diff import diff
from latency_lut.commands.merge import merge
from latency_lut.commands.show import Grid, label, space_of
from latency_lut.identity import CALL, IDENTITY, parts
from latency_lut.joining import joined_rounds
from latency_lut.restart import without
from latency_lut.timing import Timing
from nas import BlockSpec, frostnet_space
from tests.latency_lut.test_table import OTHERWISE, SPACE, made_up, random_arch

KEY, KEY_48 = "frostnet_0.5_32", "frostnet_0.5_48"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Tables of 32 px and of 48 px, on disk."""
    folder = tmp_path_factory.mktemp("lut")
    tables = made_up(folder / "small.json"), made_up(folder / "large.json", frostnet_space(0.5, 48, 10), ratio=1.5)
    for table in tables:
        table.save()
    return tables


# ---- the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", WORDS)
def test_every_word_has_help(word, capsys):
    with pytest.raises(SystemExit) as left:
        main([word, "--help"])
    assert left.value.code == 0 and f"latency_lut {word}" in capsys.readouterr().out


@pytest.mark.parametrize("word", [[], ["build"]])
def test_build_is_what_no_word_means(word, tables, capsys):
    # complete already
    main([*word, "--engine", "fbgemm", "--output", str(tables[0].path), "--width", "0.5", "--input-size", "32"])
    assert KEY in capsys.readouterr().out


@pytest.mark.parametrize("word", ["show", "predict", "validate"])
def test_a_table_that_is_missing_names_the_command_that_makes_it(word, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        main(
            [
                word,
                "--lut",
                str(tmp_path / "none.json"),
                *(["--arch", "frostnet_small_0_5"] if word == "predict" else []),
            ]
        )
    assert refused.value.code == 2 and "python -m latency_lut --engine fbgemm" in capsys.readouterr().err


def test_the_command_that_mends_is_one_that_can_be_typed(tables):
    """A unit round trip: the command in an error parses to the very space, engine, threads and batch that were
    missing.
    """
    import shlex

    other = replace(tables[0], meta={**tables[0].meta, "threads": 2, "batch": 4})
    words = shlex.split(other.command_for(frostnet_space(0.75, 96, 7)))
    assert words[:3] == ["python", "-m", "latency_lut"]
    config = parse(Config, words[3:], "latency_lut", "")
    assert (config.width, config.input_size, config.class_counts(96), config.threads, config.batch) == (
        0.75,
        (96,),
        (7,),
        2,
        4,
    )
    assert config.output == str(tables[0].path)


# ---- show --------------------------------------------------------------------------------------------------


def test_the_grid_holds_every_candidate_of_every_slot(tables):
    table = tables[0]
    grid, latency = Grid(table, SPACE), table.for_space(SPACE)
    assert grid.ms.shape == (sum(len(s.slots) for s in SPACE.stages), len(grid.columns))
    assert np.nansum(grid.ms) == pytest.approx(sum(ms for stage in latency.blocks for slot in stage for ms in slot))
    assert np.isfinite(grid.ms).sum() == sum(len(slot.candidates) for stage in SPACE.stages for slot in stage.slots)
    slot = SPACE.stages[2].slots[1]
    row = grid.ms[grid.rows.index("2.1 24-24@8")]
    assert [row[grid.columns.index(label(spec))] for spec in slot.candidates] == pytest.approx(
        list(latency.blocks[2][1])
    )


def test_candidates_of_a_slot_have_unlike_labels():
    specs = [
        BlockSpec(op, k, 40, 40, 1, 3, 4, act)
        for op in ("frost", "se")
        for k in (3, 5)
        for act in ("relu", "hard_swish")
    ]
    assert len({label(spec) for spec in specs}) == 8


def test_show_prints_and_draws(tables, tmp_path, capsys):
    main(["show", "--lut", str(tables[0].path), "--picture", str(tmp_path / "lut.png")])
    said = capsys.readouterr().out
    assert KEY in said and "frost k5 e6 r2" in said and "fresh networks" in said
    picture = matplotlib.image.imread(tmp_path / "lut.png")
    assert min(picture.shape[:2]) > 300 and picture.std() > 0.05


def test_show_takes_tables_of_other_machines_and_flags_odd_pairs(tables, tmp_path, capsys):
    odd = next(key for key in tables[0].entries if "_k5_e6" in key)
    other = replace(
        tables[0], entries={**tables[0].entries, odd: Timing((0.0101, 0.0101, 0.0101))}, path=tmp_path / "other.json"
    )
    replace(other, meta={**other.meta, "cpu": "Other", "flags": []}).save()
    main(["show", "--lut", str(other.path)])
    said = capsys.readouterr().out
    assert "Other" in said and f"note: {odd} takes 0.0101 ms, less than {odd.replace('_e6', '_e3')}" in said


def test_a_tables_own_space_is_found_again(tables):
    assert space_of(tables[1], KEY_48) == frostnet_space(0.5, 48, 10)


# ---- merge -------------------------------------------------------------------------------------------------


def test_a_merged_table_predicts_what_both_did(tables, tmp_path):
    main(["merge", "--lut", *(str(t.path) for t in tables), "--output", str(tmp_path / "both.json")])
    both = LatencyTable.load(tmp_path / "both.json")
    assert set(both.sections) == {KEY, KEY_48} and set(both.entries) == {*tables[0].entries, *tables[1].entries}
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
    assert both.sections[KEY].ratio == pytest.approx(1.25 / 0.8)  # networks took as long as before, their blocks less
    assert both.sections[KEY].validated.figures["mape"] == pytest.approx(0, abs=1e-6)


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


def measurements(table, key=KEY):
    """What must not depend on the order of the files: ratio, figures, entries, networks."""
    section = table.sections[key]
    validated = section.validated and (section.validated.figures, section.validated.networks)
    return section.ratio, section.validation, section.networks, validated, table.entries, table.meta


def test_networks_that_both_timed_keep_the_rounds_of_both_in_any_order(tables, tmp_path):
    """An hour in which all took a tenth longer adds nothing but rounds: the quicker networks and the quicker parts go
    together.
    """
    pair = [tables[0], slower(tables[0])]
    ab, ba = (merge(order, tmp_path / "both.json") for order in (pair, pair[::-1]))
    assert measurements(ab) == measurements(ba)
    assert ab.sections[KEY].ratio == pytest.approx(tables[0].sections[KEY].ratio)
    own, joined = tables[0].sections[KEY].networks, ab.sections[KEY].networks
    assert {name: n.parts for name, n in own.items()} == {name: n.parts for name, n in joined.items()}
    assert all(len(n.timing.rounds) == 6 for n in joined.values())


def test_networks_that_one_alone_timed_stand_beside_the_others(tables, tmp_path):
    section = tables[0].sections[KEY]
    names = list(section.networks)

    def with_networks(table, kept, fresh):
        s = table.sections[KEY]
        networks = {name: s.networks[name] for name in kept}
        return table.with_section(
            replace(s, networks=networks, validated=replace(s.validated, networks={n: s.networks[n] for n in fresh}))
        )

    a = with_networks(tables[0], names[:5], names[7:])
    b = with_networks(slower(tables[0]), names[3:8], names[8:])  # its eighth calibrates here what was fresh there
    ab, ba = (merge(order, tmp_path / "both.json") for order in ([a, b], [b, a]))
    assert measurements(ab) == measurements(ba)
    joined = ab.sections[KEY]
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
    section = replace(other.sections[KEY], ratio=None, validation=None, fitted_on=(), validated=None)
    names = list(section.networks)
    networks = {**section.networks, names[-1]: replace(section.networks[names[-1]], timing=None)}
    networks["further"] = replace(
        networks[names[0]], parts=networks[names[0]].parts[:-2] + networks[names[0]].parts[-1:]
    )
    pair = [tables[0], other.with_section(replace(section, networks=networks))][::flip]
    joined = merge(pair, tmp_path / "both.json").sections[KEY]
    assert joined.complete and list(joined.networks) == names
    assert [len(n.timing.rounds) for n in joined.networks.values()] == [6] * (len(names) - 1) + [3]


def test_an_interrupted_section_can_be_gone_on_with_after_a_merge(tables, tmp_path):
    """Its networks are found again by name, number and seed: none is renamed and none comes from elsewhere."""
    blank = {"ratio": None, "validation": None, "fitted_on": (), "validated": None}
    one, two = (table.with_section(replace(table.sections[KEY], **blank)) for table in (tables[0], slower(tables[0])))
    fewer = dict(list(two.sections[KEY].networks.items())[1:])
    joined = merge(
        [two.with_section(replace(two.sections[KEY], networks=fewer, seed=5)), one], tmp_path / "both.json"
    ).sections[KEY]
    assert not joined.complete and joined.seed == 0
    assert {name: n.parts for name, n in joined.networks.items()} == {
        name: n.parts for name, n in one.sections[KEY].networks.items()
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
    assert set(joined.sections) == {KEY, KEY_48, "frostnet_0.5_64"}
    assert all(len(timing.rounds) == 3 for timing in joined.entries.values())
    assert joined.sections[KEY].networks == tables[0].sections[KEY].networks


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
    assert set(IDENTITY) == {"engine", "threads", *OTHERWISE}


def test_unlike_spaces_of_one_name_are_not_merged(tables, tmp_path):
    other = slower(tables[0]).with_section(replace(slower(tables[0]).sections[KEY], hash="0" * 64))
    with pytest.raises(UserError, match=f"sections.{KEY}.hash: .*unlike spaces"):
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


# ---- restart -----------------------------------------------------------------------------------------------


def test_what_a_section_shares_with_one_that_stays_is_kept(tables):
    """A second space of fewer blocks: of the first only what it alone rests on is forgotten."""
    table, section = tables[0], tables[0].sections[KEY]
    some = dict(list(section.networks.items())[:1])
    other = replace(section, space="other", networks=some, parts=some["random_00"].parts[:-1], validated=None)
    both = table.with_section(other)
    left = without(both, [KEY], replace(table, entries={}, sections={}))
    assert left.sections == {other.key: other} and left.entries.keys() == {CALL, *other.needed()}
    assert left.entries.keys() < both.entries.keys()
    assert without(both, [other.key], table).entries == both.entries  # the first needs all of it


# ---- diff --------------------------------------------------------------------------------------------------


def test_a_cpu_twice_as_slow_with_one_odd_part(tables):
    first = tables[0]
    keys = [key for key in first.entries if key != CALL]
    slower = {key: Timing(tuple(2 * r for r in t.rounds)) for key, t in first.entries.items()}
    slower[keys[0]] = Timing(tuple(10 * r for r in first.entries[keys[0]].rounds))
    difference = diff(first, replace(first, entries=slower))
    assert difference.quantile(0.5) == pytest.approx(2) and list(difference.ratios)[-1] == keys[0]
    assert difference.ratios[keys[0]] == pytest.approx(10) and 0.9 < difference.spearman <= 1
    assert (difference.only_first, difference.only_second, len(difference.ratios)) == (0, 0, len(keys))


def test_a_table_does_not_differ_from_itself(tables):
    difference = diff(tables[0], tables[0])
    assert set(difference.ratios.values()) == {1.0} and difference.spearman == pytest.approx(1)


def test_the_command_compares_tables_of_two_machines(tables, tmp_path, capsys):
    other = replace(tables[0], meta={**tables[0].meta, "cpu": "Other", "threads": 4}, path=tmp_path / "other.json")
    other.save()
    main(["diff", "--lut", str(tables[0].path), str(other.path), "--top", "2"])
    said = capsys.readouterr().out
    assert (
        "/ Other" in said
        and "threads: 1 / 4" in said
        and "50% 1.000" in said
        and said.count(" ms\n") + said.endswith(" ms") >= 3
    )


def test_tables_without_a_common_part_are_refused(tables):
    with pytest.raises(UserError, match="no part in common"):
        diff(tables[0], replace(tables[0], entries={CALL: tables[0].entries[CALL]}))


# ---- predict -----------------------------------------------------------------------------------------------


def test_predict_prints_every_part_and_the_total(tables, capsys):
    words = ["--lut", str(tables[0].path), "--arch", "frostnet_small_0_5", "--input-size", "32", "--num-classes", "10"]
    prediction = main(["predict", *words])
    lines = capsys.readouterr().out.splitlines()
    assert f"{prediction.latency_ms:.4f} ms" in lines[-1] and lines[-1].startswith("total")
    assert [line.split()[0] for line in lines[1:-1]] == list(prediction.rows)


def test_predict_takes_a_file_and_says_when_the_table_is_of_another_machine(tables, tmp_path, capsys):
    random_arch(1).save(tmp_path / "net.json")
    other = replace(tables[0], meta={**tables[0].meta, "cpu": "Other"}, path=tmp_path / "other.json")
    other.save()
    prediction = main(["predict", "--lut", str(other.path), "--arch", str(tmp_path / "net.json")])
    assert prediction == tables[0].predict(random_arch(1)) and "not the machine of the table" in capsys.readouterr().out


def test_predict_names_the_command_for_what_was_not_measured(tables, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["predict", "--lut", str(tables[0].path), "--arch", "frostnet_small_0_5"])
    assert refused.value.code == 2 and "--input-size 224 --num-classes 1000" in capsys.readouterr().err


def test_predict_takes_the_classes_of_the_section_for_a_published_name(tables, tmp_path, capsys):
    prediction = main(["predict", "--lut", str(tables[0].path), "--arch", "frostnet_small_0_5", "--input-size", "32"])
    assert "10 classes" in capsys.readouterr().out and prediction.latency_ms > 0
    random_arch(1).with_classes(7).save(tmp_path / "net.json")
    with pytest.raises(SystemExit):  # a network of one's own has the classes that it has
        main(["predict", "--lut", str(tables[0].path), "--arch", str(tmp_path / "net.json")])
    assert "--num-classes 7" in capsys.readouterr().err


def test_predict_names_its_section_and_the_others_that_fit(tables, tmp_path, capsys):
    other = replace(tables[0].sections[KEY], space="other", ratio=2.5)
    both = replace(tables[0].with_section(other), path=tmp_path / "both.json")
    both.save()
    words = ["predict", "--lut", str(both.path), "--arch", "frostnet_small_0_5", "--input-size", "32"]
    first = main(words)
    said = capsys.readouterr().out
    assert f"section {KEY}" in said and f"({KEY} 1.250, other_0.5_32 2.500); --space and --width choose one" in said
    second = main([*words, "--space", "other", "--width", "0.5"])
    said = capsys.readouterr().out
    assert "section other_0.5_32" in said and "several" not in said
    assert second.latency_ms == pytest.approx(2 * first.latency_ms)
    with pytest.raises(SystemExit):
        main([*words, "--width", "0.75"])
    assert (
        f"width 0.75: frostnet_small_0_5 is in none of it in {both.path}; its blocks are in {KEY}"
        in capsys.readouterr().err
    )


def test_parts_name_the_stem_first(tables):
    assert list(parts(random_arch(1)))[0] == "stem"  # LatencyTable.sum_up takes its call to be the network's
