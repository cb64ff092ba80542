"""The store: every job and where it stands. The only SQL in the house.

One read-write connection behind a lock (SQLite before 3.51.3 can lose commits when two
connections write and checkpoint at once); readers open their own connection, read-only. Every
change of a job is compare-and-set on its state, and durable when the call returns.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from phi4d.errors import ConfigError, EnvironmentFault
from phi4d.job import Arrival, Fingerprint, Job, Kind, State

SQLITE_VERSION = sqlite3.sqlite_version_info
SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE job (
    id         INTEGER PRIMARY KEY,
    inbox      TEXT    NOT NULL,
    path       BLOB    NOT NULL,            -- below the inbox folder; any bytes
    kind       TEXT    NOT NULL,
    inode      INTEGER NOT NULL,
    size       INTEGER NOT NULL,            -- bytes
    mtime_ns   INTEGER NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('queued','running','done','failed','dropped')),
    attempts   INTEGER NOT NULL DEFAULT 0,  -- starts without an end
    crashes    INTEGER NOT NULL DEFAULT 0,  -- decode processes that died on it
    device     TEXT,                        -- the slot that has it, or had it last
    fault      TEXT,
    reason     TEXT,
    added      REAL    NOT NULL,            -- seconds since the epoch, like the next two
    started    REAL,
    finished   REAL,
    deaths     INTEGER NOT NULL DEFAULT 0,  -- devices lost while it alone was answered for
    UNIQUE (inbox, path, inode, size, mtime_ns)
) STRICT;
CREATE INDEX job_waiting ON job (id) WHERE state = 'queued';
CREATE INDEX job_running ON job (id) WHERE state = 'running';
CREATE INDEX job_state ON job (inbox, state);
CREATE INDEX job_failed ON job (finished) WHERE state = 'failed';
"""
MIGRATIONS = {1: "ALTER TABLE job ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;"}
"""what makes the next version of a store of this version"""
ADD_ROWS = 2_000  # rows a transaction; a million files then take some 10 s
_COLUMNS = "id, inbox, path, kind, inode, size, mtime_ns, attempts, crashes"
_ALL_COLUMNS = _COLUMNS + ", deaths"


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that was given up, for those who want to know why."""

    inbox: str
    path: bytes
    fault: str
    reason: str
    when: float
    """seconds since the epoch"""


class Store:
    """The read-write side. Any thread may call it.

    Args:
        path: the database file; its folder must exist.
        clock: seconds since the epoch.

    Raises:
        ConfigError: the file cannot be opened, is no database, or is from a newer phi4d.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(path)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise ConfigError(
                f"{path}: the store cannot be opened: {error}; expected a writable folder and a "
                "database of phi4d's: mend it, or move the file away to begin anew"
            ) from error

    def _prepare(self, path: Path) -> None:
        self._db.execute("PRAGMA busy_timeout = 5000")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # NORMAL forgets 'done' at a power cut
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(
                f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
            return
        while version in MIGRATIONS:
            self._db.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[version]}"
                f" PRAGMA user_version = {version + 1}; COMMIT;"
            )
            version += 1
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"{path}: the store has version {version}; this phi4d knows {SCHEMA_VERSION}: "
                "install the newer phi4d again, or move the file away to begin anew"
            )

    def close(self) -> None:
        """Close the database. Idempotent."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise EnvironmentFault(
                    f"the store cannot be written: {error}; expected room on its disk and a "
                    "writable folder: it is tried again"
                ) from error
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def add(self, arrivals: Iterable[Arrival]) -> int:
        """Queue files; a version that is known already is left as it is.

        Other versions of the same file are dropped, whatever had become of them: the newest is
        the one that counts.

        Returns:
            How many were new.

        Raises:
            EnvironmentFault: the store's disk is full or failing, as for every change.
        """
        rows = list(arrivals)
        new = 0
        for begin in range(0, len(rows), ADD_ROWS):
            with self._write() as db:
                for a in rows[begin : begin + ADD_ROWS]:
                    new += self._add_one(db, a)
        return new

    def _add_one(self, db: sqlite3.Connection, a: Arrival) -> int:
        now = self._clock()
        added = db.execute(
            "INSERT INTO job (inbox, path, kind, inode, size, mtime_ns, state, added)"
            " VALUES (?, ?, ?, ?, ?, ?, 'queued', ?)"
            # a version that had gone and is back was never finished
            " ON CONFLICT DO UPDATE SET state = 'queued', attempts = 0, crashes = 0,"
            " deaths = 0, added = ?"
            " WHERE state = 'dropped' RETURNING id",
            (
                a.inbox,
                a.path,
                a.kind,
                a.fingerprint.inode,
                a.fingerprint.size,
                a.fingerprint.mtime_ns,
                now,
                now,
            ),
        ).fetchall()
        for (job_id,) in added:
            db.execute(
                "UPDATE job SET state = 'dropped', reason = 'a newer version followed',"
                " finished = ? WHERE inbox = ? AND path = ? AND id <> ?"
                " AND state NOT IN ('running', 'dropped')",
                (now, a.inbox, a.path, job_id),
            )
        return len(added)

    def waiting(
        self, limit: int, inboxes: Sequence[str], without: Collection[int] = ()
    ) -> list[Job]:
        """The oldest queued jobs of some inboxes; a look, not a claim.

        Jobs of other inboxes, which pause or are configured no more, do not stand in the way.

        Args:
            limit: how many at most.
            inboxes: their names.
            without: ids of jobs to pass over; they do not count towards the limit.
        """
        # the + keeps SQLite from taking the index by inbox, and then sorting what it found
        marks = ",".join("?" * len(inboxes))
        with self._lock:
            rows = self._db.execute(
                f"SELECT {_ALL_COLUMNS} FROM job WHERE state = 'queued' AND +inbox IN ({marks})"
                " AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?",
                (*inboxes, json.dumps(list(without)), limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def claim(self, ids: Sequence[int], device: str) -> list[Job]:
        """Move queued jobs to running and count the attempt, in one statement.

        Returns:
            The jobs that this call got; those that another worker had first are missing.
        """
        marks = ",".join("?" * len(ids))
        with self._write() as db:
            rows = db.execute(
                "UPDATE job SET state = 'running', attempts = attempts + 1, device = ?,"
                f" started = ? WHERE state = 'queued' AND id IN ({marks})"
                f" RETURNING {_ALL_COLUMNS}",
                (device, self._clock(), *ids),
            ).fetchall()
        return sorted((_job(row) for row in rows), key=lambda job: job.id)

    def finish(self, job: Job) -> bool:
        """Mark a running job as done; to be called when its sidecars are durable."""
        return self._end(job, State.DONE, None, None)

    def fail(self, job: Job, fault: str, reason: str) -> bool:
        """Give a running job up, with whose fault it was and why."""
        return self._end(job, State.FAILED, fault, reason)

    def drop(self, job: Job, reason: str) -> bool:
        """Forget a running job whose file has changed or gone; a newer version is another job."""
        return self._end(job, State.DROPPED, None, reason)

    def _end(self, job: Job, state: State, fault: str | None, reason: str | None) -> bool:
        with self._write() as db:
            cursor = db.execute(
                "UPDATE job SET state = ?, fault = ?, reason = ?, finished = ?"
                " WHERE id = ? AND state = 'running'",
                (state, fault, reason, self._clock(), job.id),
            )
        return cursor.rowcount == 1

    def requeue(self, job: Job, *, count: bool, crashed: bool = False, died: bool = False) -> bool:
        """Put a running job back.

        Args:
            job: the job.
            count: whether the attempt counts; not when the job was merely interrupted.
            crashed: whether a decode process died on it.
            died: whether the device was lost while it answered for this job alone.
        """
        with self._write() as db:
            cursor = db.execute(
                "UPDATE job SET state = 'queued', attempts = attempts - ?, crashes = crashes + ?,"
                " deaths = deaths + ? WHERE id = ? AND state = 'running'",
                (0 if count else 1, int(crashed), int(died), job.id),
            )
        return cursor.rowcount == 1

    def recover(self) -> list[Job]:
        """At the start: what was running when the daemon died waits again. The attempt counts.

        Returns:
            The jobs put back.
        """
        with self._write() as db:
            rows = db.execute(
                "UPDATE job SET state = 'queued' WHERE state = 'running' RETURNING " + _ALL_COLUMNS
            ).fetchall()
        return [_job(row) for row in rows]

    def busy(self, inboxes: Sequence[str]) -> bool:
        """Whether any job of these inboxes waits or runs."""
        marks = ",".join("?" * len(inboxes))
        # each half has an index of its own, however many jobs are done
        with self._lock:
            (found,) = self._db.execute(
                "SELECT EXISTS (SELECT 1 FROM job"
                f" WHERE state = 'queued' AND +inbox IN ({marks}))"
                " OR EXISTS (SELECT 1 FROM job"
                f" WHERE state = 'running' AND +inbox IN ({marks}))",
                (*inboxes, *inboxes),
            ).fetchone()
        return bool(found)

    def counts(self) -> dict[str, dict[State, int]]:
        """Number of jobs by inbox and state."""
        with self._lock:
            return _counts(self._db)


class Reader:
    """The read-only side, for other processes.

    Raises:
        FileNotFoundError: there is no store.
        EnvironmentFault: it cannot be read, here and in every method.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(path)
        self._path = path
        with self._readable():
            self._db = sqlite3.connect(_uri(path), uri=True, isolation_level=None)
            self._db.execute("PRAGMA query_only = ON")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def counts(self) -> dict[str, dict[State, int]]:
        """Number of jobs by inbox and state."""
        with self._readable():
            return _counts(self._db)

    def running(self) -> list[tuple[Job, str, float]]:
        """What runs: the job, its device, and since when (seconds since the epoch).

        Only columns of the first version are read: the daemon may not have been started since an
        upgrade, and only it changes a store.
        """
        with self._readable():
            rows = self._db.execute(
                f"SELECT {_COLUMNS}, device, started FROM job WHERE state = 'running' ORDER BY id"
            ).fetchall()
        return [(_job(row[:-2]), str(row[-2]), float(row[-1])) for row in rows]

    def failures(self, limit: int) -> list[Failure]:
        """The last failures, newest first."""
        with self._readable():
            rows = self._db.execute(
                "SELECT inbox, path, fault, reason, finished FROM job WHERE state = 'failed'"
                " ORDER BY finished DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [Failure(*row) for row in rows]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise EnvironmentFault(f"{self._path}: the store cannot be read: {error}") from error


def _uri(path: Path) -> str:
    base = path.absolute().as_uri()
    # without a daemon there is no write-ahead log, and a reader without write permission could
    # not make the files that go with one
    if path.with_name(path.name + "-wal").exists():
        return base + "?mode=ro"
    return base + "?immutable=1"


def _counts(db: sqlite3.Connection) -> dict[str, dict[State, int]]:
    result: dict[str, dict[State, int]] = {}
    for inbox, state, n in db.execute("SELECT inbox, state, count(*) FROM job GROUP BY 1, 2"):
        result.setdefault(inbox, dict.fromkeys(State, 0))[State(state)] = n
    return result


def _job(row: Sequence[Any]) -> Job:
    job_id, inbox, path, kind, inode, size, mtime_ns, attempts, crashes, *deaths = row
    return Job(
        id=int(job_id),
        inbox=str(inbox),
        path=bytes(path),
        kind=Kind(str(kind)),
        fingerprint=Fingerprint(int(inode), int(size), int(mtime_ns)),
        attempts=int(attempts),
        crashes=int(crashes),
        deaths=int(deaths[0]) if deaths else 0,
    )
