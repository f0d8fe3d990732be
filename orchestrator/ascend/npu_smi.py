"""What `npu-smi` prints, in all the layouts that it has had.

The table changes from card to card: one chip per NPU, two chips per card with a `Device` column, two dies with `Phy-ID`, no
`Chip` column at all, with HBM or without. So a row is read by the titles above it, never by its columns. The program is
slow (seconds on a full machine), so an answer is kept for a while.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from orchestrator.core.errors import DeviceError

Health = Literal["ok", "warn", "bad", "unknown"]

_HEALTH: Final[Mapping[str, Health]] = {"ok": "ok", "warning": "warn", "alarm": "bad", "critical": "bad"}
_TITLE: Final = re.compile(r"NPU ID|NPU Util\(%\)|Process [a-z]+(?:\(MB\))?|\S+")
_CELL: Final = re.compile(r"\d+\s*/\s*\d+|\S+")
_VERSION: Final = re.compile(r"npu-smi\s+(\S+)\s+Version:\s*(\S+)")
_PAIR: Final = re.compile(r"\s*([^:]+?)\s*:\s*(.*?)\s*$")
_WATCH_TITLE: Final = re.compile(r"[A-Za-z][\w ]*?\([^)]*\)")
_NO_DCMI: Final = "dcmi module initialize failed"
_KEPT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip (or die) of the table; None where the layout does not say, or says `NA`.

    Attributes:
        npu: Number of the card.
        chip: Number of the chip on the card.
        logical: Device number as programs count it; not the card's number where a card has two chips.
        name: E.g. `310P3`; `soc_name` adds the vendor's prefix.
        health: As judged from the vendor's word, `OK`, `Warning`, `Alarm`, `Critical`, `UNKNOWN`.
    """

    npu: int
    chip: int | None
    logical: int | None
    name: str
    health: Health
    health_word: str
    bus_id: str
    power_w: float | None
    temperature_c: float | None
    used_percent: float | None
    memory_mb: tuple[int, int] | None
    hbm_mb: tuple[int, int] | None

    @property
    def models_mb(self) -> tuple[int, int] | None:
        """Memory used and there where models lie: HBM where the card has it."""
        return self.hbm_mb if self.hbm_mb is not None and self.hbm_mb[1] else self.memory_mb

    @property
    def soc_name(self) -> str:
        """Name as ATC takes it, where the table gives more than a family's."""
        return self.name if self.name.startswith("Ascend") else f"Ascend{self.name}"


@dataclass(frozen=True, slots=True)
class NpuSmi:
    """The whole table: versions of the tool and of the driver, the chips in its order, and (pid, memory in MB) of each process."""

    tool: str
    driver: str
    chips: tuple[Chip, ...]
    processes: tuple[tuple[int, int], ...] = ()


def parse_table(text: str) -> NpuSmi:
    """Read the output of `npu-smi info`.

    Raises:
        DeviceError: There is no table of chips in it.
    """
    version = _VERSION.search(text)
    chips: list[Chip] = []
    processes: list[tuple[int, int]] = []
    titles: list[list[list[str]]] = []
    rows: list[list[str]] = []
    for line in (line.strip() for line in text.splitlines()):
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if _is_title(cells):
            titles = [[_TITLE.findall(cell) for cell in cells]] if "NPU" in cells[0] else [*titles, _titles(cells)]
            rows = []
        elif len(titles) == 2 and len(cells) == len(titles[0]):
            rows.append(cells)
            if len(rows) == 2:
                chips.append(_chip(_fields(titles, rows), len(chips)))
                rows = []
        elif len(titles) == 1 and len(cells) == len(titles[0]):
            row = dict(_named(titles[0], cells))
            pid, memory = _integer(row.get("Process id")), _integer(row.get("Process memory(MB)"))
            if pid is not None and memory is not None:
                processes.append((pid, memory))
    if not chips:
        raise DeviceError("npu-smi printed no table of chips", hint="run `npu-smi info` and look at what it says")
    return NpuSmi(version[1] if version else "", version[2] if version else "", tuple(chips), tuple(processes))


def parse_pairs(text: str) -> list[dict[str, str]]:
    """Read `key : value` lines, as `-l` and `-t usages|common|memory|board|health` print; a repeated key starts a new part."""
    parts: list[dict[str, str]] = []
    for line in text.splitlines():
        found = _PAIR.fullmatch(line)
        if found is None:
            continue
        if not parts or found[1] in parts[-1]:
            parts.append({})
        parts[-1][found[1]] = found[2]
    return parts


def parse_columns(text: str) -> list[dict[str, str]]:
    """Read the columns of `npu-smi info -m`: titles and values are apart by two spaces or more."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    return [dict(zip(lines[0], row, strict=False)) for row in lines[1:] if len(row) == len(lines[0])]


def parse_watch(text: str) -> list[dict[str, str]]:
    """Read `npu-smi info watch`: titles end with a unit in parentheses."""
    lines = [line.strip().strip('"') for line in text.splitlines() if line.strip()]
    head = next((line for line in lines if line.startswith("NpuID")), "")
    titles: list[str] = _WATCH_TITLE.findall(head)
    rows = (line.split() for line in lines if line[:1].isdigit())
    return [dict(zip(titles, row, strict=True)) for row in rows if len(row) == len(titles)]


def parse_processes(text: str) -> list[tuple[int, str, int]]:
    """Read `npu-smi info -t proc-mem`: (pid, name, memory in MB) of each process on the card."""
    row = re.compile(r"Process id:\s*(\d+)\s+Process name:\s*(\S*)\s+Process memory\(MB\):\s*(\d+)")
    return [(int(pid), name, int(memory)) for pid, name, memory in row.findall(text)]


def query(program: str = "npu-smi", *, timeout_s: float = 30.0, fresh: bool = False) -> NpuSmi:
    """Run `npu-smi info`, or return its answer of the last 30 s.

    Raises:
        DeviceError: It is absent, fails, hangs, or prints something else.
    """
    kept = _answers.get(program)
    if kept is not None and not fresh and time.monotonic() - kept[0] < _KEPT_S:
        return kept[1]
    found = parse_table(_run(program, timeout_s))
    _answers[program] = (time.monotonic(), found)
    return found


_answers: Final[dict[str, tuple[float, NpuSmi]]] = {}


def _run(program: str, timeout_s: float) -> str:
    try:
        done = subprocess.run(
            [program, "info"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"npu-smi gave no answer in {timeout_s:g} s", hint="the driver may hang; look at `dmesg`, restart the card"
        ) from error
    except OSError as error:
        raise DeviceError(f"cannot run {program}: {error.strerror}", hint="install the Ascend driver") from error
    said = f"{done.stdout}\n{done.stderr}"
    if _NO_DCMI in said:
        number = re.search(r"ret is (-?\d+)", said)
        raise DeviceError(
            f"npu-smi cannot reach the driver (dcmi error {number[1] if number else 'unknown'})",
            hint="another container or user may hold the device, or /dev/davinci_manager and the driver are not mounted",
        )
    if done.returncode != 0:
        last = said.strip().splitlines()[-1][:300] if said.strip() else "it printed nothing"
        raise DeviceError(f"npu-smi failed with exit code {done.returncode}: {last}", hint="run `npu-smi info` by hand")
    return done.stdout


def _is_title(cells: list[str]) -> bool:
    return any(cell.startswith(("Health", "Bus-Id", "Process id")) for cell in cells)


def _titles(cells: list[str]) -> list[list[str]]:
    return [_TITLE.findall(cell) for cell in cells]


def _fields(titles: list[list[list[str]]], rows: list[list[str]]) -> dict[str, str]:
    return dict(_named(titles[0], rows[0])) | dict(_named(titles[1], rows[1]))


def _named(titles: list[list[str]], cells: list[str]) -> Iterator[tuple[str, str]]:
    for names, cell in zip(titles, cells, strict=True):
        yield from zip(names, _CELL.findall(cell), strict=False)


def _chip(fields: Mapping[str, str], position: int) -> Chip:
    word = fields.get("Health", "")
    logical = _integer(fields.get("Device") or fields.get("Phy-ID"))
    npu = _integer(fields.get("NPU") or fields.get("NPU ID"))
    if npu is None:
        raise DeviceError(f"npu-smi printed a chip without a number: {dict(fields)}", hint="run `npu-smi info` by hand")
    return Chip(
        npu=npu,
        chip=_integer(fields.get("Chip")),
        logical=position if logical is None else logical,
        name=fields.get("Name", ""),
        health=_HEALTH.get(word.lower(), "unknown"),
        health_word=word,
        bus_id=fields.get("Bus-Id", ""),
        power_w=_number(fields.get("Power(W)")),
        temperature_c=_number(fields.get("Temp(C)")),
        used_percent=_number(fields.get("AICore(%)") or fields.get("NPU Util(%)")),
        memory_mb=_ratio(fields.get("Memory-Usage(MB)")),
        hbm_mb=_ratio(fields.get("HBM-Usage(MB)")),
    )


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _ratio(text: str | None) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)\s*/\s*(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else None
