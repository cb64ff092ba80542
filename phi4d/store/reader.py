"""The read-only side, for other processes than the daemon."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phi4d.errors import EnvironmentFault
from phi4d.job import Job, Kind, State
from phi4d.store import rows
from phi4d.store.rows import Failure, Notice, Paused, Row
from phi4d.store.schema import DUE, damaged, is_damage

FIRST_COLUMNS = "id, inbox, path, kind, inode, size, mtime_ns, attempts, crashes"
"""what stores of every version have: the daemon may not have been started since an upgrade, and
only it changes a store"""
TALLIED = 4  # the first version whose rows and counts are those of today


class Reader:
    """Reads a store that a daemon may be writing.

    Raises:
        FileNotFoundError: there is no store.
        EnvironmentFault: it cannot be read, here and in every method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._readable():
            os.stat(path)
            self._db = connect(path)
            self._db.execute("PRAGMA query_only = ON")
            (self._version,) = self._db.execute("PRAGMA user_version").fetchone()

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def counts(self) -> dict[str, dict[State, int]]:
        """Number of jobs by inbox and state, without those that somebody cancelled."""
        with self._readable():
            return counts(self._db, tallied=self._version >= TALLIED)

    def cancelled(self) -> dict[tuple[str, Kind], int]:
        """Number of jobs that somebody cancelled, by inbox and kind."""
        with self._readable():
            return cancelled(self._db)

    def tally(self) -> dict[tuple[str, Kind, State], int]:
        """Number of jobs by inbox, kind and state."""
        with self._readable():
            return tally(self._db, tallied=self._version >= TALLIED)

    def oldest(self) -> dict[str, float]:
        """Since when the longest waiting job of each inbox waits, in seconds since the epoch.

        Inboxes in which nothing waits are missing.
        """
        if self._version < TALLIED:
            return {}
        with self._readable():
            return oldest(self._db)

    def paused(self) -> dict[str, Paused]:
        """The inboxes that somebody paused, by their names."""
        if self._version < TALLIED:
            return {}
        with self._readable():
            return paused(self._db)

    def running(self) -> list[tuple[Job, str, float]]:
        """What runs: the job, its device, and since when (seconds since the epoch)."""
        with self._readable():
            found = self._db.execute(
                f"SELECT {FIRST_COLUMNS}, device, started FROM job WHERE state = 'running'"
                " ORDER BY id"
            ).fetchall()
        return [(rows.job(row[:-2]), str(row[-2]), float(row[-1])) for row in found]

    def failures(self, limit: int) -> list[Failure]:
        """The last failures, newest first; what somebody cancelled is none."""
        with self._readable():
            found = self._db.execute(
                "SELECT inbox, path, fault, reason, finished FROM job"
                " WHERE state = 'failed' AND fault IS NOT 'operator'"
                " ORDER BY finished DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [Failure(*row) for row in found]

    def notices(self) -> list[Notice]:
        """What keeps inboxes from working, oldest first."""
        if self._version < 3:
            return []
        with self._readable():
            found = self._db.execute("SELECT inbox, about, text, since FROM notice ORDER BY since")
            return [Notice(*row) for row in found]

    def put_off(self, limit: int) -> list[Row]:
        """Queued jobs that wait for their next try, the longest waiting first."""
        if self._version < TALLIED:
            return []
        with self._readable():
            found = self._db.execute(
                f"SELECT {rows.ROW_COLUMNS} FROM job WHERE state = 'queued' AND next_try > 0"
                " ORDER BY id LIMIT ?",
                (limit,),
            ).fetchall()
        return [rows.row(row) for row in found]

    def versions(self, inbox: str, path: bytes) -> list[Row]:
        """Every version of a file that is known, the newest first."""
        if self._version < TALLIED:
            raise EnvironmentFault(
                f"{self._path}: the store is an older phi4d's; start the daemon once, which brings "
                "it up to date"
            )
        with self._readable():
            return versions(self._db, inbox, path)

    def before(self, job: Job) -> int:
        """How many queued jobs of its kind in its inbox go before one that waits; see `Job.due`.

        Those that wait for their next try are counted as well.
        """
        with self._readable():
            (n,) = self._db.execute(
                "SELECT count(*) FROM job WHERE state = 'queued' AND inbox = ? AND kind = ?"
                f" AND {DUE} <= ? AND ({DUE} < ? OR id < ?)",
                (job.inbox, job.kind, job.due, job.due, job.id),
            ).fetchone()
        return int(n)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise EnvironmentFault(
                f"{self._path}: the store cannot be read: {error.strerror}; be the daemon's user, "
                "or in its group"
            ) from error
        except sqlite3.Error as error:
            if is_damage(error):
                raise damaged(self._path, error) from error
            raise EnvironmentFault(
                f"{self._path}: the store cannot be read: {error}; be the daemon's user, or in its "
                "group, and look at the disk"
            ) from error


def connect(path: Path) -> sqlite3.Connection:
    """A connection that only reads; who writes waits for none."""
    return sqlite3.connect(_uri(path), uri=True, isolation_level=None)


def _uri(path: Path) -> str:
    base = path.absolute().as_uri()
    # without a daemon there is no write-ahead log, and a reader without write permission could
    # not make the files that go with one
    if path.with_name(path.name + "-wal").exists():
        return base + "?mode=ro"
    return base + "?immutable=1"


def counts(db: sqlite3.Connection, *, tallied: bool = True) -> dict[str, dict[State, int]]:
    """Number of jobs by inbox and state; see `tally`. What was cancelled counts nowhere."""
    result: dict[str, dict[State, int]] = {}
    for (inbox, _, state), n in tally(db, tallied=tallied).items():
        result.setdefault(inbox, dict.fromkeys(State, 0))[state] += n
    for (inbox, _), n in cancelled(db).items():
        of_inbox = result.setdefault(inbox, dict.fromkeys(State, 0))
        of_inbox[State.FAILED] = max(0, of_inbox[State.FAILED] - n)
    return result


def cancelled(db: sqlite3.Connection) -> dict[tuple[str, Kind], int]:
    """Number of jobs that somebody cancelled, by inbox and kind."""
    found = db.execute(
        "SELECT inbox, kind, count(*) FROM job WHERE state = 'failed' AND fault IS 'operator'"
        " GROUP BY inbox, kind"
    )
    return {(inbox, Kind(kind)): n for inbox, kind, n in found}


def tally(db: sqlite3.Connection, *, tallied: bool = True) -> dict[tuple[str, Kind, State], int]:
    """Number of jobs by inbox, kind and state; older stores have no such tally and are counted."""
    query = (
        "SELECT inbox, kind, state, n FROM tally WHERE n > 0"
        if tallied
        else "SELECT inbox, kind, state, count(*) FROM job GROUP BY 1, 2, 3"
    )
    return {(inbox, Kind(kind), State(state)): n for inbox, kind, state, n in db.execute(query)}


def oldest(db: sqlite3.Connection) -> dict[str, float]:
    """Since when the longest waiting job of each inbox waits, in seconds since the epoch."""
    found = db.execute(  # of each inbox in which something waits one row, by its index
        "SELECT inbox, (SELECT coalesce(queued, added) FROM job"
        " WHERE state = 'queued' AND job.inbox = waiting.inbox"
        " ORDER BY coalesce(queued, added) LIMIT 1)"
        " FROM (SELECT DISTINCT inbox FROM tally WHERE state = 'queued' AND n > 0) AS waiting"
    )
    return {inbox: float(since) for inbox, since in found}


def paused(db: sqlite3.Connection) -> dict[str, Paused]:
    """The inboxes that somebody paused, by their names."""
    found = db.execute("SELECT inbox, since, who, why FROM paused ORDER BY inbox")
    return {row[0]: Paused(*row) for row in found}


def versions(db: sqlite3.Connection, inbox: str, path: bytes) -> list[Row]:
    """Every version of a file that is known, the newest first, dropped ones last."""
    found = db.execute(
        f"SELECT {rows.ROW_COLUMNS} FROM job WHERE inbox = ? AND path = ?"
        " ORDER BY state = 'dropped', id DESC",
        (inbox, path),
    )
    return [rows.row(row) for row in found]
