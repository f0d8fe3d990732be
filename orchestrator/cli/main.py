"""`orchestrate`: finds the verb, imports only that verb's module, and turns errors into messages and exit codes."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from orchestrator import __version__
from orchestrator.core.errors import InternalError, Interrupted, OrchestratorError, UsageError

if TYPE_CHECKING:
    from typer import Typer

VERBS: Final[dict[str, dict[str, str]]] = {
    "Execute": {
        "run": "Run a recipe: train, check, export, bundle, register, deploy.",
        "plan": "Say what `run` would do, step by step, and why.",
        "validate": "Check a recipe and an environment without running anything.",
        "resume": "Go on with an execution that failed or was stopped.",
        "cancel": "Stop an execution, from any terminal.",
        "status": "Show executions, or one execution's steps.",
        "logs": "Print a step's log; -f follows it.",
        "lineage": "Trace any id, digest or answer to its origin and its uses.",
    },
    "Convert": {
        "coverage": "Say whether every node of an ONNX file runs on a SoC.",
        "forecast": "Say what fp16 will make of an ONNX file, and what to keep in fp32.",
        "compile": "Compile an ONNX file for a SoC.",
        "recheck": "Judge stored parity measurements again, by other limits.",
    },
    "Serve": {
        "promote": "Roll a registered or packed model out to an endpoint.",
        "rollback": "Let an earlier generation serve again, at once.",
        "rollout": "See how rollouts go; pause, resume, abort, approve, watch.",
        "endpoint": "List endpoints; ask, scale or delete one; make tokens for clients.",
        "capacity": "Say how many slots carry a load within a latency, from measured curves.",
        "top": "Show live what the pools do: requests, queues, batches, devices.",
        "console": "Serve a page to watch rollouts on, and to approve, pause, abort and roll back.",
        "up": "Bring the local site up.",
        "down": "Take the local site down; ledger, store and MLflow data stay.",
        "site": "Show what runs on a site.",
    },
    "Set up": {
        "init": "Write a working recipe to begin with.",
        "schema": "Print the JSON Schema of recipes or environments.",
        "doctor": "Check Python, packages, Ray, MLflow and devices.",
        "ui": "Open the MLflow pages.",
        "gc": "Remove what no execution or endpoint needs any more.",
    },
}
_GARBAGE_AFTER: Final = 50_000
"""Objects that are made before they are looked through for garbage: most commands only import, and imports leave none."""
_ABOUT: Final = "Train on NVIDIA, serve on Huawei Ascend: one recipe, one command."
_ALL: Final = {verb: line for room in VERBS.values() for verb, line in room.items()}


def _help() -> str:
    width = max(map(len, _ALL)) + 2
    lines = ["Usage: orchestrate VERB [OPTIONS]", "", f"  {_ABOUT}", ""]
    for room, verbs in VERBS.items():
        lines += [f"{room}:", *(f"  {verb:<{width}}{line}" for verb, line in verbs.items()), ""]
    lines += [
        "Every verb has --help with examples, and --json for machines.",
        "Exit codes: 0 done, 1 a gate said no, 2 usage or recipe error, 3 infrastructure, 4 conflict,",
        "            5 waiting, 6 user code failed, 130 interrupted.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    gc.set_threshold(_GARBAGE_AFTER)
    _open_streams()
    args = sys.argv[1:] if arguments is None else arguments
    if not args or args[0] in {"--help", "-h", "help"}:
        print(_help())
        sys.exit(0 if args else 2)
    if args[0] in {"--version", "-V"}:
        print(f"orchestrate {__version__}")
        sys.exit(0)
    sys.exit(_run(args))


def _open_streams() -> None:
    """Make sure that stdin, stdout and stderr are open (`>&-`), lest the ledger gets their number, and take any text."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))
        getattr(sys, name).reconfigure(errors="replace")  # a terminal without UTF-8, a file name with odd bytes


def _run(args: list[str]) -> int:
    verb, rest, as_json = args[0], args[1:], "--json" in args
    try:
        _check_text(args)
        if verb not in _ALL:
            raise UsageError(f"there is no verb {verb!r}", hint=_suggestion(verb))
        code = _call(importlib.import_module(f"orchestrator.cli.{verb}").app, verb, rest)
    except BrokenPipeError:
        return _nobody_reads()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer's own answer to it is exit code 1: a gate said no
            return _nobody_reads()
        raise
    except OrchestratorError as error:
        return _report(error, as_json=as_json)
    except Exception as error:  # noqa: BLE001  one of the two top loops: a bug must not look like a gate's no (exit 1)
        return _report(_bug(error), as_json=as_json)
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    if code == Interrupted.exit_code:  # typer turns a KeyboardInterrupt into this exit code
        return _report(Interrupted("interrupted", hint="the same command goes on"), as_json=as_json)
    return code if isinstance(code, int) else 0


def _check_text(args: list[str]) -> None:
    for number, text in enumerate(args, start=1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"argument {number} is not UTF-8: {text!r}", hint="rename the file, or correct the text"
            ) from error


def _nobody_reads() -> int:
    """The reader (`| head`) has gone and there is nobody to tell; not even the buffer may be flushed at exit."""
    from orchestrator.cli.output import mute

    mute()
    return 0


def _call(app: Typer, verb: str, rest: list[str]) -> Any:
    from typer.exceptions import TyperException

    try:
        return app(rest, prog_name=f"orchestrate {verb}", standalone_mode=False)
    except TyperException as error:
        raise UsageError(error.format_message(), hint=f"see `orchestrate {verb} --help`") from error


def _suggestion(verb: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(verb, _ALL, n=1)
    return f"did you mean `orchestrate {close[0]}`?" if close else "`orchestrate --help` lists the verbs"


def _bug(error: Exception) -> InternalError:
    import traceback

    from orchestrator.core.redact import redact_text

    trace = redact_text("".join(traceback.format_exception(error)))
    print(trace, file=sys.stderr)
    return InternalError(
        f"{type(error).__name__}: {error}",
        hint="this is a bug in orchestrator or a broken installation; please report it with the trace above",
        details={"traceback": trace[-4000:]},
    )


def _report(error: OrchestratorError, *, as_json: bool) -> int:
    from orchestrator.cli.output import print_json
    from orchestrator.core.redact import redact_text

    if as_json:
        print_json(error.to_json())
    else:
        print(redact_text(f"error: {error}"), file=sys.stderr)
    return error.exit_code
