"""`npu-smi` in every layout it has had, and when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import npu_smi_texts as texts

from orchestrator.ascend.npu_smi import parse_columns, parse_pairs, parse_processes, parse_table, parse_watch, query
from orchestrator.core.errors import DeviceError


def test_one_chip_per_npu() -> None:
    table = parse_table(texts.ONE_CHIP_PER_NPU)
    assert (table.tool, table.driver) == ("23.0.rc3", "23.0.rc2.3")
    first, second = table.chips
    assert (first.npu, first.chip, first.logical, first.name, first.soc_name) == (0, 0, 0, "910A", "Ascend910A")
    assert (first.health, first.bus_id, first.power_w, first.temperature_c) == ("ok", "0000:C1:00.0", 73.4, 44)
    assert (first.memory_mb, first.hbm_mb) == ((4565, 15137), (30710, 32768))
    assert (second.npu, second.logical, second.health, second.health_word) == (1, 1, "warn", "Warning")
    assert second.used_percent == 7


def test_two_chips_on_one_card_count_by_the_device_column() -> None:
    first, second = parse_table(texts.TWO_CHIPS_PER_CARD).chips
    assert (first.npu, first.chip, first.logical) == (2, 0, 0)
    assert (second.npu, second.chip, second.logical) == (2, 1, 1)
    assert first.bus_id == second.bus_id
    assert (first.power_w, first.hbm_mb, first.memory_mb) == (None, None, (1529, 44280))
    assert first.soc_name == "Ascend310P3"


def test_two_dies_and_a_power_of_dash() -> None:
    first, second = parse_table(texts.TWO_DIES_PER_NPU).chips
    assert (first.power_w, second.power_w) == (178.5, None)
    assert (second.npu, second.chip, second.logical) == (0, 1, 1)
    assert (second.soc_name, second.hbm_mb) == ("Ascend910", (3195, 65536))


def test_a_table_without_a_chip_column() -> None:
    (chip,) = parse_table(texts.NO_CHIP_COLUMN).chips
    assert (chip.npu, chip.chip, chip.logical, chip.name) == (0, None, 0, "950PR")
    assert (chip.used_percent, chip.memory_mb, chip.hbm_mb) == (3, (0, 0), (4439, 86016))


def test_sub_commands() -> None:
    assert parse_pairs(texts.USAGES)[0]["HBM Capacity(MB)"] == "32768"
    assert [part["Serial Number"] for part in parse_pairs(texts.LIST)] == ["S0", "S1"]
    assert parse_columns(texts.MAPPING)[0]["Chip Name"] == "950PR"
    assert parse_columns("") == []
    assert parse_processes(texts.PROCESSES) == [(395864, "power_test", 5118)]
    assert parse_watch(texts.WATCH)[0]["AI Core(%)"] == "0"
    assert parse_watch(texts.WATCH)[0]["Pwr(W)"] == "13.4"


@pytest.mark.parametrize("word", ["OK", "Warning", "Alarm", "Critical", "UNKNOWN", "odd"])
def test_health_words(word: str) -> None:
    expected = {"OK": "ok", "Warning": "warn", "Alarm": "bad", "Critical": "bad"}.get(word, "unknown")
    text = texts.ONE_CHIP_PER_NPU.replace("OK   ", word)
    assert parse_table(text).chips[0].health == expected


@pytest.mark.parametrize("text", ["", "no devices", "| NPU |\n", texts.PROCESSES, "| a | b | c |\n" * 9])
def test_no_table(text: str) -> None:
    with pytest.raises(DeviceError, match="no table"):
        parse_table(text)


def test_answers_are_kept(tmp_path: Path) -> None:
    program = texts.fake(tmp_path, texts.TWO_CHIPS_PER_CARD)
    assert query(str(program)) is query(str(program))
    assert (tmp_path / "calls").read_text() == "info\n"
    query(str(program), fresh=True)
    assert (tmp_path / "calls").read_text() == "info\ninfo\n"


@pytest.mark.parametrize(
    ("text", "code", "sleep_s", "message"),
    [
        ("dcmi module initialize failed. ret is -8005\n", 1, 0, "dcmi error -8005"),
        ("dcmi module initialize failed. ret is -8005\n", 0, 0, "dcmi error -8005"),
        ("something else\n", 3, 0, "exit code 3: something else"),
        ("", 3, 0, "it printed nothing"),
        ("", 0, 0, "no table"),
        (texts.TWO_CHIPS_PER_CARD, 0, 5, r"no answer in 0\.3 s"),
    ],
)
def test_failures(tmp_path: Path, text: str, code: int, sleep_s: float, message: str) -> None:
    program = texts.fake(tmp_path, text, code=code, sleep_s=sleep_s)
    with pytest.raises(DeviceError, match=message):
        query(str(program), timeout_s=0.3 if sleep_s else 10)
    assert (tmp_path / "calls").exists(), "the fake ran"


def test_absent_program(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot run"):
        query(str(tmp_path / "absent"))
