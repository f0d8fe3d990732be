"""Every kind of step: what it takes, what it leaves, where it runs, and what its fingerprint covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Place = Literal["worker", "engine"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of step.

    Attributes:
        module: Where the worker finds `run`; empty for what the engine does itself.
        outputs: Names of the artifacts that it leaves; `source` leaves one of them.
        place: `worker` runs as part of a segment on a site; `engine` is done by the control plane.
        needs_ray: The site's Ray cluster must be up.
        packages: Installed packages whose versions can change the output.
        judged: Spec keys that only judge the result; they are not part of the fingerprint (DESIGN D10).
        schema: Raised when the same inputs begin to give another output.
        about: One line for people.
    """

    module: str
    outputs: tuple[str, ...]
    place: Place = "worker"
    needs_ray: bool = False
    packages: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()
    schema: int = 1
    about: str = ""


KINDS: Final[dict[str, Kind]] = {
    "custom": Kind("orchestrator.steps.custom", ("files",), about="the recipe's own step"),
    "preflight": Kind(
        "orchestrator.steps.preflight",
        ("report",),
        packages=("torch", "onnx", "onnxscript", "onnxruntime"),
        about="export the untrained model and check it against every target",
    ),
    "train": Kind(
        "orchestrator.steps.train",
        ("checkpoint",),
        needs_ray=True,
        packages=("torch", "numpy"),
        judged=("retries", "resources", "timeout_s"),
        about="train on the train site's Ray cluster",
    ),
    "source": Kind("orchestrator.steps.source", ("checkpoint", "onnx"), about="take a model that exists already"),
    "evaluate": Kind(
        "orchestrator.steps.evaluate",
        ("report",),
        packages=("torch", "numpy", "onnxruntime"),
        judged=("gates", "timeout_s"),
        about="measure the model and judge its gates",
    ),
    "export": Kind(
        "orchestrator.steps.export",
        ("onnx",),
        packages=("torch", "onnx", "onnxscript"),
        about="export to ONNX at an opset that every target parses",
    ),
    "forecast": Kind(
        "orchestrator.steps.forecast",
        ("graph", "twin", "report"),
        packages=("onnx", "onnx-ir", "onnxruntime", "numpy"),
        about="rewrite the graph for the target, check every operator, foresee fp16, choose what stays in fp32",
    ),
    "bundle": Kind(
        "orchestrator.steps.bundle",
        ("bundle",),
        packages=("torch", "numpy"),
        about="pack the release: OCI layout, golden samples, reference outputs",
    ),
    "compile": Kind(
        "orchestrator.steps.compile",
        ("variant", "rehearsal"),
        packages=("onnx", "numpy"),
        judged=("timeout_s",),
        about="compile for the target; where there is no compiler the twin stands in, and says so",
    ),
    "parity": Kind(
        "orchestrator.steps.parity",
        ("report",),
        packages=("torch", "onnxruntime", "numpy"),
        judged=("parity",),
        about="prove on the same real samples: torch, ONNX, twin and variant compute the same",
    ),
    "register": Kind("", (), place="engine", about="register the checkpoint and the ONNX model in MLflow"),
    "deploy": Kind("", (), place="engine", judged=("parity", "strategy"), about="roll the bundle out to its pool"),
}
