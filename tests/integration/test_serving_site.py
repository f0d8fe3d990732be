"""A router, an agent and replicas, as processes, on tiny models: what clients and the control plane see."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.serving_site import (
    DEVICE,
    Load,
    ServingSite,
    gather_bundle,
    generation,
    identity_bundle,
    scale_bundle,
    slow_bundle,
)

from orchestrator.core.errors import Conflict, ServingError, Unreachable
from orchestrator.core.processes import ProcessIdentity
from orchestrator.serving.admin import RouterAdmin
from orchestrator.serving.client import OipClient

ONES = {"x": np.ones((1, 4), np.float32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[ServingSite]:
    site = ServingSite(folder / "site")
    try:
        site.start_router()
        site.start_agent()
        site.serve("double", generation(1, scale_bundle(folder / "double", 2.0)))
        yield site
    finally:
        site.stop()


@pytest.mark.parametrize("binary", [True, False])
def test_an_answer_names_generation_bundle_and_device(site: ServingSite, binary: bool) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with site.client() as client:
        answer = client.infer("double", {"x": x}, binary=binary, request_id="r-1")
        assert np.array_equal(answer.outputs["y"], x * 2)
        assert (answer.generation, answer.device, answer.id) == (1, DEVICE, "r-1")
        assert answer.bundle == site.admin.table().endpoints["double"].generations[0].bundle
        assert client.infer("double", ONES, generation=1, binary=binary).id is None
        assert client.live()
        assert client.ready("double")
        assert client.ready("double", 1)
        assert not client.ready("double", 2)


def test_every_request_leaves_an_event(site: ServingSite) -> None:
    before = site.admin.events(limit=10_000)["last"]
    with site.client() as client:
        client.infer("double", {"x": np.ones((3, 4), np.float32)})
        with OipClient(site.url, socket=site.short / "admin.sock") as inside:
            inside.infer("double", ONES, probe=True)
        client.infer("double", ONES, probe=True)  # the public door does not believe it
        with pytest.raises(ServingError):
            client.infer("double", {"x": np.ones((1, 5), np.float32)})
    found = site.admin.events(after=before)
    rows = [(e["status"], e["error"], e["batch_size"], e["synthetic"], e["generation"]) for e in found["events"]]
    assert rows == [
        (200, "", 3, False, 1),
        (200, "", 1, True, 1),
        (200, "", 1, False, 1),
        (400, "invalid", 0, False, 1),
    ]
    first = found["events"][0]
    assert first["compute_us"] <= first["total_us"]
    assert first["device"] == DEVICE
    assert first["replica"].startswith("edge-0.double.")
    assert found["lost"] == 0
    assert site.admin.events(after=found["last"])["events"] == []
    assert 'endpoint="double",generation="1",stage="model",status="200",kind="ok"}' in site.admin.metrics()


def test_requests_are_batched_when_a_replica_becomes_idle(site: ServingSite, folder: Path) -> None:
    site.serve("slow", generation(1, slow_bundle(folder / "slow")))
    before = site.admin.events(limit=10_000)["last"]
    gate = threading.Barrier(16)

    def call(i: int) -> bool:
        with site.client() as client:
            client.live()
            gate.wait()
            x = np.full((1 + i % 3, 4), i, np.float32)
            return np.array_equal(client.infer("slow", {"x": x}).outputs["y"], x)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(16)))
    sizes = [e["batch_size"] for e in site.admin.events(after=before)["events"] if e["endpoint"] == "slow"]
    assert len(sizes) == 16
    assert max(sizes) > 3
    assert max(sizes) <= 32


def test_one_bad_request_does_not_fail_its_batch(site: ServingSite, folder: Path) -> None:
    site.serve("gather", generation(1, gather_bundle(folder / "gather")))
    (pid,) = site.replica_pids("gather")
    os.kill(pid, signal.SIGSTOP)  # so that all of them wait, and run together

    def call(index: int) -> object:
        with site.client() as client:
            try:
                return float(client.infer("gather", {"index": np.array([index])}).outputs["picked"][0])
            except ServingError as error:
                return error.details["status"]

    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(call, index) for index in (0, 1, 99, 2, 3, -77, 1, 0)]
        row = site.admin.status()["generations"]
        site.wait(lambda: _queued(site, "gather") == 8, 5, f"queue {row}")
        os.kill(pid, signal.SIGCONT)
        assert [f.result(10) for f in found] == [0.0, 10.0, 400, 20.0, 30.0, 400, 10.0, 0.0]
    last = [e for e in site.admin.events(limit=10_000)["events"] if e["endpoint"] == "gather"][-8:]
    assert Counter(e["error"] for e in last) == {"": 6, "rejected": 2}


def _queued(site: ServingSite, endpoint: str) -> int:
    rows = [row for row in site.admin.status()["generations"] if row["endpoint"] == endpoint]
    return sum(row["queued"] + row["in_flight"] for row in rows)


def test_no_rows_and_shared_dimensions(site: ServingSite, folder: Path) -> None:
    site.serve("same", generation(1, identity_bundle(folder / "same")))
    with site.client() as client:
        empty = client.infer("double", {"x": np.zeros((0, 4), np.float32)})
        assert empty.outputs["y"].shape == (0, 4)
        values = {
            "flag": np.array([[True, False, True]]),
            "u64": np.array([[2**64 - 1, 2**53 + 1, 0]], np.uint64),
            "i8": np.array([[-128, 127, 0]], np.int8),
            "half": np.array([[1.5, -2, 65504]], np.float16),
        }
        answer = client.infer("same", values)
        for name, array in values.items():
            assert np.array_equal(answer.outputs[f"{name}_out"], array)
            assert answer.outputs[f"{name}_out"].dtype == array.dtype
        with pytest.raises(ServingError, match="dimension 'n' is 2 here and 3 elsewhere"):
            client.infer("same", {**values, "i8": np.zeros((1, 2), np.int8)})
        assert client.infer("same", {k: v[:, :0] for k, v in values.items()}).outputs["u64_out"].shape == (1, 0)


def test_a_fixed_batch_is_served_unbatched(site: ServingSite, folder: Path) -> None:
    site.serve("fixed", generation(1, scale_bundle(folder / "fixed", 3.0, batch=1)))
    with site.client() as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.infer("fixed", ONES).outputs["y"], range(8)))
        assert all(np.array_equal(y, ONES["x"] * 3) for y in answers)
        with pytest.raises(ServingError, match="shape"):
            client.infer("fixed", {"x": np.ones((2, 4), np.float32)})
        with pytest.raises(ServingError, match="33 rows are too many"):
            client.infer("double", {"x": np.ones((33, 4), np.float32)})


def test_the_split_is_exact_and_follows_the_table(site: ServingSite, folder: Path) -> None:
    one, two = scale_bundle(folder / "s1", 1.0), scale_bundle(folder / "s2", 2.0)
    site.serve("split", generation(1, one, 95), generation(2, two, 5, "staged"))
    with site.client() as client:
        found = Counter(client.infer("split", ONES).generation for _ in range(200))
        assert found == {1: 190, 2: 10}
        assert client.infer("split", ONES, generation=2).outputs["y"][0, 0] == 2
        # The rollback: generation 3 is bundle 1 again; the same replica serves both.
        site.serve("split", generation(1, one, 0, "draining"), generation(2, two, 0, "draining"), generation(3, one))
        assert client.infer("split", ONES).generation == 3
        assert client.infer("split", ONES, generation=1).outputs["y"][0, 0] == 1
        generations = sorted(
            row["generations"] for row in site.admin.status()["replicas"] if row["endpoint"] == "split"
        )
        assert generations == [[1, 3], [2]]


def test_a_switch_under_load_loses_nothing(site: ServingSite, folder: Path) -> None:
    bundles = [scale_bundle(folder / f"switch{i}", float(i)) for i in (1, 2, 3)]
    site.serve("switch", generation(1, bundles[0]))
    load = Load(site.url, "switch")
    try:
        for number in (2, 3):
            old, new = generation(number - 1, bundles[number - 2]), generation(number, bundles[number - 1], 0, "staged")
            site.serve("switch", old, new)
            site.serve("switch", {**old, "weight": 50}, {**new, "weight": 50})
            (pid,) = {
                row["pid"]
                for row in site.admin.status()["replicas"]
                if row["endpoint"] == "switch" and row["bundle"] == old["bundle"]
            }
            replica = ProcessIdentity.of(pid)
            assert replica is not None
            site.serve("switch", {**new, "weight": 100, "state": "live"})
            site.wait(lambda r=replica: not r.alive(), 10, "the old replica is drained")
    finally:
        load.stop()
    assert load.failures == []
    assert all(generation == factor for generation, factor in load.answers)
    assert {generation for generation, _ in load.answers} == {1, 2, 3}
    with site.client() as client, pytest.raises(ServingError, match="version 1 is not found"):
        client.infer("switch", ONES, generation=1)


def test_fencing(site: ServingSite) -> None:
    table = site.admin.table()
    assert site.admin.put_table(table) == table.version
    with pytest.raises(Conflict, match="older"):
        site.admin.put_table({"version": table.version - 1, "endpoints": {}})
    with pytest.raises(Conflict, match="another content"):
        site.admin.put_table({"version": table.version, "endpoints": {}})
    bad = table.to_json()
    bad["version"] = table.version + 1
    bad["endpoints"]["double"]["generations"][0]["weight"] = 90  # type: ignore[index]
    with pytest.raises(ServingError, match="weights sum to 90"):
        site.admin.put_table(bad)
    assert site.admin.table() == table


def test_a_wrong_golden_sample_is_never_served(site: ServingSite, folder: Path) -> None:
    bundle = scale_bundle(folder / "wrong", 2.0, wrong_golden=True)
    with pytest.raises(ServingError, match=r"cannot start: .*self-check of sample 0: output 'y' is off by up to 3"):
        site.serve("wrong", generation(1, bundle))
    with site.client() as client, pytest.raises(ServingError) as caught:
        client.infer("wrong", ONES)
    assert caught.value.details["status"] == 503
    _drop(site, "wrong")


def test_a_changed_bundle_is_never_served(site: ServingSite, folder: Path) -> None:
    digest, path = scale_bundle(folder / "flipped", 2.0)
    model = path / "model.onnx"
    model.chmod(0o644)
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(ServingError, match=r"cannot start: .*model.onnx is not what the manifest says"):
        site.serve("flipped", generation(1, (digest, path)))
    _drop(site, "flipped")
    other = scale_bundle(folder / "other", 3.0)
    with pytest.raises(ServingError, match=r"cannot start: .*the folder holds bundle sha256:"):
        site.serve("swapped", generation(1, (digest, other[1])))
    _drop(site, "swapped")


def test_a_rehearsal_slot_refuses_to_be_an_npu(site: ServingSite, folder: Path) -> None:
    bundle = scale_bundle(folder / "npu", 2.0)
    with pytest.raises(ServingError, match="wants device 'Ascend310P3'"):
        site.serve("npu", generation(1, bundle, device="Ascend310P3"), timeout_s=2)
    _drop(site, "npu")
    with pytest.raises(ServingError, match="no agent runs it"):
        site.serve("nowhere", generation(1, bundle), pool="elsewhere", timeout_s=0.5)
    _drop(site, "nowhere")


def test_an_onnx_runtime_never_claims_to_be_an_npu(site: ServingSite, folder: Path) -> None:
    script = folder / "set_env.sh"
    script.write_text("export FAKE_CANN=yes\n")
    site.start_agent("agent-npu", pool="npus", device="Ascend310P3", tools={"cann_env": str(script)})
    bundle = scale_bundle(folder / "npu2", 2.0)
    with pytest.raises(ServingError, match="cannot serve as 'Ascend310P3'"):
        site.serve("npu2", generation(1, bundle, device="Ascend310P3"), pool="npus")
    _drop(site, "npu2")


def _drop(site: ServingSite, endpoint: str) -> None:
    endpoints = dict(site.admin.table().to_json()["endpoints"])  # type: ignore[call-overload]
    del endpoints[endpoint]
    site.version = max(site.version, site.admin.table().version)
    site.put(endpoints)


def test_sockets_are_private(site: ServingSite) -> None:
    for name in ("admin.sock", "link.sock"):
        assert (site.short / name).stat().st_mode & 0o777 == 0o600
    with RouterAdmin(site.short / "nothing.sock", timeout_s=1) as admin, pytest.raises(Unreachable):
        admin.status()


def test_noise_on_the_link_hurts_nobody(site: ServingSite) -> None:
    for noise in (
        b"\0" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        b"OL\x01\x05" + b"\xff" * 12,
        b"OL\x01\x01\x02\0\0\0\0\0\0\0\0\0\0\0{}",
    ):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(site.short / "link.sock"))
            link.sendall(noise)
            link.settimeout(5)
            assert link.recv(1000)[3:4] == b"\x08"  # bye
            assert link.recv(1000) == b""
    with site.client() as client:
        assert client.infer("double", ONES).generation == 1


def test_limits(folder: Path) -> None:
    site = ServingSite(folder / "small", queue_limit=3, request_timeout_s=2, replica_grace_s=1)
    try:
        site.start_router()
        site.start_agent()
        site.serve("double", generation(1, scale_bundle(folder / "double", 2.0)))
        (pid,) = site.replica_pids("double")
        os.kill(pid, signal.SIGSTOP)
        before = site.admin.events(limit=10_000)["last"]
        with ThreadPoolExecutor(6) as pool, httpx.Client(base_url=site.url, timeout=10) as http:
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
            path = "/v2/models/double/infer"
            # Two are with the replica (its credit), three wait; the next is one too many.
            # What arrives together would leave in one batch, so they come one after the other.
            waiting = []
            for number in range(1, 5):
                waiting.append(pool.submit(http.post, path, json=body))
                site.wait(lambda number=number: _queued(site, "double") == number, 5, f"{number} wait")
            gone = socket.create_connection(site.url.removeprefix("http://").split(":"))  # type: ignore[arg-type]
            text = httpx.Request("POST", site.url, json=body).read()
            gone.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n".encode() + text)
            site.wait(lambda: _queued(site, "double") == 5, 5, "five wait")
            refused = http.post(path, json=body)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert "error" in refused.json()
            gone.close()
            short = {**body, "parameters": {"timeout": 1000}}
            late = [f.result(10) for f in waiting]
            assert {response.status_code for response in late} == {504}
            assert late[0].headers["x-orchestrate-bundle"].startswith("sha256:")
            assert http.post(path, json=short).status_code == 504
            os.kill(pid, signal.SIGCONT)
            site.wait(lambda: http.post(path, json=body).status_code == 200, 5, "it recovers")
        kinds = Counter(e["error"] for e in site.admin.events(after=before)["events"])
        assert kinds["client_gone"] == 1
        assert kinds["timeout"] == 5
        assert kinds["queue_full"] == 1
    finally:
        site.stop()
