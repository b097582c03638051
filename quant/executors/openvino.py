"""OpenVINO's integer kernels. The package is optional, and imported when a session is opened."""

from typing import final

import numpy as np
import torch

from quant.executors.sessions import Session, SessionExecutor


@final
class OpenVino(SessionExecutor):
    """The executor of engine "openvino"."""

    @staticmethod
    def session(model: bytes) -> Session:
        import openvino

        core = openvino.Core()
        config = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = core.compile_model(core.read_model(model, b""), "CPU", config).create_infer_request()

        def run(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
            return tuple(np.array(value) for value in request.infer(list(arrays), share_inputs=True).values())

        return run
