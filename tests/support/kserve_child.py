"""KServe's two clients over every datatype; run by an interpreter that has `kserve`: `kserve_child.py HTTP_URL GRPC_ADDRESS`.

Prints one JSON object: for each client and datatype `same`, or what went wrong.
"""

import asyncio
import json
import sys

import httpx
import numpy as np
from grpc.aio import AioRpcError
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.inference_client import InferenceGRPCClient
from kserve.protocol.infer_type import RequestedOutput

VALUES = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 255, 7]], np.uint8),
    "UINT16": np.array([[0, 2**16 - 1, 7]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1, 7]], np.uint32),
    "UINT64": np.array([[2**53 + 1, 2**64 - 1, 0]], np.uint64),
    "INT8": np.array([[-128, 127, 0]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1, 0]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1, 0]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1, 2**53 + 1]], np.int64),
    "FP16": np.array([[0.5, -65504, 0.25]], np.float16),
    "FP32": np.array([[0.1, -3.4e38, 2.5]], np.float32),
    "FP64": np.array([[0.1, -1.7e308, 2.5]], np.float64),
    "BYTES": np.array([[b"", "größe".encode(), b"ab"]], object),
}


def request(datatype, binary, **options):
    tensor = InferInput(datatype.lower(), list(VALUES[datatype].shape), datatype)
    tensor.set_data_from_numpy(VALUES[datatype], binary_data=binary)
    return InferRequest(datatype.lower(), [tensor], **options)


def verdict(answer, datatype):
    found, sent = answer.outputs[0].as_numpy(), VALUES[datatype]
    if sent.dtype == object:
        items = [item.encode() if isinstance(item, str) else item for item in found.reshape(-1)]
        return "same" if items == list(sent.reshape(-1)) else f"{items}"
    return "same" if found.dtype == sent.dtype and np.array_equal(found.reshape(sent.shape), sent) else f"{found!r}"


async def rest(url, told):
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    told["rest live"] = await client.is_server_live(url)
    told["rest ready"] = await client.is_server_ready(url)
    told["rest model ready"] = await client.is_model_ready(url, "int32")
    for datatype in VALUES:
        name = datatype.lower()
        for binary in (True, False) if datatype != "FP16" else (True,):
            wanted = [RequestedOutput(f"{name}_out", parameters={"binary_data": binary})]
            asked = request(datatype, binary, request_outputs=wanted, request_id="7")
            answer = await client.infer(url, asked, model_name=name)
            told[f"rest {datatype} {'binary' if binary else 'json'}"] = verdict(answer, datatype)
            told["rest id"] = answer.id
    for model, key in (("nothing", "rest unknown"), ("int64", "rest wrong")):
        try:
            await client.infer(url, request("INT32", False), model_name=model)
        except httpx.HTTPStatusError as error:
            told[key] = repr(error)
    await client.close()


async def over_grpc(address, told):
    client = InferenceGRPCClient(address, retries=0)
    told["grpc live"] = await client.is_server_live()
    told["grpc ready"] = await client.is_server_ready()
    told["grpc model ready"] = await client.is_model_ready("int32")
    for datatype in VALUES:
        for binary in (True, False) if datatype != "FP16" else (True,):
            answer = await client.infer(request(datatype, binary, request_id="7"))
            told[f"grpc {datatype} {'raw' if binary else 'typed'}"] = verdict(answer, datatype)
            told["grpc id"] = answer.id
    try:
        wrong = request("INT32", True)
        wrong.model_name = "nothing"
        await client.infer(wrong)
    except AioRpcError as error:
        told["grpc unknown"] = repr(error)
    await client.close()


async def main():
    told = {}
    await rest(sys.argv[1], told)
    await over_grpc(sys.argv[2], told)
    print(json.dumps(told))


asyncio.run(main())
