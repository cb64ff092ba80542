"""Rows of the store as frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phi4d.job import Fingerprint, Job, Kind, State

JOB_COLUMNS = (
    "id, inbox, path, kind, inode, size, mtime_ns, attempts, crashes, deaths, waits, fresh,"
    " coalesce(queued, added)"
)
ROW_COLUMNS = (
    JOB_COLUMNS + ", state, device, fault, phase, reason, added, started, finished, next_try,"
    " original, moved_to, question"
)
LONGEST_WAIT_SECONDS = 600.0
"""a next try further away than this is taken for a clock that was set back, and is due"""

_JOB_WIDTH = 13  # columns


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that was given up, for those who want to know why."""

    inbox: str
    path: bytes
    fault: str
    reason: str
    when: float
    """seconds since the epoch"""


@dataclass(frozen=True, slots=True)
class Notice:
    """What keeps an inbox from working."""

    inbox: str
    about: str
    text: str
    since: float
    """seconds since the epoch"""


@dataclass(frozen=True, slots=True)
class Paused:
    """An inbox from which nothing is taken, because somebody asked for it."""

    inbox: str
    since: float
    """seconds since the epoch"""
    who: str
    """the user who asked for it"""
    why: str
    """in that user's words; may be empty"""

    @property
    def words(self) -> str:
        """Who paused it, and why."""
        return f"paused by {self.who}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a change for somebody took of an inbox."""

    count: int
    first: tuple[bytes, ...]
    """the paths of the first few"""


@dataclass(frozen=True, slots=True)
class Row:
    """Everything that the store knows of one version of a file. Times: seconds since the epoch."""

    job: Job
    state: State
    device: str | None
    fault: str | None
    phase: str | None
    reason: str | None
    """why it failed, was dropped, or waits"""
    added: float
    started: float | None
    finished: float | None
    next_try: float
    original: str | None
    moved_to: bytes | None
    question: bytes | None


@dataclass(frozen=True, slots=True)
class Due:
    """A hook that is due: a job ended, and somebody is to be told."""

    id: int
    event: str
    """names this end of this job: the same at each try, and no other's"""
    inbox: str
    path: bytes
    """below the inbox folder"""
    kind: Kind
    state: State
    """how it ended: done or failed"""
    finished: float
    """seconds since the epoch"""
    facts: Mapping[str, str | float]
    """what was to be told of it: device, seconds, reason and so on"""
    tries: int
    moved_to: bytes | None
    """where the source file was moved"""


def job(row: Sequence[Any]) -> Job:
    """A job from `JOB_COLUMNS`, or from as many of them as an older store has."""
    job_id, inbox, path, kind, inode, size, mtime_ns, attempts, crashes, *later = row
    deaths, waits, fresh, queued = (*later, 0, 0, 0, 0)[:4]
    return Job(
        id=int(job_id),
        inbox=str(inbox),
        path=bytes(path),
        kind=Kind(str(kind)),
        fingerprint=Fingerprint(int(inode), int(size), int(mtime_ns)),
        attempts=int(attempts),
        crashes=int(crashes),
        deaths=int(deaths),
        waits=int(waits),
        fresh=bool(fresh),
        queued=float(queued),
    )


def row(found: Sequence[Any]) -> Row:
    """A row from `ROW_COLUMNS`."""
    state, *rest = found[_JOB_WIDTH:]
    return Row(job(found[:_JOB_WIDTH]), State(str(state)), *rest)
