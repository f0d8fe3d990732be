"""onnxruntime's CANN provider in the interpreter that holds it: see `loop`."""

from __future__ import annotations

import sys
from typing import Any

import numpy
import onnxruntime
from loop import Rejected, serve, soc_name

CANN = "CANNExecutionProvider"


class _Model:
    def __init__(self, request: Any) -> None:
        ort: Any = onnxruntime
        self._ort = ort
        if CANN not in ort.get_available_providers():
            raise RuntimeError(f"onnxruntime {ort.__version__} of {sys.executable} has no {CANN}")
        options = ort.SessionOptions()
        # Nodes without a kernel there would run on the CPU in silence.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [(CANN, request["options"])]
        self._session = ort.InferenceSession(request["model"], options, providers=providers)
        self._session.disable_fallback()
        active = self._session.get_providers()
        if active[:1] != [CANN]:
            raise RuntimeError(f"asked for {CANN}, the session runs on {active}")

    def facts(self) -> Any:
        inputs = [[item.name, item.type] for item in self._session.get_inputs()]
        outputs = [item.name for item in self._session.get_outputs()]
        return {"version": self._ort.__version__, "inputs": inputs, "outputs": outputs, "soc": soc_name()}

    def run(self, arrays: Any) -> Any:
        state: Any = self._ort.capi.onnxruntime_pybind11_state
        try:
            return [numpy.asarray(array) for array in self._session.run(None, arrays)]
        except state.InvalidArgument as error:
            raise Rejected(str(error)) from error


if __name__ == "__main__":
    serve(_Model)
