"""How a job ended, as a hook is told of it: from what the store kept of it, and the sidecars."""

from __future__ import annotations

import os
from dataclasses import dataclass

from phi4d import outputs
from phi4d.job import State, display_name
from phi4d.store import Due
from phi4d.task import Rule

FACTS = ("device", "model", "seconds", "tokens", "fault", "reason")
"""what the store keeps of an end: the last two of one that failed, the others of one done"""


@dataclass(frozen=True, slots=True)
class Ending:
    """One end of one job."""

    due: Due
    path: bytes
    """the source file: where it was moved, or where it is; or was, if it was deleted"""
    sidecars: tuple[bytes, ...]
    """those that are there: the text and the JSON, or the error record"""

    @property
    def name(self) -> str:
        """The file as people see it."""
        return display_name(self.due.inbox, self.due.path)

    def words(self) -> dict[str, bytes]:
        """What a command is told."""
        due = self.due
        told: dict[str, str | float] = {
            "id": due.event,
            "state": due.state.value,
            "inbox": due.inbox,
            "kind": due.kind.value,
            "name": self.name,
            **{key: due.facts.get(key, "") for key in FACTS},
        }
        found = {key: str(value).encode("utf-8", "replace") for key, value in told.items()}
        found["path"] = self.path
        found["sidecar"] = self.sidecars[0] if self.sidecars else b""
        found["sidecars"] = b"\n".join(self.sidecars)
        # no program takes a NUL, and no path has one
        return {key: value.replace(b"\0", b"") for key, value in found.items()}


def of(due: Due, rule: Rule) -> Ending:
    """How a job ended, by the rule of its inbox."""
    return Ending(
        due,
        due.moved_to or os.path.join(rule.path, due.path),
        tuple(outputs.written(rule.outbox, due.path, failed=due.state is State.FAILED)),
    )
