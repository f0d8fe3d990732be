"""Fuzz the router's HTTP with atheris: `python tests/fuzz/fuzz_http.py --seconds 60`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from support.fuzz_run import run  # noqa: E402

BODY = b'{"id":"1","inputs":[{"name":"int32","datatype":"INT32","shape":[1,1],"data":[7]}]}'
HEAD = b"POST /v2/models/int32/infer HTTP/1.1\r\nhost: x\r\n"
SEEDS = [
    HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
    HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
    b"GET /v2/models/int32 HTTP/1.1\r\nhost: x\r\n\r\n" * 2,
    HEAD + b"content-encoding: gzip\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
]
if __name__ == "__main__":
    run("http", lambda: SEEDS)
