"""A contract fake of ATC: the process contract that the vendor's source shows (texts, exit codes, by-products), no compiler.

`FakeAtc.install(folder, "segv")` writes `<folder>/bin/atc`, `set_env.sh` and `version.cfg`; the list says what each start does,
the last one repeats; `loadable` makes an om that the fake pyACL runs. Every start and every fault is written to `fired.jsonl`, so that a test can assert that it happened.
Run as a program it is ATC itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START = "ATC start working now, please wait for a moment."
SUCCESS = "ATC run success, welcome to the next use."
FAILED = "ATC run failed, Please check the detail log, Try 'atc --help' for more information"
TRACE = "TraceBack (most recent call last):\n        [Process:%d] inner frame"
ERRORS = {
    "E10001": "E10001: Value [banana] for parameter [--oo_level] is invalid. Reason: it must be O1 or O3.",
    "E10016": "E10016: Op name [pixels] specified in [--input_shape] is not found in the model.",
    "E13010": "E13010: No operator plugin is registered for Op: block/gelu, optype: Gelu.",
    "E19010": "E19010: No parser is registered for Op [block/gelu, optype [Gelu]].",
    "EZ3002": "EZ3002: Optype [Conv2D] of Ops kernel [AIcoreEngine] is unsupported. Reason: The data type is not supported.",
    "EZ3003": "EZ3003: No supported Ops kernel and engine are found for [block/norm], optype [GroupNorm].",
    "EZ9010": "EZ9010: No parser is registered for Op [block/gelu, optype [Gelu]].",
    "E19999": "E19999: Inner Error!\nE19999: [PID: 7] The opp version of the model does not match the current opp run package",
    "E40020": "E40020: Failed to import Python module [decorator]. Reason: No module named 'decorator'.",
    "E10044": "E10044: The available memory is [1024 KB], which is less than the required minimum [2097152 KB].",
    "E10501": "E10501: IR for Op block/swish with optype Swish is not registered.",
    "EE9X": "Unlisted_Error(E17777): something that no table has",
}
REQUIRED = ("model", "output", "framework", "soc_version")


class FakeAtc:
    """An installed fake."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "bin" / "atc"

    @classmethod
    def install(cls, folder: Path, *behaviours: str) -> FakeAtc:
        fake = cls(folder)
        fake.program.parent.mkdir(parents=True)
        fake.program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__).absolute()} {folder} "$@"\n')
        fake.program.chmod(0o755)
        (folder / "set_env.sh").write_text(f"export ASCEND_TOOLKIT_HOME={folder}\nexport FAKE_CANN=yes\n")
        (folder / "version.cfg").write_text("# version\ntoolkit_installed_version=[8.1.RC1:8.1.RC1]\n")
        (folder / "behaviours.json").write_text(json.dumps(list(behaviours) or ["ok"]))
        return fake

    @property
    def fired(self) -> list[dict[str, Any]]:
        path = self.folder / "fired.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def faults(self) -> list[str]:
        return [row["fault"] for row in self.fired if "fault" in row]

    def starts(self) -> list[dict[str, Any]]:
        return [row for row in self.fired if "argv" in row]

    def alive(self) -> list[int]:
        """Pids of this fake's processes that still run."""
        pids = {pid for row in self.fired for pid in row.get("pids", [])}
        return [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class _Run:
    def __init__(self, folder: Path, argv: list[str]) -> None:
        self.folder = folder
        self.argv = argv
        self.options = dict(item.removeprefix("--").split("=", 1) for item in argv if "=" in item)
        log = folder / "fired.jsonl"
        done = sum('"argv"' in line for line in log.read_text().splitlines()) if log.exists() else 0
        behaviours = json.loads((folder / "behaviours.json").read_text())
        self.behaviour = behaviours[min(done, len(behaviours) - 1)]
        environment = {k: v for k, v in os.environ.items() if k.startswith(("HOME", "ASCEND", "TE_", "FAKE", "TMPDIR"))}
        environment["SECRETS"] = ",".join(sorted(k for k in os.environ if "TOKEN" in k))
        self.note(argv=argv, behaviour=self.behaviour, pids=[os.getpid()], cwd=os.getcwd(), env=environment)

    def note(self, **row: Any) -> None:
        with (self.folder / "fired.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def fault(self, name: str, **more: Any) -> None:
        self.note(fault=name, **more)

    def output(self) -> Path:
        return Path(self.options["output"])

    def write_om(self, name: str = "", data: bytes = b"") -> None:
        path = self.output().with_name(self.output().name + name + ".om")
        path.write_bytes(data or b"IMOD" + json.dumps(self.options).encode() + bytes(256))

    def by_products(self) -> None:
        Path("fusion_result.json").write_text("[]")
        Path("kernel_meta").mkdir(exist_ok=True)
        Path("kernel_meta/te_conv.o").write_bytes(b"\x7fELF")

    def plog(self, text: str) -> None:
        folder = Path(os.environ["ASCEND_WORK_PATH"]) / "log/debug/plog"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"plog-{os.getpid()}_1.log").write_text(f"[INFO] start\n[ERROR] GE(1,atc.bin): {text}\n")

    def child(self, *, own_session: bool) -> int:
        sleeper = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
        return subprocess.Popen(sleeper, start_new_session=own_session).pid


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fail(*codes: str, text: str = "") -> int:
    say(FAILED)
    for code in codes:
        say(ERRORS.get(code, code))
    if text:
        say(text)
    say(TRACE % os.getpid())
    return 255


def succeed(run: _Run, *, name: str = "") -> int:
    run.write_om(name)
    run.by_products()
    say(SUCCESS)
    return 0


def check_report(run: _Run, rows: list[tuple[str, str, str]]) -> None:
    ops = [
        {"name": name, "type": kind, "result": "failed", "cause": [{"code": 1, "message": why}]}
        for name, kind, why in rows
    ]
    ops.append({"name": "conv1", "type": "ai.onnx::18::Conv", "result": "success"})
    body = {"name": "model", "result": "failed", "total": len(ops), "pass": 1, "fail": len(rows), "op": ops}
    Path(run.options.get("check_report", "check_result.json")).write_text(json.dumps(body))


def usage(run: _Run) -> int | None:
    """What ATC itself refuses of a command line."""
    missing = [name for name in REQUIRED if not run.options.get(name)]
    if missing:
        return fail(f"E10054: The required parameter [{missing[0]}] for ATC is empty.")
    gears = [n for n in ("dynamic_batch_size", "dynamic_image_size", "dynamic_dims") if n in run.options]
    if len(gears) > 1:
        return fail("E10009: [--dynamic_batch_size], [--dynamic_image_size] are mutually exclusive.")
    model = Path(run.options["model"])
    if not model.is_file():
        return fail(f"E10041: Failed to load the model from {model}.")
    for entry in filter(None, run.options.get("input_shape", "").split(";")):
        name = entry.rpartition(":")[0]
        if name.encode() not in model.read_bytes():
            return fail(f"E10016: Op name [{name}] specified in [--input_shape] is not found in the model.")
    return None


def behave(run: _Run) -> int:  # noqa: C901, PLR0911, PLR0912  one branch per fault, flat on purpose
    what = run.behaviour
    if what == "slow_start":
        run.fault(what)
        time.sleep(1.2)
        say(START)
        return usage(run) or succeed(run)
    say(START)
    sys.stdout.write("....")
    sys.stdout.flush()
    say("")
    refused = usage(run)
    if refused is not None:
        run.fault("usage")
        return refused
    if what == "ok":
        return succeed(run)
    if what == "loadable":
        asked, made = run.folder / "asked.json", run.output().with_name(run.output().name + ".om")
        asked.write_text(json.dumps(run.options))
        subprocess.run([sys.executable, str(Path(__file__).with_name("fake_om.py")), str(asked), str(made)], check=True)
        say(SUCCESS)
        return 0
    if what == "ok_arch":
        return succeed(run, name=f"_linux_{run.options.get('host_env_cpu', 'x86_64')}")
    if what == "ok_warnings":
        code = succeed(run)
        run.fault(what)
        say("W11001: Op conv1 does not hit the high-priority operator information library.")
        return code
    if what == "ok_weights":
        (run.output().parent / "weight").mkdir()
        (run.output().parent / "weight" / "part_0").write_bytes(b"w" * 64)
        return succeed(run)
    if what == "leaves_children":
        pids = [run.child(own_session=False), run.child(own_session=True)]
        run.fault(what, pids=pids)
        return succeed(run)
    if what == "unsupported":
        check_report(
            run,
            [
                ("block/gelu", "ai.onnx::20::Gelu", "The type is not supported."),
                ("block/norm", "ai.onnx::21::GroupNormalization", "The type is not supported."),
            ],
        )
        run.fault(what)
        return fail("E13010", "E16002: No ONNX parser is registered for optype Gelu.")
    if what == "silent_report":
        check_report(run, [("twice", "ai.onnx::18::Add", "The name is repeated in the graph.")])
        run.fault(what)
        return fail(text="An unknown error occurred. Please check the log.")
    if what in ERRORS:
        run.fault(what)
        run.plog("the real cause")
        return fail(what)
    if what == "no_code":
        run.fault(what)
        return fail(text="An unknown error occurred. Please check the log.")
    if what == "hang":
        pids = [run.child(own_session=False), run.child(own_session=True)]
        run.fault(what, pids=pids)
        time.sleep(600)
    if what == "segv":
        run.fault(what)
        say("half a line before the end")
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "segv_code":
        run.fault(what)
        return 139
    if what == "abort":
        run.fault(what)
        sys.stderr.write("terminate called after throwing an instance\n")
        os.abort()
    if what == "oom":
        run.fault(what)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "oom_code":
        run.fault(what)
        return 137
    if what == "no_file":
        run.fault(what)
        say(SUCCESS)
        return 0
    if what == "zero_bytes":
        run.output().with_name(run.output().name + ".om").touch()
        run.fault(what)
        say(SUCCESS)
        return 0
    if what == "text_only":
        run.write_om()
        run.fault(what)
        say(SUCCESS)
        return 255
    if what == "no_text":
        run.write_om()
        run.fault(what)
        return 0
    if what == "garbage":
        run.fault(what)
        sys.stdout.buffer.write(bytes(range(256)) * 40 + b"\n")
        sys.stdout.flush()
        return fail("E19999")
    if what == "garbage_report":
        Path(run.options["check_report"]).write_bytes(b'{"op": [[[[ \xff\xfe')
        run.fault(what)
        return fail("E13010")
    if what == "huge":
        line = b"x" * 199 + b"\n"
        for _ in range(400):
            sys.stdout.buffer.write(line * 1000)
        sys.stdout.flush()
        run.fault(what)
        return succeed(run)
    raise SystemExit(f"unknown behaviour {what}")


def main() -> int:
    folder, argv = Path(sys.argv[1]), sys.argv[2:]
    if argv == ["--help"]:
        say("usage: atc <args>")
        return 0
    return behave(_Run(folder, argv))


if __name__ == "__main__":
    sys.exit(main())
