"""Will this graph run on that SoC: every node judged by what the toolchain parses and which kernels there are."""

from orchestrator.graph.coverage.covering import cover
from orchestrator.graph.coverage.verdicts import Coverage, NodeVerdict, Verdict

__all__ = ["Coverage", "NodeVerdict", "Verdict", "cover"]
