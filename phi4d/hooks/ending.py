"""How a job ended, as a hook is told of it: from the store's row and the sidecars."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from phi4d import outputs
from phi4d.job import Kind, State, display_name
from phi4d.outputs import told
from phi4d.store import Row
from phi4d.task import Rule


@dataclass(frozen=True, slots=True)
class Ending:
    """One end of one job."""

    id: str
    """of this end: the same at each try, another when the file is done again"""
    job: int
    inbox: str
    state: State
    kind: Kind
    path: bytes
    """the source file: where it was moved to, or where it is; or was, if it was deleted"""
    name: str
    """the file as people see it"""
    sidecars: tuple[bytes, ...]
    """those that are there: the text and the JSON, or the error record"""
    device: str
    model: str
    seconds: float
    tokens: int
    fault: str
    reason: str
    finished: float
    """seconds since the epoch"""
    text: str
    """the description or transcript"""

    def words(self) -> dict[str, bytes]:
        """What a command is told, by the names of `phi4d.config.HOOK_WORDS`."""
        words = {
            "id": self.id,
            "job": str(self.job),
            "inbox": self.inbox,
            "state": self.state.value,
            "kind": self.kind.value,
            "name": self.name,
            "device": self.device,
            "model": self.model,
            "seconds": f"{self.seconds:.3f}",
            "tokens": str(self.tokens),
            "fault": self.fault,
            "reason": self.reason,
        }
        found = {key: value.encode("utf-8", "replace") for key, value in words.items()}
        found["path"] = self.path
        found["sidecar"] = self.sidecars[0] if self.sidecars else b""
        found["sidecars"] = b"\n".join(self.sidecars)
        # no program takes a NUL, and no path has one
        return {key: value.replace(b"\0", b"") for key, value in found.items()}


def of(row: Row, rule: Rule) -> Ending:
    """How a job ended.

    Args:
        row: its row in the store; it is done or failed.
        rule: its inbox's.
    """
    job = row.job
    known = told.read(rule.outbox, job.path) if row.state is State.DONE else None
    result = known.result if known else None
    finished = row.finished or 0.0
    which = b"\0".join([job.inbox.encode(), job.path, repr(finished).encode()])
    return Ending(
        id=hashlib.sha256(which).hexdigest()[:32],
        job=job.id,
        inbox=job.inbox,
        state=row.state,
        kind=job.kind,
        path=row.moved_to or rule.source(job),
        name=display_name(job.inbox, job.path),
        sidecars=tuple(
            path
            for path in outputs.paths(rule.outbox, job.path, failed=row.state is State.FAILED)
            if os.path.lexists(path)
        ),
        device=row.device or "",
        model=result.model if result else "",
        seconds=result.seconds if result else max(0.0, finished - (row.started or finished)),
        tokens=result.new_tokens if result else 0,
        fault=row.fault or "",
        reason=row.reason or "",
        finished=finished,
        text=result.text if result else "",
    )
