"""The file formats of INT8 networks, one row each: ONNX for any runtime, and the frozen form of each engine."""

from dataclasses import dataclass

from quant.engines import ENGINES


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        engine: that the network is converted for, and that it is checked on.
        file_name: of a run's network in this format.
    """

    engine: str
    file_name: str


FORMATS = {"onnx": Format("onnxruntime", "int8.onnx")} | {
    name: Format(name, f"int8_{name}.{'onnx' if engine.session else 'pt'}")
    for name, engine in ENGINES.items()
    if not engine.oracle
}
