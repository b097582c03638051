"""predict: a network by a table, part by part."""

from dataclasses import replace

import pytest

from latency_lut.__main__ import main
from tests.latency_lut.tables import SECTION, random_arch


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
    other = replace(tables[0].sections[SECTION], space="other", ratio=2.5)
    both = replace(tables[0].with_section(other), path=tmp_path / "both.json")
    both.save()
    words = ["predict", "--lut", str(both.path), "--arch", "frostnet_small_0_5", "--input-size", "32"]
    first = main(words)
    said = capsys.readouterr().out
    assert (
        f"section {SECTION}" in said
        and f"({SECTION} 1.250, other_0.5_32 2.500); --space and --width choose one" in said
    )
    second = main([*words, "--space", "other", "--width", "0.5"])
    said = capsys.readouterr().out
    assert "section other_0.5_32" in said and "several" not in said
    assert second.latency_ms == pytest.approx(2 * first.latency_ms)
    with pytest.raises(SystemExit):
        main([*words, "--width", "0.75"])
    assert (
        f"width 0.75: frostnet_small_0_5 is in none of it in {both.path}; its blocks are in {SECTION}"
        in capsys.readouterr().err
    )
