"""LitServe (it reads annotations as they are, so they stay values here): one API process and one worker, the queue that is quicker (zmq), answers made once by orjson where it is there."""

import base64
import json
from typing import Any

import litserve
import numpy as np
from served import BATCH, DELAY_S, SETTINGS, inputs_of, session, split
from starlette.requests import Request
from starlette.responses import Response


class Served(litserve.LitAPI):
    """Echo or session; a body is `{"inputs": [{"data": […]}]}`, or `{"blob": base64}` for a model's raw inputs."""

    def setup(self, device: Any) -> None:  # noqa: ARG002
        """See LitServe."""
        self._session: Any = session()
        self._inputs = inputs_of(self._session) if self._session else []

    def decode_request(self, request: Request, **_: Any) -> Any:
        """See LitServe."""
        if self._session is None:
            return np.asarray(request["inputs"][0]["data"], dtype=np.float32)
        return split(base64.b64decode(request["blob"]), self._inputs)

    def predict(self, x: Any, **_: Any) -> Any:
        """See LitServe."""
        return x if self._session is None else self._session.run(None, x)[0]

    def encode_response(self, output: Any, **_: Any) -> Response:
        """See LitServe."""
        rows = {
            "outputs": [{"name": "y", "datatype": "FP32", "shape": list(output.shape), "data": output.ravel().tolist()}]
        }
        return Response(json.dumps(rows), media_type="application/json")


class Batched(Served):
    """The same with batching."""

    def batch(self, inputs: Any) -> Any:
        """See LitServe."""
        return {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}

    def unbatch(self, output: Any) -> Any:
        """See LitServe."""
        return list(output)


if __name__ == "__main__":
    batching = {"max_batch_size": BATCH, "batch_timeout": DELAY_S} if BATCH > 1 else {}
    api = (Batched if batching else Served)(api_path="/infer", **batching)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60, fast_queue=True)
    server.run(
        host="127.0.0.1", port=SETTINGS["port"], num_api_servers=1, log_level="warning", generate_client_file=False,
        access_log=False,
    )  # fmt: skip
