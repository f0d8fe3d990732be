"""Running a variant where that is possible without its device: MindSpore Lite's CPU form, in its own interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from orchestrator.bundle.variant import Variant
from orchestrator.steps.compile_mindir import MODEL_MINDIR
from orchestrator.steps.model_inputs import Array

_TIMEOUT_S: Final = 600.0


def why_not_here(variant: Variant, tools: Mapping[str, Any]) -> str:
    """Return why the variant cannot be run on this machine; empty where it can."""
    form = variant.facts.get("mindir", {}).get("form")
    if form == "general":
        if not tools.get("mindspore_lite_python"):
            return "no MindSpore Lite on this site: `tools.mindspore_lite_python` is not set"
        return ""
    if variant.runtime == "twin":
        return f"not compiled ({variant.skipped}); the twin stands in"
    return f"compiled for {variant.soc}, and there is no such device here"


def device_of(variant: Variant) -> str:
    """Return what `run_variant` computes on, for people."""
    return f"cpu ({variant.toolchain['name']} {variant.toolchain['version']}, rehearsal)"


def run_variant(variant: Variant, samples: Mapping[str, Array], tools: Mapping[str, Any]) -> dict[str, Array]:
    """Run the samples, in batches of the smallest gear that the variant has, and return the outputs by their names.

    Raises:
        GateError: The runtime refuses the model or the samples.
    """
    from orchestrator.ascend.mindspore_lite import MindSporeLite

    lite = MindSporeLite(Path(str(tools["mindspore_lite_python"])).expanduser())
    pieces = _pieces(variant, samples)
    answers = lite.run(variant.folder / MODEL_MINDIR, pieces, timeout_s=_TIMEOUT_S)
    names = [str(item["name"]) for item in variant.outputs]
    rows = [dict(zip(names, answer.values(), strict=True)) for answer in answers]  # MindIR may rename outputs
    count = len(next(iter(samples.values())))
    return {name: np.concatenate([row[name] for row in rows])[:count] for name in names}


def _pieces(variant: Variant, samples: Mapping[str, Array]) -> Sequence[dict[str, Array]]:
    """Cut the samples into batches of the graph's own size, the last one filled up by its last sample.

    A graph whose batch varies takes one sample at a time.
    """
    first = variant.inputs[0]["shape"][0] if variant.inputs and variant.inputs[0]["shape"] else 1
    size = first if isinstance(first, int) else 1
    count = len(next(iter(samples.values())))
    filled = np.minimum(np.arange(-(-count // size) * size), count - 1)
    return [
        {name: array[filled[start : start + size]] for name, array in samples.items()}
        for start in range(0, count, size)
    ]
