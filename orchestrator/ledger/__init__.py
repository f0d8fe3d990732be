"""The truth: executions, steps, generations, audit. SQLite or PostgreSQL from one code path."""

from orchestrator.ledger.rollout_rows import EvidenceRow, Intent, Rollout, RolloutState
from orchestrator.ledger.rows import (
    ArtifactRow,
    AttemptRow,
    AuditHead,
    AuditRow,
    EventRow,
    ExecutionRow,
    ExecutionUpdate,
    Generation,
    GenerationKind,
    GenerationRequest,
    GenerationState,
    Holder,
    Lease,
    MetricRow,
    Owner,
    StepRow,
    TableStamp,
)
from orchestrator.ledger.store import Ledger

__all__ = [
    "ArtifactRow",
    "AttemptRow",
    "AuditHead",
    "AuditRow",
    "EventRow",
    "EvidenceRow",
    "ExecutionRow",
    "ExecutionUpdate",
    "Generation",
    "GenerationKind",
    "GenerationRequest",
    "GenerationState",
    "Holder",
    "Intent",
    "Lease",
    "Ledger",
    "MetricRow",
    "Owner",
    "Rollout",
    "RolloutState",
    "StepRow",
    "TableStamp",
]
