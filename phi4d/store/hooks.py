"""The hooks that are due: what is to be run or told because a job has ended. SQL alone.

A row is written with the end of its job and goes when it was seen to. It tells of that end
whatever becomes of the job afterwards: a file that is done again has another row.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Collection, Mapping

from phi4d.job import Job, Kind, State
from phi4d.store.rows import LONGEST_WAIT_SECONDS, Due

Facts = Mapping[str, str | float]
"""what is to be told of an end: device, seconds, reason and so on"""
Target = tuple[str, State]
"""an inbox and how its jobs ended: the hooks of each are seen to in their order"""


def add(db: sqlite3.Connection, job: Job, state: State, facts: Facts, now: float) -> None:
    """A hook is due because a job has ended now."""
    db.execute(
        "INSERT INTO hook (event, job, inbox, path, kind, state, finished, facts)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            uuid.uuid4().hex,
            job.id,
            job.inbox,
            job.path,
            job.kind,
            state,
            now,
            json.dumps(facts, ensure_ascii=True),
        ),
    )


def first(db: sqlite3.Connection, target: Target, now: float) -> Due | None:
    """The oldest that may be seen to now, what was tried before last.

    Not before its source file is where it is to stay.
    """
    found = db.execute(
        "SELECT hook.id, event, hook.inbox, hook.path, hook.kind, hook.state, hook.finished, facts,"
        " tries, moved_to FROM hook LEFT JOIN job"
        " ON job.id = hook.job AND job.inbox = hook.inbox AND job.path = hook.path"
        " WHERE hook.inbox = ? AND hook.state = ? AND hook.next_try NOT BETWEEN ? AND ?"
        " AND job.original IS NOT 'due' ORDER BY hook.next_try, hook.id LIMIT 1",
        (*target, now, now + LONGEST_WAIT_SECONDS),
    ).fetchone()
    if found is None:
        return None
    hook_id, event, inbox, path, kind, state, finished, facts, tries, moved_to = found
    return Due(
        hook_id,
        event,
        inbox,
        bytes(path),
        Kind(kind),
        State(state),
        finished,
        json.loads(facts),
        tries,
        moved_to,
    )


def count(db: sqlite3.Connection, target: Target) -> int:
    """How many are due, or will be."""
    (n,) = db.execute("SELECT count(*) FROM hook WHERE inbox = ? AND state = ?", target).fetchone()
    return int(n)


def forget(db: sqlite3.Connection, keep: Collection[Target]) -> int:
    """Remove those of other inboxes and ends than these.

    Returns:
        How many there were.
    """
    cursor = db.execute(
        "DELETE FROM hook WHERE NOT EXISTS (SELECT 1 FROM json_each(?) AS kept"
        " WHERE json_extract(kept.value, '$[0]') = hook.inbox"
        " AND json_extract(kept.value, '$[1]') = hook.state)",
        (json.dumps(list(keep)),),
    )
    return cursor.rowcount


def give_up(db: sqlite3.Connection, target: Target, before: float) -> int:
    """Remove those whose jobs ended before a moment.

    Returns:
        How many there were.
    """
    cursor = db.execute(
        "DELETE FROM hook WHERE inbox = ? AND state = ? AND finished < ?", (*target, before)
    )
    return cursor.rowcount
