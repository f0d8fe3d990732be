"""Names of the metrics that judge a canary; the metrics themselves are in `rollout/evidence`.

Kept here as plain names because recipes are checked without NumPy; a test holds both lists equal.
"""

from __future__ import annotations

from typing import Final

METRIC_NAMES: Final = ("error_rate", "latency", "nonfinite", "saturated", "parity", "users", "drift")
