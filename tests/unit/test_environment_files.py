"""Environment files: the embedded one, the examples, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.serving import LocalServing, local_serving
from orchestrator.core.errors import EnvironmentFileError
from orchestrator.environment import Environment, load_environment
from orchestrator.environment.load import DEFAULT_PATH
from orchestrator.recipe import render_problems
from orchestrator.serving.config import RouterSettings, parse_settings

ROOT = Path(__file__).parents[2]
GOOD = """\
environment: 1
state: there
sites: {local: {kind: local, allow_cpu: true}}
pools: {edge: {site: local, soc: Ascend310P3}}
"""


def test_the_embedded_environment_is_the_one_in_configs() -> None:
    assert DEFAULT_PATH.read_bytes() == (ROOT / "configs" / "local.yaml").read_bytes()
    assert load_environment() == load_environment(ROOT / "configs" / "local.yaml")


def test_what_the_embedded_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = load_environment()
    assert environment.state_path == tmp_path / ".orchestrate"
    assert environment.store_path == tmp_path / ".orchestrate" / "store"
    assert environment.tracking.uri == "sqlite"
    assert environment.ledger.url is None
    assert environment.sites["local"].allow_cpu
    edge = environment.pools["edge"]
    assert (edge.site, edge.soc, edge.rehearsal, edge.slots) == ("local", "Ascend310P3", True, 1)
    monkeypatch.chdir("/")
    assert environment.state_path == tmp_path / ".orchestrate", "the folder at loading counts, not a later one"


def test_the_example_is_valid() -> None:
    environment = load_environment(ROOT / "configs" / "site.example.yaml")
    assert environment.state_path == Path("/var/lib/orchestrate")
    assert not environment.pools["line_a"].rehearsal


def test_defaults_are_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "e.yaml").write_text(GOOD.replace(", allow_cpu: true", ""))
    monkeypatch.chdir(tmp_path)
    environment = load_environment(Path("e.yaml"))
    assert not environment.sites["local"].allow_cpu
    assert not environment.pools["edge"].rehearsal
    assert environment.state_path == tmp_path / "there"
    assert Environment.model_validate(environment.model_dump(mode="json")) == environment


BROKEN = {
    "unknown_site": ("site: local,", "site: locla,", "4:22: pools.edge.site: there is no site `locla` (did you mean `local`?)"),
    "unknown_kind": ("kind: local", "kind: kubernetes", '3:23: sites.local.kind: "kubernetes" is not one of local'),
    "typo": ("allow_cpu", "alow_cpu", "3:30: sites.local.alow_cpu: unknown field (did you mean `allow_cpu`?)"),
    "yes": ("allow_cpu: true", "allow_cpu: yes", '3:41: sites.local.allow_cpu: must be true or false, not "yes"'),
    "no_slots": ("soc: Ascend310P3", "soc: Ascend310P3, slots: 0", "4:54: pools.edge.slots: must be at least 1, not 0"),
    "no_sites": ("sites: {local: {kind: local, allow_cpu: true}}", "sites: {}", "3:8: sites: needs at least 1 entry"),
    "version": ("environment: 1", "environment: 1.0", "1:14: environment: this program reads version 1 of the format, not 1.0"),
    "a_recipe": ("environment: 1", "recipe: 1", "1:1: environment: this field is required"),
    "tracking": ("state: there", "tracking: {uri: mlflow.db}", "2:17: tracking.uri: 'mlflow.db' is no address of MLflow (write `sqlite`, `none`, or http:// or https:// and a host)"),
    "tracking_password": ("state: there", "tracking: {uri: 'https://a:hunter22@b.c/'}", "2:17: tracking.uri: a user name or password stands in the address; give them by MLFLOW_TRACKING_USERNAME and _PASSWORD"),
    "null_section": ("state: there", "tracking:", "2:1: tracking: must be a mapping, not null"),
    "ledger": ("state: there", "ledger: {url: 'mysql://u:hunter22@h/d'}", "2:15: ledger.url: 'mysql://***@h/d' is no address of a ledger (write sqlite:////absolute/path or postgresql+psycopg://host/database)"),
    "store_outside": ("state: there", "store: ../store", "2:8: store: '../store' is not a folder under `state`"),
    "link_in_the_clear": ("allow_cpu: true", "serving: {host: 10.0.0.1, tokens_file: t, link: {port: 7000, token_file: l}}", "3:78: sites.local.serving.link: a link that other hosts reach needs `tls`"),
    "anchor": ("state: there", "state: &x there", "2:8: anchors (&x) are not allowed; write the value out"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_environment(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old, new, expected = BROKEN[case]
    assert GOOD.count(old) == 1
    Path("e.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(EnvironmentFileError) as caught:
        load_environment(Path("e.yaml"))
    assert f"e.yaml:{expected}" in render_problems(caught.value).splitlines()
    assert caught.value.exit_code == 2


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFileError, match="no such file"):
        load_environment(tmp_path / "absent.yaml")


SERVING = GOOD.replace(
    "allow_cpu: true", "serving: {host: 0.0.0.0, port: 8443, tls: {cert: c.pem, key: k.pem, client_ca: ca.pem}}"
)


def test_the_serving_block_reaches_the_routers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text(
        SERVING.replace("port: 8443", "port: 8443, routers: 2, request_timeout: 5s, access_log: {sample: 0.5}")
    )
    found = local_serving(load_environment(Path("e.yaml")).sites["local"].serving)
    assert (found.host, found.port, found.routers, found.request_timeout_s) == ("0.0.0.0", 8443, 2, 5.0)
    assert found.tls_client_ca == str(tmp_path / "ca.pem")
    settings = {**found.router_json(), "admin": "a.sock", "link": "l.sock", "state": "s"}
    assert parse_settings(RouterSettings, settings, "here").access_log_sample == 0.5
    assert local_serving(load_environment().sites["local"].serving) == LocalServing()


@pytest.mark.parametrize("guard", ["tls: {cert: c.pem, key: k.pem, client_ca: ca.pem}", "tokens_file: t"])
def test_a_site_that_others_reach_needs_a_guard(guard: str, tmp_path: Path) -> None:
    text = SERVING.replace("tls: {cert: c.pem, key: k.pem, client_ca: ca.pem}", guard)
    (tmp_path / "e.yaml").write_text(text)
    assert load_environment(tmp_path / "e.yaml").sites["local"].serving.guarded
    (tmp_path / "e.yaml").write_text(text.replace(guard, "tls: {cert: c.pem, key: k.pem}"))
    with pytest.raises(EnvironmentFileError, match=r"0\.0\.0\.0 can be reached by others.*add `tokens_file`") as caught:
        load_environment(tmp_path / "e.yaml")
    assert caught.value.exit_code == 2
    assert caught.value.place == f"{tmp_path / 'e.yaml'}:3:46"
