"""MLServer: its numpy codec, no worker processes (they cost more than they bring here), its adaptive batching for models."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from served import inputs_of, session


class Echo(MLModel):
    """y = x."""

    async def load(self) -> bool:
        """See MLServer."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """See MLServer."""
        x = NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", x)])


class Onnx(MLModel):
    """The session. An input of BYTES is the base64 of raw floats: the cheapest form that its HTTP takes."""

    async def load(self) -> bool:
        """See MLServer."""
        self._session: Any = session()
        self._inputs = {name: (shape, kind) for name, shape, kind in inputs_of(self._session)}
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """See MLServer."""
        feed = {}
        for one in payload.inputs:
            shape, kind = self._inputs[one.name]
            if one.datatype == "BYTES":
                blobs = [base64.b64decode(text) for text in one.data.root]
                feed[one.name] = np.frombuffer(b"".join(blobs), kind).reshape(-1, *shape)
            else:
                feed[one.name] = NumpyCodec.decode_input(one)
        names = [node.name for node in self._session.get_outputs()]
        found = self._session.run(names, feed)
        outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(names, found, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
