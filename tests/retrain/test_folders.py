"""Folders of runs: a run goes on only with the settings that it began with."""

import json

from common.runs import Run
from retrain import main
from tests.retrain.runs import arguments, refused, tiny, zoo_arguments


def test_a_run_is_not_mixed_with_another(folder, tmp_path, quick, capsys):
    path = main(arguments(folder, tmp_path, epochs=1))
    before = (path / "checkpoint.pt").read_bytes()
    message = refused(capsys, arguments(folder, tmp_path, "--seed", "3", "--weight-decay", "0.1", epochs=1))
    assert (
        "seed: 0 then, 3 now" in message and "weight_decay: 4e-05 then, 0.1 now" in message and "epochs" not in message
    )
    tiny(24).with_name("tiny").save(tmp_path / "other.json")
    argv = arguments(folder, tmp_path, epochs=1)
    (tmp_path / "kept.json").write_bytes((folder / "tiny.json").read_bytes())
    try:
        (folder / "tiny.json").write_bytes((tmp_path / "other.json").read_bytes())
        assert "has changed since" in refused(capsys, argv)
    finally:
        (folder / "tiny.json").write_bytes((tmp_path / "kept.json").read_bytes())
    assert (path / "checkpoint.pt").read_bytes() == before
    main(arguments(folder, tmp_path, "--seed", "3", "--restart", epochs=1))
    assert json.loads((path / "config.json").read_text())["seed"] == 3


def test_the_folder_of_a_search_is_left_alone(folder, tmp_path, quick, capsys):
    search = Run(tmp_path / "frostnet_a")
    search.write_json("config.json", {"latency_lut": "fbgemm.json"})
    tiny(16).save(search.path / "arch.json")
    argv = arguments(folder, tmp_path, "--name", "frostnet_a", "--restart")
    assert "holds a run of another program" in refused(capsys, argv) and search.has("arch.json")


def test_a_broken_checkpoint_is_refused_and_restart_mends_it(folder, tmp_path, quick, capsys):
    path = main(arguments(folder, tmp_path, epochs=1))
    (path / "checkpoint.pt").write_bytes((path / "checkpoint.pt").read_bytes()[:1000])
    assert "not a whole checkpoint" in refused(capsys, arguments(folder, tmp_path, epochs=1))
    main(arguments(folder, tmp_path, "--restart", epochs=1))


def test_a_run_does_not_go_on_with_other_classes_or_another_kind_of_weights(
    folder, tmp_path, quick, monkeypatch, capsys
):
    path = main(zoo_arguments(folder, tmp_path, epochs=1))
    network = json.loads((path / "network.json").read_text())
    (path / "network.json").write_text(json.dumps(network | {"classes": ["a", "b"]}))
    assert "arch: resnet20 has changed since" in refused(capsys, zoo_arguments(folder, tmp_path, epochs=1))
    (path / "network.json").write_text(json.dumps(network | {"weight_qmax": 127}))
    assert "takes weights of another range" in refused(capsys, zoo_arguments(folder, tmp_path, epochs=1))
