"""What is said of one path, as a value, and how it is shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from phi4d.job import State, printable


@dataclass(slots=True)
class Explanation:
    """Everything that is to be said of one path."""

    path: bytes
    """absolute, by the names that the configuration has"""
    inbox: str | None = None
    """the inbox that it is in"""
    taken: bool = False
    """whether it is taken, going by the rules and by what it is"""
    state: State | None = None
    """of its newest version in the store"""
    is_newer: bool = False
    """the file on the disk is a newer version than the state's"""
    facts: list[tuple[str, str]] = field(default_factory=list)
    """what about, and what"""
    advice: str = ""
    """what to do; empty: nothing"""

    @property
    def ok(self) -> bool:
        """Whether it is done, or will be without anybody's doing."""
        if self.is_newer or self.state in (None, State.DROPPED):
            return self.taken
        return self.state is not State.FAILED

    def say(self, about: str, text: str) -> None:
        """Add a fact."""
        self.facts.append((about, text))

    def take(self, why: str) -> None:
        """It is taken."""
        self.taken = True
        self.say("taken", why)

    def refuse(self, why: str, advice: str = "") -> None:
        """It is passed over."""
        self.say("passed over", why)
        self.advice = advice


def render(told: Explanation) -> str:
    """The explanation in lines for people."""
    width = max(len(about) for about, _ in told.facts)
    lines = [printable(told.path)]
    lines += [f"  {about:{width}}  {text}" for about, text in told.facts]
    if told.advice:
        lines.append(f"  → {told.advice}")
    return "\n".join(lines)


def as_json(told: Explanation) -> dict[str, Any]:
    """The explanation in terms of JSON."""
    return {
        "path": os.fsdecode(told.path),
        "ok": told.ok,
        "inbox": told.inbox,
        "taken": told.taken,
        "state": told.state,
        "facts": [{"about": about, "text": text} for about, text in told.facts],
        "advice": told.advice,
    }


def size(count: int) -> str:
    """A file's size for people."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count:,} bytes"
