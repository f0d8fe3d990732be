"""The Markdown notes of the pages: what happened, and the chain that one can click along."""

from __future__ import annotations

from orchestrator.core.digests import short
from orchestrator.core.units import format_bytes, format_duration
from orchestrator.tracking.call import Call
from orchestrator.tracking.lineage import Lineage
from orchestrator.tracking.pages import model_page, run_page
from orchestrator.tracking.snapshot import ExecutionSnapshot, StepSnapshot

_MAX_ERROR_CHARS = 600


def execution_note(call: Call, lineage: Lineage) -> str:
    """Return the note of an execution: its steps, and the chain from training to what serves."""
    snapshot = call.snapshot
    lines = [
        f"**{_cell(snapshot.recipe)}** execution `{snapshot.id}`: {_cell(snapshot.state)}",
        "",
        "| step | kind | action | state | took | used | made |",
        "|---|---|---|---|---|---|---|",
    ]
    for step in snapshot.steps:
        used = " ".join(_model_link(call, lineage, digest) for digest in lineage.models_behind(step.inputs))
        made = " ".join(_made(call, lineage, step))
        cells = [_step_link(call, step.name), step.kind, step.action, _cell(step.state), _took(step), used, made]
        lines.append("| " + " | ".join(cells) + " |")
    lines += _problems(snapshot)
    return "\n".join(lines) + "\n"


def step_note(call: Call, lineage: Lineage, step: StepSnapshot) -> str:
    """Return the note of a step's run."""
    lines = [
        f"Step `{step.name}` ({step.kind}) of [{call.snapshot.id}]({_run_url(call, 'execution')}): {_cell(step.state)}"
    ]
    if step.reason:
        lines.append(f"\n{step.action}: {_cell(step.reason)}")
    if step.reused_from:
        lines.append(f"\nReused from execution `{step.reused_from}`: nothing was computed here.")
    for title, digests in (("Used", lineage.models_behind(step.inputs)), ("Made", [o.digest for o in step.outputs])):
        links = [_model_link(call, lineage, digest) for digest in digests if digest in call.model_ids]
        if links:
            lines.append(f"\n{title}: " + ", ".join(links))
    if step.deployment is not None:
        lines += ["", *_deployment(step)]
    if step.error:
        lines.append(f"\nError: {_cell(step.error)}")
    return "\n".join(lines) + "\n"


def model_note(call: Call, lineage: Lineage, digest: str) -> str:
    """Return the note of a model's page: where it came from and who used it, in this execution."""
    ref, maker = lineage.refs[digest], lineage.makers.get(digest)
    lines = ["| | |", "|---|---|", f"| digest | `{digest}` |", f"| kind | {ref.kind} |"]
    if ref.size_bytes:
        lines.append(f"| size | {format_bytes(ref.size_bytes)} |")
    if maker is not None:
        lines.append(f"| made by | {_step_link(call, maker.name)} |")
    sources = [_model_link(call, lineage, parent) for parent in lineage.parents(digest) if lineage.is_model(parent)]
    if sources:
        lines.append(f"| made from | {' '.join(sources)} |")
    users = [_step_link(call, step.name) for step in lineage.consumers(call.snapshot, digest)]
    if users:
        lines.append(f"| used by | {' '.join(users)} |")
    lines.append(f"| execution | [{call.snapshot.id}]({_run_url(call, 'execution')}) |")
    return "\n".join(lines) + "\n"


def _deployment(step: StepSnapshot) -> list[str]:
    live = step.deployment
    assert live is not None
    return [
        "| endpoint | generation | pool | device | bundle | answers at |",
        "|---|---|---|---|---|---|",
        f"| {live.endpoint} | {live.generation} | {live.pool} | {_cell(live.device)} | `{short(live.bundle)}` | {_cell(live.url)} |",
    ]


def _problems(snapshot: ExecutionSnapshot) -> list[str]:
    return [f"\n`{step.name}` failed: {_cell(step.error)}" for step in snapshot.steps if step.error]


def _took(step: StepSnapshot) -> str:
    if step.started_at_ms is None or step.ended_at_ms is None or step.action.startswith("REUSE"):
        return ""
    return format_duration((step.ended_at_ms - step.started_at_ms) / 1000)


def _made(call: Call, lineage: Lineage, step: StepSnapshot) -> list[str]:
    return [
        _model_link(call, lineage, ref.digest) if ref.digest in call.model_ids else f"{ref.kind} `{short(ref.digest)}`"
        for ref in step.outputs
    ]


def _step_link(call: Call, name: str) -> str:
    return f"[{name}]({_run_url(call, name)})" if name in call.run_ids else name


def _run_url(call: Call, name: str) -> str:
    return run_page(call.experiment_id, call.run_ids[name]).removeprefix("/")


def _model_link(call: Call, lineage: Lineage, digest: str) -> str:
    ref = lineage.refs.get(digest)
    text = f"{ref.kind if ref else 'artifact'} {short(digest)}"
    model_id = call.model_ids.get(digest)
    if model_id is None:
        return f"`{text}`"
    return f"[{text}]({model_page(call.experiment_id, model_id).removeprefix('/')})"


def _cell(text: str) -> str:
    """One line that cannot break a table."""
    return " ".join(text.split()).replace("|", "\\|")[:_MAX_ERROR_CHARS]
