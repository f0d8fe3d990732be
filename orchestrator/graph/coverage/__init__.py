"""Will this graph run on that SoC: every node judged by what the toolchain parses and which kernels there are."""

from orchestrator.graph.coverage.covering import TOOLCHAINS, check_toolchain, cover
from orchestrator.graph.coverage.verdicts import Coverage, NodeVerdict, Verdict

__all__ = ["TOOLCHAINS", "Coverage", "NodeVerdict", "Verdict", "check_toolchain", "cover"]
