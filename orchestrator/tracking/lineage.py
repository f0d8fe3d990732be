"""Who made what from what, worked out from a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.tracking.snapshot import MODEL_KINDS, ArtifactRef, ExecutionSnapshot, StepSnapshot


@dataclass(slots=True)
class Lineage:
    """The artifacts that a snapshot names, by digest, and the steps that made them."""

    refs: dict[str, ArtifactRef] = field(default_factory=dict[str, ArtifactRef])
    makers: dict[str, StepSnapshot] = field(default_factory=dict[str, StepSnapshot])

    @classmethod
    def of(cls, snapshot: ExecutionSnapshot) -> Lineage:
        """Index a snapshot."""
        lineage = cls()
        for step in snapshot.steps:
            for ref in step.outputs:
                lineage.makers.setdefault(ref.digest, step)
                lineage._add(ref)
        for ref in [*snapshot.lineage, *(ref for step in snapshot.steps for ref in step.inputs)]:
            lineage._add(ref)
        return lineage

    def _add(self, ref: ArtifactRef) -> None:
        known = self.refs.get(ref.digest)
        if known is None or (known.path is None and ref.path is not None):
            self.refs[ref.digest] = ref

    def parents(self, digest: str) -> tuple[str, ...]:
        """Return what an artifact was made from."""
        ref, maker = self.refs.get(digest), self.makers.get(digest)
        if ref is not None and ref.parents:
            return ref.parents
        return tuple(source.digest for source in maker.inputs) if maker is not None else ()

    def ancestors(self, digest: str) -> list[str]:
        """Return all that an artifact came from, nearest first; itself excluded."""
        found: list[str] = []
        todo = list(self.parents(digest))
        while todo:
            parent = todo.pop(0)
            if parent not in found and parent != digest:
                found.append(parent)
                todo.extend(self.parents(parent))
        return found

    def is_model(self, digest: str) -> bool:
        """Tell whether an artifact shows as a LoggedModel."""
        ref = self.refs.get(digest)
        return ref is not None and ref.kind in MODEL_KINDS

    def models_behind(self, refs: Iterable[ArtifactRef]) -> list[str]:
        """Return the models that inputs stand for: models themselves, and the most derived ones inside a bundle."""
        found: list[str] = []
        for ref in refs:
            if ref.kind in MODEL_KINDS:
                found.append(ref.digest)
            elif ref.kind == "bundle":
                inside = [digest for digest in self.ancestors(ref.digest) if self.is_model(digest)]
                older = {ancestor for digest in inside for ancestor in self.ancestors(digest)}
                found.extend(digest for digest in inside if digest not in older)
        return list(dict.fromkeys(found))

    def models_of_release(self, refs: Iterable[ArtifactRef]) -> list[str]:
        """Return the models behind inputs and all models that those came from, oldest first."""
        nearest = self.models_behind(refs)
        everything = [*nearest, *(older for digest in nearest for older in self.ancestors(digest))]
        return [digest for digest in reversed(list(dict.fromkeys(everything))) if self.is_model(digest)]

    def consumers(self, snapshot: ExecutionSnapshot, digest: str) -> list[StepSnapshot]:
        """Return the steps that used a model, directly or inside a bundle."""
        return [step for step in snapshot.steps if digest in self.models_behind(step.inputs)]
