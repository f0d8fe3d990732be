"""The contract of a runtime: `load(job) -> Session`; submit a batch, see when it is done, collect its outputs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast

from orchestrator.core.errors import OrchestratorError, UsageError
from orchestrator.serving.protocol.tensors import Tensor, TensorSpec

if TYPE_CHECKING:
    from orchestrator.bundle.variant import Variant

REHEARSAL: Final = "cpu (rehearsal)"
"""The only device word for a CPU in place of an NPU."""

Stage = Literal["preprocess", "model", "postprocess"]
"""What one replica computes of a request."""

_MODULES: Final[Mapping[str, str]] = {
    "mindir": "orchestrator.serving.runtimes.mindir",
    "om": "orchestrator.serving.runtimes.om",
    "onnx-cann": "orchestrator.serving.runtimes.onnx_cann",
    "onnx-cpu": "orchestrator.serving.runtimes.onnx_cpu",
    "python-stage": "orchestrator.serving.runtimes.python_stage",
    "torch": "orchestrator.serving.runtimes.torch_module",
    "twin": "orchestrator.serving.runtimes.onnx_cpu",  # the graph that rounds as the device does: fp32 with casts
}


Bucket = Mapping[str, tuple[int, ...]]
"""The shape of every input, by name."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to load.

    Attributes:
        folder: The bundle's, or the variant's where there is one; read-only.
        device: What the session must run on.
        work: Folder of this replica alone, for whatever its libraries leave behind.
        variant: None where the bundle's own files are served.
        tools: Programs of the environment, by name.
        stage: What of the bundle to load: its model, or its code before or after it.
    """

    folder: Path
    device: str
    work: Path
    variant: Variant | None = None
    tools: Mapping[str, str] = field(default_factory=dict[str, str])
    stage: Stage = "model"


class InputRejected(OrchestratorError):
    """The model refuses these input values: the client's mistake."""


class ExecutionFailed(OrchestratorError):
    """The model failed on this input."""


class Session(Protocol):
    """A loaded model. Not thread-safe.

    Attributes:
        device: The device it verifiably runs on.
        inputs: What it wants, in order.
        outputs: What it gives, in order.
        max_batch: Most rows of axis 0 in one batch; 1 = no batching, axis 0 has no meaning.
        depth: How many batches may be submitted before the first is collected.
        buckets: Shapes that it was compiled for; each must run once before it serves. Empty: any shape is as good.
    """

    @property
    def device(self) -> str:
        """See above."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """See above."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """See above."""
        ...

    @property
    def max_batch(self) -> int:
        """See above."""
        ...

    @property
    def depth(self) -> int:
        """See above."""
        ...

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """See above."""
        ...

    def submit(self, inputs: Sequence[Tensor]) -> int:
        """Start a batch and return its ticket; the inputs fit `self.inputs` and must live until collected.

        Inputs that cannot be taken make `collect` raise.
        """
        ...

    def done(self, ticket: int, wait_s: float) -> bool:
        """Return whether `collect` has nothing left to wait for; waits at most `wait_s` for it, or not at all."""
        ...

    def collect(self, ticket: int) -> list[Tensor]:
        """Wait for a batch and return its outputs in the order of `self.outputs`.

        Raises:
            InputRejected: The input values are the cause.
            ExecutionFailed: Anything else that ends with this batch.
            DeviceError: The device must not be used any more.
        """
        ...

    def close(self) -> None:
        """Free the device."""
        ...


class Copying:
    """Base of a session that knows how long it copied between host and device for the batch that it collected last."""

    copied_us: int = 0


class Holding:
    """Base of a session that knows how much of its device it holds, in bytes."""

    held_bytes: int = 0


class Runtime(Protocol):
    """What each module of this package is."""

    def load(self, job: Job) -> Session:
        """Load a model onto its device.

        Raises:
            DeviceError: The device is absent, or is not what it claims to be.
            ServingError: The model cannot be loaded.
        """
        ...


def runtime(name: str) -> Runtime:
    """Return the runtime of this name; imports its libraries.

    Raises:
        UsageError: There is none.
    """
    module = _MODULES.get(name)
    if module is None:
        raise UsageError(f"no runtime is called {name!r}", hint=f"one of: {', '.join(sorted(_MODULES))}")
    return cast("Runtime", importlib.import_module(module))
