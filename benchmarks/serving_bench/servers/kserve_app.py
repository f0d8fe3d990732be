"""KServe's server: one process, access and latency log off. It has no batching of its own: the side-car that has it is no Python."""

from __future__ import annotations

import copy
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.logging import KSERVE_LOG_CONFIG, configure_logging
from kserve.utils.utils import generate_uuid
from served import SETTINGS, session


class Served(Model):
    """Echo or session."""

    def __init__(self) -> None:
        super().__init__(SETTINGS["name"])
        self._session: Any = session()
        self.ready = True

    async def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
        """See KServe."""
        if self._session is None:
            found = {"y": payload.inputs[0].as_numpy()}
        else:
            feed = {one.name: one.as_numpy() for one in payload.inputs}
            names = [node.name for node in self._session.get_outputs()]
            found = dict(zip(names, self._session.run(names, feed), strict=True))
        outputs = []
        for name, array in found.items():
            kind = {"float32": "FP32"}[str(array.dtype)]
            output = InferOutput(name=name, shape=list(array.shape), datatype=kind)
            output.set_data_from_numpy(array, binary_data=bool(payload.use_binary_outputs))
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or generate_uuid(), model_name=self.name, infer_outputs=outputs,
            use_binary_outputs=bool(payload.use_binary_outputs),
        )  # fmt: skip


if __name__ == "__main__":
    quiet = copy.deepcopy(KSERVE_LOG_CONFIG)
    quiet["loggers"]["uvicorn.access"]["level"] = "WARNING"
    configure_logging(quiet)
    ModelServer(
        http_port=SETTINGS["port"], grpc_port=SETTINGS["grpc_port"], workers=1, enable_latency_logging=False
    ).start([Served()])
