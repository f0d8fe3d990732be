"""The state of one projection call: what is remembered, what was refused, and how one entity is made exactly once."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from orchestrator.core import faults
from orchestrator.core.digests import sha256_bytes, sha256_json, short
from orchestrator.core.errors import TrackingError, Unreachable
from orchestrator.tracking.client import Exists, Gone, Session
from orchestrator.tracking.snapshot import ExecutionSnapshot, ProjectionMapping

KEY_TAG: Final = "orch.key"


@dataclass(slots=True)
class Record:
    """What we remember of one MLflow entity.

    Attributes:
        key: Its name in the mapping and in its tag `orch.key`.
        id: MLflow's id; empty until it is known.
        doubt: A create was begun and its reply not seen: a second entity of this key may turn up.
        sent: Aspect -> what was sent of it: a digest, or a count.
    """

    key: str
    id: str = ""
    doubt: bool = False
    sent: dict[str, str | int] = field(default_factory=dict[str, "str | int"])

    def to_text(self) -> str:
        """Return the form that the mapping keeps."""
        return json.dumps({"id": self.id, "doubt": self.doubt, "sent": self.sent}, separators=(",", ":"))

    @classmethod
    def from_text(cls, key: str, text: str) -> Record:
        """Parse the kept form."""
        data = json.loads(text)
        return cls(key, str(data["id"]), bool(data["doubt"]), dict(data["sent"]))


class Memory:
    """Records in the mapping, under one MLflow address and one epoch.

    An epoch ends when MLflow no longer knows an id that we remember (wiped, restored, deleted by hand): everything is then
    looked up again, and made again where it is gone.
    """

    def __init__(self, mapping: ProjectionMapping, uri: str) -> None:
        self._mapping = mapping
        self._scope = f"mlflow:{short(sha256_bytes(uri.encode()))}"
        self._epoch = int(mapping.get(f"{self._scope}:epoch") or 0)
        self._records: dict[str, Record] = {}
        self._texts: dict[str, str] = {}

    def record(self, key: str) -> Record:
        """Return the record of an entity; the same object within one call."""
        if key not in self._records:
            text = self._mapping.get(self._name(key))
            self._records[key] = Record(key) if text is None else Record.from_text(key, text)
            self._texts[key] = text or ""
        return self._records[key]

    def save(self, record: Record) -> None:
        """Store a record if it changed."""
        text = record.to_text()
        if self._texts.get(record.key) != text:
            self._mapping.put(self._name(record.key), text)
            self._texts[record.key] = text

    def doubtful(self) -> list[Record]:
        """Return the records of this call that may have a double."""
        return [record for record in self._records.values() if record.doubt and record.id]

    def new_epoch(self) -> None:
        """Forget every id of this address."""
        self._epoch += 1
        self._mapping.put(f"{self._scope}:epoch", str(self._epoch))
        self._records.clear()
        self._texts.clear()

    def _name(self, key: str) -> str:
        return f"{self._scope}.{self._epoch}:{key}"


class Call:
    """One call of `project`."""

    def __init__(self, session: Session, memory: Memory, snapshot: ExecutionSnapshot) -> None:
        self.session = session
        self.memory = memory
        self.snapshot = snapshot
        self.refused: list[str] = []
        self.later: list[str] = []  # what waits for another projection: call again
        self.urls: dict[str, str] = {}
        self.run_ids: dict[str, str] = {}
        self.model_ids: dict[str, str] = {}
        self.experiment_id = ""
        self._finders: dict[str, tuple[Callable[[], list[str]], Callable[[str], None]]] = {}

    @contextmanager
    def keeping(self, record: Record) -> Generator[None]:
        """Store the record on the way out, whatever happened."""
        try:
            yield
        finally:
            self.memory.save(record)

    def once(self, record: Record, aspect: str, content: object, send: Callable[[], object]) -> None:
        """Send an aspect of an entity unless this very content was sent before; a refusal is noted, not raised.

        Args:
            record: The entity; saved by the caller (`keeping`).
            aspect: Its part, e.g. `tags`.
            content: JSON-ready; its digest is remembered.
            send: Idempotent: it runs again after a crash.
        """
        digest = short(sha256_json(content))
        if record.sent.get(aspect) == digest:
            return
        known = f"{record.key} {aspect} {digest}"
        reason = self.session.refusals.get(known)
        if reason is None:
            try:
                send()
            except Gone:
                raise
            except TrackingError as error:
                reason = self.session.refusals[known] = error.message
        if reason is not None:
            self.refused.append(f"{record.key}: {reason}")
            return
        record.sent[aspect] = digest

    def ensure(
        self, key: str, *, find: Callable[[], list[str]], create: Callable[[], str], delete: Callable[[str], None]
    ) -> Record:
        """Return the record of an entity that exists exactly once, with its id.

        Args:
            key: Its name.
            find: Returns the ids of all that carry this key, oldest first.
            create: Makes it and returns its id.
            delete: Removes a double.
        """
        record = self.memory.record(key)
        self._finders[key] = (find, delete)
        if record.id:
            return record
        found = find()
        if not found:
            found = self._create(record, find, create)
        for double in found[1:]:
            delete(double)
        record.id = found[0]
        self.memory.save(record)
        return record

    def _create(self, record: Record, find: Callable[[], list[str]], create: Callable[[], str]) -> list[str]:
        before, record.doubt = record.doubt, True
        self.memory.save(record)
        faults.point("tracking.before_create")
        try:
            new = create()
        except (Unreachable, Exists):
            found = find()  # the reply may have been lost after the work was done
            if not found:
                raise
            return found
        faults.point("tracking.after_create")
        record.doubt = before
        return [new]

    def remove_doubles(self) -> None:
        """Delete what a request that we gave up on has made after all."""
        for record in self.memory.doubtful():
            if record.key not in self._finders:
                continue
            find, delete = self._finders[record.key]
            for other in find():
                if other != record.id:
                    delete(other)
            record.doubt = False
            self.memory.save(record)
