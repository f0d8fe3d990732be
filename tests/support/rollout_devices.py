"""F35: devices that break while a canary walks, on a site of two NPU slots of the fake pyACL."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.bundle.variant import Variant, write_variant
from orchestrator.core.digests import Digest
from orchestrator.core.errors import OrchestratorError
from orchestrator.rollout.request import DeployRequest
from support.fake_acl import install, write_om
from support.rollout_deaths import HELD, _promoted, _taken_back, _walking
from support.rollout_drills import ANALYSIS
from support.rollout_site import ENDPOINT, Drill, RolloutSite
from support.rollout_traffic import BODY
from support.serving_site import ROOT, ServingSite

SOC = "Ascend310P3"
LONGER: dict[str, Any] = {
    "kind": "canary",
    "steps": [{"set_weight": 30}, {"pause": {"duration_s": 12}}, {"analysis": ANALYSIS}, {"set_weight": 60}],
}
"""Long enough that a device fails three times before it is over."""
ROW = {"dtype": "float32", "shape": ["batch", 4]}


class NpuRolloutSite(RolloutSite):
    """Two agents, each with a device of its own, which `break_device` breaks; replicas run the bundles as om."""

    QUARANTINE_S = 3.0

    def __init__(self, folder: Path, **settings: object) -> None:
        self.switches = [folder / f"broken-{number}" for number in range(2)]
        super().__init__(folder, slots=2, **settings)

    def start_agents(self) -> None:
        for number, switch in enumerate(self.switches):
            fake = install(self.folder / f"acl-{number}", soc=SOC, broken=str(switch))
            self.serving.env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{fake}"
            self.serving.start_agent(f"agent-{number}", slots=2, device=SOC, quarantine_s=self.QUARANTINE_S)

    def request(self, digest: Digest, path: Path, how: dict[str, Any]) -> DeployRequest:
        made = self._variant(digest, path)
        plain = super().request(digest, path, how)
        return replace(plain, runtime="om", device=SOC, variant=made.digest, variant_path=str(made.folder))

    def _variant(self, digest: Digest, path: Path) -> Variant:
        folder = self.folder / f"om-{digest.rpartition(':')[2][:8]}"
        folder.mkdir(exist_ok=True)
        if not (folder / "model.om").exists():
            dims = {"dtype": "float32", "dims": [-1, 4], "largest": [8, 4]}
            head: dict[str, Any] = {"soc": SOC, "batches": [1, 4, 8]}
            model = next(path.rglob("model.onnx")).read_bytes()
            write_om(
                folder / "model.om", model, [{"name": "x", **dims}], [{"name": "PartitionedCall_0:0:y", **dims}], **head
            )
        facts = {"shapes": {"gears": [{}], "fixed": {}, "ranges": {}}}
        gears = tuple({"batch": size} for size in (1, 4, 8))
        return write_variant(
            Variant(
                folder, digest, "edge", "om", SOC, "fp16", "om", {"name": "fake", "version": "1"}, False, True, None,
                [{"name": "x", **ROW}], [{"name": "y", **ROW}], gears, facts,
            )
        )  # fmt: skip

    def break_device(self, number: int) -> None:
        """From now on each execution on it fails, golden samples at a start included."""
        self.switches[number].touch()

    def mend_devices(self) -> int:
        """Returns how many executions have failed."""
        failed = 0
        for switch in self.switches:
            if switch.exists():
                failed += len(switch.read_text().splitlines())
                switch.unlink()
        return failed

    def quarantined(self) -> set[int]:
        """Slots of which some replica is in quarantine."""
        return {
            int(row["slot"])
            for row in self.serving.admin.status()["agents"]
            if any("quarantined" in replica["error"] for replica in row["replicas"])
        }

    def whole(self) -> bool:
        """Tell whether the live generation has a replica on each device."""
        return len(self.pids(self.live.number)) == 2


def one_device(site: NpuRolloutSite) -> Drill:
    """F35: one of two devices breaks under stable and canary: it is quarantined, the other serves both, the canary goes live."""
    with site.traffic():
        child, _, canary = _walking(site, LONGER)
        site.break_device(0)
        _until_quarantine(site, 1)
        problems = _promoted(site, child, canary)
        fired = site.mend_devices()
        ServingSite.wait(site.whole, 60, "the mended device")
    return site.judge("F35 a device breaks, another is left", fired, problems)


def all_devices(site: NpuRolloutSite) -> Drill:
    """F35: all devices break: 503 with Retry-After, live but not ready; mended ones serve again, and the canary can be ended."""
    with site.traffic():
        child, stable, canary = _walking(site, HELD)
        for number in range(2):
            site.break_device(number)
        _until_quarantine(site, 2)
        problems = _dark(site.serving.url)
        fired = site.mend_devices()
        ServingSite.wait(site.whole, 60, "the mended devices")
        with suppress(OrchestratorError):  # it may have been taken back by itself
            site.ask("abort")
        problems += _taken_back(site, child, stable, canary)
    return site.judge("F35 all devices break", fired, problems, borne=(503, 504))


def _until_quarantine(site: NpuRolloutSite, slots: int) -> None:
    ServingSite.wait(lambda: len(site.quarantined()) == slots, 60, "the quarantine")


def _dark(url: str) -> list[str]:
    """Return what is wrong with the answers of a site without a device."""
    infer = f"/v2/models/{ENDPOINT}/infer"
    found = {path: _ask(url + path) for path in ("/v2/health/live", "/v2/health/ready")}
    found[infer] = _ask(url + infer, BODY)
    states = [status for status, _ in found.values()]
    return [] if states == [200, 503, 503] and found[infer][1] else [f"without a device: {found}"]


def _ask(url: str, body: bytes | None = None) -> tuple[int, str | None]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, {"content-type": "application/json"}), timeout=10
        ) as answer:
            return answer.status, None
    except urllib.error.HTTPError as error:
        return error.code, error.headers["retry-after"]


DRILLS: tuple[Callable[[NpuRolloutSite], Drill], ...] = (one_device, all_devices)
