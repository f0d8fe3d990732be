import sys
import types
from pathlib import Path

import pytest

from orchestrator.cluster import ray_start
from orchestrator.cluster.devices import NPU_RESOURCE, check_devices, npu_devices, pool_device, pool_resource
from orchestrator.cluster.ports import pick_ports
from orchestrator.cluster.ray_head import clean_environment, head_command, head_environment
from orchestrator.cluster.serve_config import serve_document
from orchestrator.cluster.site import MARKER, LocalPool, LocalSite
from orchestrator.core.errors import DeviceError


@pytest.fixture
def site(tmp_path):
    return LocalSite(
        "local", tmp_path, {"edge": LocalPool(3, True, "Ascend310P3"), "real": LocalPool(2, False, "Ascend910B")}
    )


def test_foreign_ray_settings_and_armed_faults_do_not_leak_in(site, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS", "ORCHESTRATE_FAULT", "__RAY_X"):
        monkeypatch.setenv(name, "foreign")
    env = clean_environment(site)
    assert "foreign" not in env.values()
    assert env[MARKER] == site.id


def test_pythonpath_is_kept(site, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/a:/b")
    assert clean_environment(site)["PYTHONPATH"].startswith("/a:/b")


def test_the_token_is_named_by_path_only(site):
    site.token_path.parent.mkdir(parents=True)
    site.token_path.write_text("s3cret-token-value")
    ports = pick_ports(8)
    text = " ".join(head_command(site, ports)) + repr(head_environment(site, ports))
    assert "s3cret-token-value" not in text
    assert head_environment(site, ports)["RAY_AUTH_TOKEN_PATH"] == str(site.token_path)
    assert head_environment(site, ports)["RAY_AUTH_MODE"] == "token"


def test_every_port_is_explicit(site):
    ports = pick_ports(8)
    command = head_command(site, ports)
    for name in (
        "port",
        "dashboard-port",
        "node-manager-port",
        "object-manager-port",
        "min-worker-port",
        "runtime-env-agent-port",
    ):
        assert any(part.startswith(f"--{name}=") for part in command), name
    assert "--dashboard-host=127.0.0.1" in command


def test_a_rehearsal_is_never_called_npu(site):
    resources = next(part for part in head_command(site, pick_ports(8)) if part.startswith("--resources="))
    assert resources == '--resources={"ascend_sim_edge": 3}'
    assert pool_resource("edge", site.pools["edge"]) != NPU_RESOURCE
    assert pool_resource("real", site.pools["real"]) == NPU_RESOURCE
    assert "rehearsal" in pool_device(site.pools["edge"])
    assert pool_device(site.pools["real"]) == "Ascend910B"


def test_serve_gets_one_application_per_pool_and_no_proxy(site):
    document = serve_document(site)
    assert document["proxy_location"] == "Disabled"
    assert [row["name"] for row in document["applications"]] == ["edge", "real"]
    assert document["applications"][0]["args"]["slots"] == 3
    assert len(document["applications"][0]["args"]["link"]) < 100


def test_devices_are_counted_not_believed(tmp_path):
    for name in ("davinci0", "davinci1", "davinci_manager"):
        (tmp_path / name).touch()
    devices = npu_devices(tmp_path)
    assert [path.name for path in devices] == ["davinci0", "davinci1"]
    check_devices({"a": LocalPool(2, False, "s"), "b": LocalPool(9, True, "s")}, devices)
    with pytest.raises(DeviceError, match="pool b needs 1"):
        check_devices({"a": LocalPool(2, False, "s"), "b": LocalPool(1, False, "s")}, devices)


def test_the_hook_takes_the_client_server_out():
    params = types.SimpleNamespace(ray_client_server_port=10001)
    ray_start.configure_head(params, head=True)
    assert params.ray_client_server_port is None


def test_only_serves_wide_port_is_moved(monkeypatch):
    asked = []
    tls = types.ModuleType("ray._common.tls_utils")
    tls.add_port_to_grpc_server = lambda _server, address: asked.append(address) or 1
    common = types.ModuleType("ray._common")
    common.tls_utils = tls
    for name, module in {"ray": types.ModuleType("ray"), "ray._common": common, "ray._common.tls_utils": tls}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("ORCHESTRATE_RUNTIME", "/tmp/orc-x")
    ray_start.close_serve_port()
    tls.add_port_to_grpc_server(None, "[::]:0")
    tls.add_port_to_grpc_server(None, "127.0.0.1:77")
    assert asked[0].startswith("unix:/tmp/orc-x/serve-")
    assert asked[1] == "127.0.0.1:77"
    assert Path(asked[0].removeprefix("unix:")).parent == Path("/tmp/orc-x")
