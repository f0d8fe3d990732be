"""The recipe's `serve:` block: what runs before and after the model, and how its endpoint is treated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from orchestrator.recipe.fields import Dim, EntryPoint, Flag, Model, Word, serve_file

ServeFile = Annotated[str, BeforeValidator(serve_file), Field(examples=["vocab/*.txt", "package:NAME/vocab.txt"])]


class ServeTensor(Model):
    """What a client sends or gets."""

    dtype: Literal[
        "float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool", "string", "bytes"
    ] = Field(
        description="Element type, as NumPy names it; string is text and bytes is raw, both BYTES for the client."
    )
    shape: tuple[Dim, ...] = Field(
        description="Sizes; a name (e.g. batch) stands for a size that varies. Axis 0 counts rows.", max_length=8
    )


class Serve(Model):
    """What runs before and after the model, and how its endpoint is treated."""

    preprocess: EntryPoint | None = Field(
        None,
        description="module:function; called with {input: ndarray} of a whole batch, gives the model's inputs, row for row.",
    )
    postprocess: EntryPoint | None = Field(
        None,
        description="module:function; called with {output: ndarray} of the model, gives what clients get, row for row.",
    )
    samples: EntryPoint | None = Field(
        None,
        description="module:function; samples(n) yields what clients send, {input: ndarray}; `preprocess` needs it.",
    )
    inputs: dict[Word, ServeTensor] | None = Field(
        None, description="What clients send, where `preprocess` changes it; else the model's inputs.", min_length=1
    )
    outputs: dict[Word, ServeTensor] | None = Field(
        None, description="What clients get, where `postprocess` changes it; else the model's outputs.", min_length=1
    )
    files: tuple[ServeFile, ...] = Field(
        (),
        description="Further files that the stages read, carried with their paths: patterns below the recipe's folder, or "
        "package:NAME/path, which is carried under its last name.",
    )
    isolation: Literal["process", "shared"] = Field(
        "process",
        description="process: the model has a process of its own; shared: one for all such models of a slot, which saves memory "
        "and costs them each other's loads and crashes. Compiled graphs only; stages always have their own.",
    )
    max_queue_delay_ms: Annotated[float, Field(strict=True, ge=0, le=10_000, allow_inf_nan=False)] = Field(
        0.0, description="How long a request may wait for others to share its batch, in ms; 0 sends at once."
    )
    max_batch: Annotated[int, Field(strict=True, ge=1, le=65_536)] | None = Field(
        None, description="Most rows in one batch; what the model was compiled for when absent."
    )
    priority: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)] | None = Field(
        None, description="Of requests that ask for none; smaller goes first, and absent goes last."
    )
    pinned: Flag = Field(False, description="Never unloaded to make room for another model.")
    share: Annotated[float, Field(strict=True, gt=0, le=1000, allow_inf_nan=False)] = Field(
        1.0, description="Weight of this endpoint where several compete for a device."
    )
