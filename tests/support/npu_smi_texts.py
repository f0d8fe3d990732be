"""What `npu-smi` prints, one text per documented layout; names and numbers are made up where the documents hide them."""

from __future__ import annotations

from pathlib import Path

ONE_CHIP_PER_NPU = """
+------------------------------------------------------------------------------------------------+
| npu-smi 23.0.rc3          Version: 23.0.rc2.3                                      |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910A                | OK            | 73.4        44                1123 / 1123          |
| 0                         | 0000:C1:00.0  | 0           4565 / 15137      30710/ 32768         |
+===========================+===============+====================================================+
| 1     910A                | Warning       | 69.6        39                1123 / 1123          |
| 0                         | 0000:81:00.0  | 7           4483 / 15137      30710/ 32768         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 139667        | python                   | 30780                   |
+===========================+===============+====================================================+
| No running processes found in NPU 1                                                            |
+===========================+===============+====================================================+
"""

TWO_CHIPS_PER_CARD = """
+--------------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                                   Version: 25.2.0                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 2       310P3                 | OK              | NA           45                0     / 0             |
| 0       0                     | 0000:01:00.0    | 0            1529 / 44280                            |
+-------------------------------+-----------------+------------------------------------------------------+
| 2       310P3                 | OK              | NA           43                0     / 0             |
| 1       1                     | 0000:01:00.0    | 0            1412 / 43693                            |
+===============================+=================+======================================================+
"""

TWO_DIES_PER_NPU = """
| npu-smi 25.5.0           Version: 25.5.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 178.5       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          3195 / 65536         |
+===========================+===============+====================================================+
"""

NO_CHIP_COLUMN = """
| npu-smi 26.0.rc1                 Version: 26.0.rc1                                              |
+--------+------------------+---------------+-----------------------------------------------------+
| NPU ID | Name             | Health        | Power(W)    Temp(C)           Hugepages-Usage(page) |
|        |                  | Bus-Id        | NPU Util(%) Memory-Usage(MB)  HBM-Usage(MB)         |
+========+==================+===============+=====================================================+
| 0      | 950PR            | OK            | 204.4       56                0     / 0             |
|        |                  | 0000:91:00.0  | 3           0    / 0          4439  / 86016         |
+========+==================+===============+=====================================================+
"""

USAGES = """
NPU ID                         : 0
Chip Count                     : 1
HBM Capacity(MB)               : 32768
Aicore Usage Rate(%)           : 0
Chip ID                        : 0
"""

LIST = """
Total Count                    : 2
NPU ID                         : 0
Product Name                   : A5 PCIe Card
Serial Number                  : S0
NPU ID                         : 1
Product Name                   : A5 PCIe Card
Serial Number                  : S1
"""

MAPPING = """
NPU ID           Slot ID          Chip ID          Chip Phy-ID          Chip Name
0                0                0                0                    950PR
"""

PROCESSES = "Process id:395864  Process name:power_test        Process memory(MB):5118\n"

WATCH = """
NpuID(Idx) ChipId(Idx) Pwr(W) Temp(C) AI Core(%) AI Cpu(%) Ctrl Cpu(%) Memory(%) Memory BW(%)
0 0 13.4 45 0 0 0 3 0
"""


def fake(folder: Path, text: str, *, code: int = 0, sleep_s: float = 0.0) -> Path:
    """Write a program `npu-smi` that prints `text`; each call adds a line to `calls` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answer").write_text(text)
    program = folder / "npu-smi"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n/bin/sleep {sleep_s}\n/bin/cat "{folder}/answer"\nexit {code}\n'
    )
    program.chmod(0o755)
    return program
