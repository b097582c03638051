"""retrain.py --calibrate: post-training quantization."""

from retrain import main
from tasks.ship import SHIPPED
from tests.retrain.runs import arguments, metrics, refused, results


def untrained(folder, runs, *more) -> list[str]:
    """From the weights of tiny_float, without the settings that only training takes notice of."""
    argv = [*arguments(folder, runs, *more), "--from-float", "tiny_float"]
    for flag in ("--epochs", "--lr"):
        del argv[argv.index(flag) : argv.index(flag) + 2]
    return argv


def test_calibrated_after_training_or_from_a_float_run_is_the_same(folder, tmp_path, quick):
    path = main(arguments(folder, tmp_path, "--calibrate", "percentile", "--calibration-images", "30", epochs=6))
    found = metrics(path)
    rows = {row["network"]: row for row in found["networks"]}
    assert path.name == "tiny_ptq" and (found["method"], found["calibrate"], found["boost"]) == (
        "ptq",
        "percentile",
        "off",
    )
    assert (found["epochs"], found["float_epochs"]) == (6, 6) and all((path / name).exists() for name in SHIPPED)
    assert list(rows) == ["float", "fake_quant", "int8"] and rows["int8"]["top1_test"] > 0.5
    again = main(arguments(folder, tmp_path, "--calibrate", "percentile", "--calibration-images", "30", epochs=6))
    assert results(again) == {k: v for k, v in found.items() if k != "file_bytes"}
    main(arguments(folder, tmp_path, "--float-only", epochs=6))
    argv = untrained(folder, tmp_path, "--calibrate", "percentile", "--calibration-images", "30")
    second = metrics(main([*argv, "--name", "later"]))
    assert second["epochs"] == 0 and second["networks"] == found["networks"]
    assert (tmp_path / "later" / "int8.onnx").read_bytes() == (path / "int8.onnx").read_bytes()


def test_calibration_is_not_mixed_with_another(folder, tmp_path, quick, capsys):
    main(arguments(folder, tmp_path, "--float-only", epochs=1))
    argv = untrained(folder, tmp_path)
    main([*argv, "--calibrate", "minmax"])
    assert "calibrate: 'minmax' then, 'mse' now" in refused(capsys, [*argv, "--calibrate", "mse"])


def test_settings_that_cannot_be_calibrated_are_named_before_training(folder, tmp_path, quick, capsys):
    (tmp_path / "settings.json").write_text('{"activation": "pact:4"}')
    message = refused(
        capsys, arguments(folder, tmp_path, "--calibrate", "mse", "--settings", str(tmp_path / "settings.json"))
    )
    assert "only int8 activations can be calibrated" in message and not (tmp_path / "tiny_ptq" / "log.jsonl").exists()
