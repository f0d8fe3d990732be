"""A small client of the Open Inference Protocol, binary by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import httpx
import numpy as np
import numpy.typing as npt
import orjson

from orchestrator.core.errors import ServingError, Unreachable
from orchestrator.serving.protocol.tensors import ITEM_BYTES, Buffer, from_array, numpy_dtype, to_array

_LENGTH: Final = "Inference-Header-Content-Length"

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said.

    Attributes:
        outputs: By name.
        generation: Which generation computed it.
        bundle: That generation's bundle digest.
        device: Where it ran.
        id: The request's id, where it had one.
    """

    outputs: Mapping[str, Array]
    generation: int
    bundle: str
    device: str
    id: str | None


class OipClient:
    """Talks to one router.

    Args:
        url: `http://host:port`.
        timeout_s: Of each call.
        socket: The router's admin socket: it takes requests too, and whoever can open it needs neither token nor certificate.
    """

    def __init__(self, url: str, timeout_s: float = 30.0, *, socket: Path | str = "") -> None:
        self._url = url
        if socket:
            transport = httpx.HTTPTransport(uds=str(socket))
            self._client = httpx.Client(transport=transport, base_url="http://router", timeout=timeout_s)
        else:
            self._client = httpx.Client(base_url=url, timeout=timeout_s)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def infer(
        self,
        endpoint: str,
        inputs: Mapping[str, Array],
        *,
        generation: int | None = None,
        binary: bool = True,
        probe: bool = False,
        request_id: str | None = None,
    ) -> Answer:
        """Run one request.

        Args:
            endpoint: The endpoint's name.
            inputs: Arrays by input name.
            generation: Ask this one; None = by weight.
            binary: Raw tensors; False = JSON.
            probe: Count it as synthetic, apart from users; believed on the admin socket alone.
            request_id: Echoed.

        Raises:
            ServingError: The server refused; `details["status"]` holds the HTTP status.
            Unreachable: No answer.
        """
        body, headers = encode_request(inputs, binary=binary, request_id=request_id)
        if probe:
            headers["x-orchestrate-probe"] = "1"
        version = "" if generation is None else f"/versions/{generation}"
        response = self._send("POST", f"/v2/models/{endpoint}{version}/infer", body, headers)
        _raise_for(response)
        return decode_response(response.content, response.headers)

    def live(self) -> bool:
        """Whether the router answers."""
        return self._send("GET", "/v2/health/live").status_code == 200

    def ready(self, endpoint: str, generation: int | None = None) -> bool:
        """Whether requests find a replica."""
        version = "" if generation is None else f"/versions/{generation}"
        return self._send("GET", f"/v2/models/{endpoint}{version}/ready").status_code == 200

    def metadata(self, endpoint: str, generation: int | None = None) -> dict[str, Any]:
        """Return what the model takes and gives.

        Raises:
            ServingError: Unknown endpoint, or no replica has said so yet.
        """
        version = "" if generation is None else f"/versions/{generation}"
        response = self._send("GET", f"/v2/models/{endpoint}{version}")
        _raise_for(response)
        return cast("dict[str, Any]", response.json())

    def _send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        try:
            return self._client.request(method, path, content=body, headers=headers)
        except httpx.TransportError as error:
            raise Unreachable(f"no answer from {self._url}: {error}", hint="orchestrate site status") from error


def encode_request(
    inputs: Mapping[str, Array], *, binary: bool, request_id: str | None = None
) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of an infer request."""
    rows: list[dict[str, object]] = []
    blobs: list[Buffer] = []
    for name, array in inputs.items():
        tensor = from_array(name, array)
        row: dict[str, object] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            row["parameters"] = {"binary_data_size": len(tensor.data)}
            blobs.append(tensor.data)
        else:
            flat = tensor.array().reshape(-1).tolist()
            row["data"] = [item.decode() for item in flat] if tensor.datatype == "BYTES" else flat
        rows.append(row)
    head: dict[str, object] = {"inputs": rows, "parameters": {"binary_data_output": binary}}
    if request_id is not None:
        head["id"] = request_id
    text = orjson.dumps(head)
    if not binary:
        return text, {"content-type": "application/json"}
    return b"".join([text, *blobs]), {"content-type": "application/octet-stream", _LENGTH: str(len(text))}


def decode_response(body: bytes, headers: Mapping[str, str]) -> Answer:
    """Parse the answer to an infer request."""
    size = int(headers.get(_LENGTH, len(body)))
    head = orjson.loads(body[:size])
    blobs, place = memoryview(body), size
    outputs: dict[str, Array] = {}
    for row in head["outputs"]:
        blob_size = row.get("parameters", {}).get("binary_data_size")
        if blob_size is None:
            outputs[row["name"]] = _from_json(row)
        else:
            outputs[row["name"]] = to_array(row["datatype"], row["shape"], blobs[place : place + blob_size])
            place += blob_size
    return Answer(
        outputs,
        int(head["model_version"]),
        headers.get("x-orchestrate-bundle", ""),
        headers.get("x-orchestrate-device", ""),
        head.get("id"),
    )


def _from_json(row: Mapping[str, Any]) -> Array:
    if ITEM_BYTES[row["datatype"]] == 0:
        items = np.empty(len(row["data"]), dtype=object)
        items[:] = [item.encode() for item in row["data"]]
        return cast("Array", items.reshape(row["shape"]))
    return np.array(row["data"], dtype=numpy_dtype(row["datatype"])).reshape(row["shape"])


def _raise_for(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    try:
        message = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:500]
    raise ServingError(
        f"the server answered {response.status_code}: {message}", details={"status": response.status_code}
    )
