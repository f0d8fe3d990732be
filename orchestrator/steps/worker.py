"""`python -m orchestrator.steps.worker segment.json`: runs a segment, the same locally and on a remote site.

For each step: gather its inputs, settle its fingerprint, reuse a stored result or run the step, commit what it left,
and only then write the completion manifest (`Store.put_result`), which alone means success. Stops at the first step
that fails; the engine decides whether to hand the rest over again.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

from orchestrator.bundle.store import Store
from orchestrator.core import faults
from orchestrator.core.digests import sha256_file
from orchestrator.core.errors import InfraError, InternalError, Interrupted, OrchestratorError, UsageError
from orchestrator.core.files import private_folder
from orchestrator.core.processes import die_with_parent
from orchestrator.plan.fingerprint import fingerprint_of, parts_of
from orchestrator.plan.gates import judge_result
from orchestrator.plan.model import Draft
from orchestrator.steps.api import SiteInfo, Step, StepContext, StepResult
from orchestrator.steps.events import BoundEvents, EventWriter, check_metric
from orchestrator.steps.results import stored_result
from orchestrator.steps.segment import Segment, SegmentStep, work_folder
from orchestrator.steps.site_file import wait_for_site
from orchestrator.steps.user_code import describe_failure


class _AlreadyReported(Exception):
    """A gate was missed; the event that carries the step's result has said so."""

    def __init__(self, error: OrchestratorError) -> None:
        super().__init__(error.message)
        self.error = error


def run_segment(segment: Segment, events: EventWriter) -> int:
    """Run all steps; returns the exit code of the first error, or 0."""
    store = Store(segment.store)
    outputs: dict[str, Mapping[str, str]] = dict(segment.known)
    for item in segment.steps:
        draft = item.draft
        try:
            outputs[draft.name] = _settle_and_run(segment, item, store, outputs, events)
        except _AlreadyReported as said:
            return said.error.exit_code
        except Interrupted:
            raise
        except OrchestratorError as error:
            events.write("failed", draft.name, error=error.to_json())
            return error.exit_code
        except Exception as error:  # noqa: BLE001  the top loop of this process: a bug of ours must reach the engine too
            events.write("failed", draft.name, error=_unexpected(error).to_json())
            return 3
    return 0


def _settle_and_run(
    segment: Segment,
    item: SegmentStep,
    store: Store,
    known: Mapping[str, Mapping[str, str]],
    events: EventWriter,
) -> Mapping[str, str]:
    draft = item.draft
    inputs = {i.name: known[i.step][i.output] for i in draft.inputs}
    parts = parts_of(draft, inputs)
    fingerprint = fingerprint_of(parts)
    result = stored_result(store, fingerprint)
    event = "reused"
    if result is None or float(result["started_at"]) < item.newer_than:
        event = "finished"
        log = segment.log(draft.name, item.attempt)
        events.write("started", draft.name, attempt=item.attempt, fingerprint=fingerprint, parts=parts, log=str(log))
        with _Redirected(log):
            result = _run_and_tell(segment, item, store, inputs, fingerprint, parts, events)
    miss = judge_result(draft.name, draft.spec, result)
    verdict = miss.to_json() if miss else None
    events.write(event, draft.name, fingerprint=fingerprint, parts=parts, result=result, verdict=verdict)
    if miss is not None:
        raise _AlreadyReported(miss)
    return {name: ref["digest"] for name, ref in result["outputs"].items()}


def _run_and_tell(segment: Segment, item: SegmentStep, *rest: Any) -> dict[str, Any]:
    """Run the step; what stopped it stands at the end of its log, where people look."""
    try:
        return _run(segment, item, *rest)
    except OrchestratorError as error:
        print(f"{item.draft.name} failed: {error}", file=sys.stderr)
        raise


def _run(
    segment: Segment,
    item: SegmentStep,
    store: Store,
    inputs: Mapping[str, str],
    fingerprint: str,
    parts: Mapping[str, Any],
    events: EventWriter,
) -> dict[str, Any]:
    draft, began = item.draft, time.time()
    _check_sources(segment.recipe_dir, draft)
    for digest in inputs.values():
        store.verify(digest, content=True)
    context = _context(segment, item, store, inputs, fingerprint, events)
    faults.point(f"worker.{draft.kind}.before_run")
    result = _call(cast("Step", importlib.import_module(draft.about.module).run), context)
    metrics = {name: check_metric(name, value, draft.name) for name, value in result.metrics.items()}
    faults.point(f"worker.{draft.kind}.before_commit")
    stored = _commit(store, result)
    shutil.rmtree(context.out, ignore_errors=True)
    record: dict[str, Any] = {
        "fingerprint": fingerprint,
        "parts": dict(parts),
        "step": draft.name,
        "kind": draft.kind,
        "execution": segment.execution,
        "outputs": stored,
        "inputs": dict(inputs),
        "metrics": metrics,
        "facts": dict(result.facts),
        "started_at": began,
        "ended_at": time.time(),
    }
    faults.point(f"worker.{draft.kind}.before_manifest")
    store.put_result(fingerprint, record)
    faults.point(f"worker.{draft.kind}.after_manifest")
    return record


def _context(
    segment: Segment,
    item: SegmentStep,
    store: Store,
    inputs: Mapping[str, str],
    fingerprint: str,
    events: EventWriter,
) -> StepContext:
    work, out = _folders(segment, item, fingerprint)
    return StepContext(
        step=item.draft.name,
        kind=item.draft.kind,
        spec=item.draft.spec,
        recipe_dir=segment.recipe_dir,
        inputs={name: store.path(digest) for name, digest in inputs.items()},
        work=work,
        out=out,
        site=_site_info(segment, item.draft),
        attempt=item.attempt,
        events=BoundEvents(events, item.draft.name),
    )


def _folders(segment: Segment, item: SegmentStep, fingerprint: str) -> tuple[Path, Path]:
    """Return the work folder of the fingerprint and, new and empty, the out folder of this attempt."""
    work = private_folder(work_folder(segment.work, fingerprint))
    if item.clean:
        shutil.rmtree(work)
        private_folder(work)
    out = work / f"out-{segment.execution}-{item.attempt}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return work, out


def _call(step: Step, context: StepContext) -> StepResult:
    """Run the step and come back to a process that is as it was, whatever the user's code did to it."""
    pid, folder, streams, on_term = os.getpid(), Path.cwd(), (sys.stdout, sys.stderr), signal.getsignal(signal.SIGTERM)
    mask = os.umask(0)
    os.umask(mask)
    try:
        return step(context)
    except Exception:
        raise
    except BaseException as error:  # such as a KeyboardInterrupt of the user's own: must not look like a dead worker
        raise describe_failure(error, context.step, context.recipe_dir) from error
    finally:
        if os.getpid() != pid:
            os._exit(0)  # a fork of the user's that came back; there is one worker, and it is the other one
        os.umask(mask)
        os.chdir(folder)
        sys.stdout, sys.stderr = streams
        signal.signal(signal.SIGTERM, on_term)


def _commit(store: Store, result: StepResult) -> dict[str, Any]:
    stored: dict[str, Any] = {}
    for name, output in result.outputs.items():
        manifest = store.commit(output.folder, output.media_type)
        stored[name] = {
            "digest": manifest.digest,
            "media_type": manifest.media_type,
            "size_bytes": manifest.size_bytes,
            "files": len(manifest.files),
        }
    return stored


def _check_sources(folder: Path, draft: Draft) -> None:
    for name, digest in draft.sources.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            raise UsageError(
                f"{name} changed after the plan was made",
                place=draft.name,
                hint="run the same command again; the plan is made anew",
            )


def _site_info(segment: Segment, draft: Draft) -> SiteInfo:
    if not draft.about.needs_ray:
        return SiteInfo(segment.site_name, segment.allow_cpu, segment.site_state)
    address, token_path = wait_for_site(segment.site_file)
    return SiteInfo(segment.site_name, segment.allow_cpu, segment.site_state, address, token_path)


def _unexpected(error: Exception) -> InternalError:
    tail = "".join(traceback.format_exception(error))[-4000:]
    print(tail, file=sys.stderr, flush=True)
    return InternalError(
        f"{type(error).__name__}: {error}",
        hint="this is a bug in orchestrator, or a broken installation; the step's log has the trace",
        details={"traceback": tail},
    )


class _Redirected:
    """Sends file descriptors 1 and 2 to a step's log, for native code and child processes too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved: list[int] = []

    def __enter__(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _flush()
        self._saved = [os.dup(1), os.dup(2)]
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)

    def __exit__(self, *_: object) -> None:
        _flush()
        for target, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, target)
            os.close(saved)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:  # the user's code may have closed it; its file descriptor is ours all the same
            stream.flush()


def _on_signal(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(f"the worker was asked to stop by {signal.Signals(number).name}")


def main(arguments: list[str]) -> int:
    """Run the segment named by the first argument; the second, if any, is the parent we die with."""
    if len(arguments) > 1:
        die_with_parent(int(arguments[1]))
    segment = Segment.read(Path(arguments[0]))
    signal.signal(signal.SIGTERM, _on_signal)
    sys.path.insert(0, str(segment.recipe_dir))
    events = EventWriter(segment.events)
    events.start_heartbeat()
    try:
        try:
            code = run_segment(segment, events)
        except Interrupted as error:
            events.write("interrupted", error=error.to_json())
            code = error.exit_code
        events.write("segment_finished", exit_code=code)
        events.close()
    except OSError:  # the disk is full, say: nothing can be told by events any more, the exit code still can
        traceback.print_exc()
        return InfraError.exit_code
    return code


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # All is committed and said. Ray and torch would take seconds to take themselves down, for nothing.
    os._exit(exit_code)
