"""The files of a forecast: the lists in the formats that ATC reads, each line's reason beside them, the report, the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.ascend.operators import ascend_types
from orchestrator.core.files import write_atomic, write_json
from orchestrator.graph.forecast.page import page
from orchestrator.graph.forecast.result import Forecast, KeptNode

FORECAST_JSON: Final = "forecast.json"
FORECAST_HTML: Final = "forecast.html"
KEEP_DTYPE: Final = "keep_dtype.cfg"
MODIFY_MIXLIST: Final = "modify_mixlist.json"
CUSTOMIZE_DTYPES: Final = "customize_dtypes.cfg"
KEEP_REASONS: Final = "keep_reasons.json"

_RENAMED: Final = (
    "names are those of the ONNX nodes; where the compiler fuses or splits a node its line has no effect, "
    "and `OpType::` with the Ascend-IR type is the way out"
)


def write_forecast(forecast: Forecast, folder: Path) -> tuple[Path, ...]:
    """Write all files into `folder`, made where it is missing; return their paths.

    `keep_dtype.cfg` is the list. `customize_dtypes.cfg` says the same with dtypes, which fails where a kernel lacks one;
    give ATC one of the two. `modify_mixlist.json` names only operators all of whose nodes are kept, so that it keeps no
    more than the forecast did.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = [*forecast.keep.must, *forecast.keep.should]
    texts = {
        FORECAST_HTML: page(forecast),
        KEEP_DTYPE: _lines(one.node for one in kept),
        CUSTOMIZE_DTYPES: _lines(_customized(one) for one in kept if one.inputs and "unknown" not in one.inputs),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    mixlist, left_out = _mixlist(kept)
    write_json(folder / FORECAST_JSON, forecast.to_json())
    write_json(folder / MODIFY_MIXLIST, mixlist)
    write_json(folder / KEEP_REASONS, _reasons(forecast, kept, left_out))
    names = (FORECAST_JSON, FORECAST_HTML, KEEP_DTYPE, MODIFY_MIXLIST, CUSTOMIZE_DTYPES, KEEP_REASONS)
    return tuple(folder / name for name in names)


def _lines(lines: Any) -> str:
    return "".join(f"{line}\n" for line in lines)


def _customized(one: KeptNode) -> str:
    return f"{one.node}::InputDtype:{','.join(one.inputs)},OutputDtype:{','.join(one.outputs)}"


def _mixlist(kept: Sequence[KeptNode]) -> tuple[dict[str, dict[str, list[str]]], dict[str, str]]:
    """Return the edits of the lists, and why some operators are not in them."""
    by_type: dict[str, list[KeptNode]] = {}
    for one in kept:
        for name in ascend_types(one.op_type)[:1]:
            by_type.setdefault(name, []).append(one)
    black: list[str] = []
    left_out: dict[str, str] = {}
    for name, nodes in sorted(by_type.items()):
        alike = sum({one.op_type: one.alike for one in nodes}.values())
        if len(nodes) == alike:
            black.append(name)
        else:
            left_out[name] = f"{len(nodes)} of {alike} nodes are kept; the list would keep all"
    return {"black-list": {"to-remove": [], "to-add": black}, "white-list": {"to-remove": [], "to-add": []}}, left_out


def _reasons(forecast: Forecast, kept: Sequence[KeptNode], left_out: dict[str, str]) -> dict[str, object]:
    return {
        "model": forecast.model,
        "status": forecast.status,
        "policy": forecast.policy.to_json(),
        "lines": [one.to_json() for one in kept],
        "cannot": [one.to_json() for one in forecast.keep.cannot],
        "proposals": [one.to_json() for one in forecast.keep.proposals],
        "not_in_modify_mixlist": left_out,
        "cost": forecast.after.cost.to_json(),
        "before": {"sqnr_db": forecast.before.sqnr_db, "cosine": forecast.before.cosine},
        "after": {"sqnr_db": forecast.after.sqnr_db, "cosine": forecast.after.cosine},
        "note": _RENAMED,
    }
