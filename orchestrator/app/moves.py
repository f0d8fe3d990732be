"""What a run did to each target, in one row: what was foreseen, what it costs, and whether anything was compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.ledger import StepRow


def moves(steps: Sequence[StepRow]) -> list[dict[str, Any]]:
    """Return one row per target that was forecast or compiled.

    Args:
        steps: Of one execution, in order.

    Returns:
        `{target, sqnr_db, kept, cost_flops_share, task_drop, status, compiled, skipped}`; None where it is not known.
        `sqnr_db` is of the worst sample; None there means that the twin's outputs are identical or were not made.
    """
    rows: dict[str, dict[str, Any]] = {}
    for step in steps:
        if step.kind not in {"forecast", "compile"} or step.state != "succeeded":
            continue
        row = rows.setdefault(step.name.removeprefix(f"{step.kind}-"), _empty())
        if step.kind == "forecast":
            row["sqnr_db"] = step.metrics.get("sqnr_db")
            row["kept"] = len(step.facts.get("keep", ()))
            row["cost_flops_share"] = step.metrics.get("cost_flops_share")
            row["status"] = step.facts.get("status")
            prefix = "task_drop."
            row["task_drop"] = {k.removeprefix(prefix): v for k, v in step.metrics.items() if k.startswith(prefix)}
        else:
            row["compiled"], row["skipped"] = step.facts.get("compiled"), step.facts.get("skipped")
    return [{"target": target, **row} for target, row in rows.items()]


def describe(move: dict[str, Any]) -> str:
    """Return a row as a sentence for people."""
    parts: list[str] = []
    if move["status"]:
        worst = "identical" if move["sqnr_db"] is None else f"{move['sqnr_db']:.1f} dB at worst"
        parts.append(f"forecast {worst} ({move['status']})")
        parts += [f"{name} falls by {drop:.4g}" for name, drop in move["task_drop"].items() if drop > 0]
        if move["kept"]:
            parts.append(f"{move['kept']} nodes kept in fp32, {move['cost_flops_share']:.1%} of the FLOPs")
    if move["compiled"]:
        parts.append("compiled")
    elif move["skipped"]:
        parts.append(f"SKIPPED: {move['skipped']}")
    return "; ".join(parts)


def _empty() -> dict[str, Any]:
    return {
        "sqnr_db": None,
        "kept": None,
        "cost_flops_share": None,
        "task_drop": {},
        "status": None,
        "compiled": None,
        "skipped": None,
    }
