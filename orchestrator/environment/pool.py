"""A pool of the environment: which devices, shared how, and how many of them are held."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.environment.rollout import RolloutPolicy
from orchestrator.recipe.fields import ByteSize, Duration, Flag, Model, Name, Number, Soc, Whole

MOST_SLOTS = 1024


class Devices(Model):
    """Slots of one SoC in a pool that has several."""

    soc: Soc = Field(description="SoC of these devices, as npu-smi and ATC name it.")
    slots: Whole = Field(1, ge=1, le=MOST_SLOTS, description="Number of slots on devices of this SoC.")


class Autoscale(Model):
    """How many slots a pool holds, by what waits at the router."""

    min_slots: Whole = Field(1, ge=1, le=MOST_SLOTS, description="Slots that are always held.")
    max_slots: Whole | None = Field(
        None, ge=1, le=MOST_SLOTS, description="Slots that are held at most; the pool's `slots` when absent."
    )
    target_queue: Number = Field(
        4.0, ge=0.1, le=10_000, description="Requests that wait or run, for each slot: above it slots are added."
    )
    up_after: Duration = Field(5.0, description="How long there must be too few slots before more are added, e.g. 5s.")
    down_after: Duration = Field(
        120.0, description="How long there must be too many before one is given back, e.g. 2m."
    )


class Pool(Model):
    """Named device slots on a serve site."""

    site: Name = Field(description="The site that has the devices.")
    soc: Soc | None = Field(
        None, description="SoC of every device in the pool, as npu-smi and ATC name it; or `devices`."
    )
    devices: tuple[Devices, ...] | None = Field(
        None, min_length=1, description="Slots by SoC, for a pool of several SoCs; in place of `soc` and `slots`."
    )
    rehearsal: Flag = Field(
        False, description="Serve from a CPU in place of the NPU, and say so everywhere; false refuses without an NPU."
    )
    slots: Whole = Field(
        1, ge=1, le=MOST_SLOTS, description="Number of slots; each is a device, or a `fraction` of one."
    )
    fraction: Number = Field(
        1.0, ge=0.01, le=1, description="Part of a device that a slot takes: 0.5 puts two slots on each device."
    )
    models: Literal["always", "lazy"] = Field(
        "always",
        description="always: every slot holds its models; lazy: a model is loaded by its first request and may make room.",
    )
    memory: ByteSize | None = Field(
        None,
        description="Memory for models in each slot, e.g. 8GiB: the device's where npu-smi shows it, else the host's; "
        "what is free when absent.",
    )
    autoscale: Autoscale | None = Field(
        None, description="Hold more slots when requests wait, fewer when none do; always `slots` when absent."
    )
    rollout: RolloutPolicy | None = Field(
        None, description="What every rollout to this pool must have; only what the recipe asks for when absent."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.soc is None) == (self.devices is None):
            raise _wrong("needs either `soc` or `devices`")
        if self.devices is not None:
            self._check_devices(self.devices)
        scale = self.autoscale
        most = None if scale is None else scale.max_slots or self.slots
        if scale is not None and most is not None and not scale.min_slots <= most <= self.slots:
            raise _wrong(
                f"autoscale from {scale.min_slots} to {most} slots does not fit the pool's {self.slots} "
                "(min_slots <= max_slots <= slots)"
            )
        return self

    def _check_devices(self, devices: tuple[Devices, ...]) -> None:
        if self.slots not in (1, sum(part.slots for part in devices)):
            raise _wrong("`slots` stands in each of `devices`, not beside them")
        if len({part.soc for part in devices}) != len(devices):
            raise _wrong("a SoC stands twice in `devices`")
        if self.autoscale is not None:
            raise _wrong("`autoscale` needs one SoC: which of the `devices` would be given back is Ray's choice")

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """(SoC, slots) of every SoC in the pool, in order."""
        if self.devices is not None:
            return tuple((part.soc, part.slots) for part in self.devices)
        return ((self.soc or "", self.slots),)

    @property
    def socs(self) -> tuple[str, ...]:
        """Every SoC in the pool."""
        return tuple(soc for soc, _ in self.parts)

    @property
    def all_slots(self) -> int:
        """Slots of all SoCs together."""
        return sum(slots for _, slots in self.parts)


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong_value", "{text}", {"text": message})
