"""The read-write side of the store.

One read-write connection behind a lock (SQLite before 3.51.3 can lose commits when two
connections write and checkpoint at once); readers open their own connection, read-only. Every
change of a job is compare-and-set on its state, and durable when the call returns.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from phi4d.errors import EnvironmentFault
from phi4d.job import Arrival, Fingerprint, Job, Kind, State
from phi4d.store import hooks, reader
from phi4d.store.hooks import Facts, Target
from phi4d.store.rows import JOB_COLUMNS, LONGEST_WAIT_SECONDS, Chosen, Due, Paused, Row, job
from phi4d.store.schema import DUE, open_store

ADD_ROWS = 2_000  # rows a transaction; a million files then take some 10 s
FIRST_FEW = 10
"""of the files that a change took, so many are named"""


class Store:
    """The read-write side. Any thread may call it.

    Args:
        path: the database file; its folder must exist.
        clock: seconds since the epoch.
        anew: whether a damaged one is set aside and another begun.

    Raises:
        ConfigError: the file cannot be opened, or is from a newer phi4d.
        EnvironmentFault: its disk is full or failing; or it is damaged, and left as it is.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.time, *, anew: bool = True
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._path = path
        self._db = open_store(path, anew=anew)

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

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.OperationalError as error:
                raise _unreadable(error) from error

    @contextmanager
    def _look(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, for what takes long to read: nobody waits for it."""
        try:
            with contextlib.closing(reader.connect(self._path)) as db:
                yield db
        except sqlite3.OperationalError as error:
            raise _unreadable(error) from error

    # ---- what comes in

    def known(self, files: Sequence[tuple[str, bytes, Fingerprint]]) -> list[bool]:
        """Whether the store has these very versions, as (inbox, path, fingerprint), one for each.

        A version that was dropped, because another followed or it had gone, is not known; nor is
        one that was moved away or deleted when it was done with: whoever puts it back wants it
        done.

        Raises:
            EnvironmentFault: the store cannot be read.
        """
        with self._read() as db:
            find = db.cursor().execute
            return [
                find(
                    "SELECT 1 FROM job WHERE inbox = ? AND path = ? AND inode = ? AND size = ?"
                    f" AND mtime_ns = ? AND NOT ({_GONE})",
                    (inbox, path, f.inode, f.size, f.mtime_ns),
                ).fetchone()
                is not None
                for inbox, path, f in files
            ]

    def add(self, arrivals: Iterable[Arrival]) -> int:
        """Queue files; a version that is known already is left as it is.

        Other versions of the same file are dropped, whatever had become of them: the newest is
        the one that counts.

        Returns:
            How many were new.

        Raises:
            EnvironmentFault: the store's disk is full or failing, as for every change.
        """
        return self._add([(arrival, State.QUEUED, None, None) for arrival in arrivals])

    def adopt(
        self, done: Iterable[tuple[Arrival, bytes | None, bytes | None]], *, original: bool = False
    ) -> int:
        """Take files over as done, because their sidecars stand there and are about them.

        Args:
            done: each file with its content's hash and its question, where they are known.
            original: whether the source files are now to be moved or deleted.

        Returns:
            How many were new.
        """
        return self._add(
            [(each, State.DONE, content, asked) for each, content, asked in done],
            "due" if original else None,
        )

    def _add(
        self,
        rows: list[tuple[Arrival, State, bytes | None, bytes | None]],
        original: str | None = None,
    ) -> int:
        new = 0
        for begin in range(0, len(rows), ADD_ROWS):
            with self._write() as db:
                for row in rows[begin : begin + ADD_ROWS]:
                    new += self._add_one(db, *row, original)
        return new

    def _add_one(
        self,
        db: sqlite3.Connection,
        a: Arrival,
        state: State,
        content: bytes | None,
        question: bytes | None,
        original: str | None,
    ) -> int:
        now = self._clock()
        added = db.execute(
            "INSERT INTO job (inbox, path, kind, inode, size, mtime_ns, state, added, finished,"
            " content, question, original) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            # a version that had gone and is back begins anew
            f" ON CONFLICT DO UPDATE SET {_ANEW}, state = excluded.state, added = excluded.added,"
            " queued = NULL, finished = excluded.finished, content = excluded.content,"
            " kind = excluded.kind, question = excluded.question, original = excluded.original"
            f" WHERE {_GONE} RETURNING id",
            (
                a.inbox,
                a.path,
                a.kind,
                a.fingerprint.inode,
                a.fingerprint.size,
                a.fingerprint.mtime_ns,
                state,
                now,
                now if state is State.DONE else None,
                content,
                question,
                original,
            ),
        ).fetchall()
        for (job_id,) in added:
            # what was set aside earlier is of no interest: a file that is written over and over
            # would leave a row each time
            db.execute(
                "DELETE FROM job WHERE inbox = ? AND path = ? AND id <> ? AND state = 'dropped'",
                (a.inbox, a.path, job_id),
            )
            db.execute(
                "UPDATE job SET state = 'dropped', reason = 'a newer version followed',"
                " finished = ?, original = NULL WHERE inbox = ? AND path = ? AND id <> ?"
                " AND state NOT IN ('running', 'dropped')",
                (now, a.inbox, a.path, job_id),
            )
        return len(added)

    # ---- what a worker does with it

    def waiting(
        self, each: int, inboxes: Sequence[str], without: Collection[int] = ()
    ) -> list[Job]:
        """What may be tried now of some inboxes, from the head of each queue; a look, not a claim.

        The jobs of one kind in one inbox are a queue, in the order in which they are due (see
        `Job.due`). However many wait in another queue, and whatever that inbox has become, they do
        not stand in the way.

        Args:
            each: how many of each queue at most.
            inboxes: their names.
            without: ids of jobs to pass over; they do not count towards the limit.

        Returns:
            The queues, one after the other.
        """
        now = self._clock()
        passed_over = json.dumps(list(without))
        rows: list[tuple[Any, ...]] = []
        with self._read() as db:
            for inbox in inboxes:  # each by its index
                for kind in Kind:
                    rows += db.execute(
                        f"SELECT {JOB_COLUMNS} FROM job WHERE state = 'queued' AND inbox = ?"
                        " AND kind = ? AND next_try NOT BETWEEN ? AND ?"
                        " AND id NOT IN (SELECT value FROM json_each(?))"
                        f" ORDER BY {DUE}, id LIMIT ?",
                        (inbox, kind, now, now + LONGEST_WAIT_SECONDS, passed_over, each),
                    ).fetchall()
        return [job(row) for row in rows]

    def claim(self, ids: Sequence[int], device: str) -> list[Job]:
        """Move queued jobs to running and count the attempt, in one statement.

        Returns:
            The jobs that this call got, in the order of the ids; those that another worker had
            first, and those whose inbox somebody paused, are missing.
        """
        marks = ",".join("?" * len(ids))
        with self._write() as db:
            rows = db.execute(
                "UPDATE job SET state = 'running', attempts = attempts + 1, device = ?,"
                f" started = ? WHERE state = 'queued' AND id IN ({marks})"
                " AND inbox NOT IN (SELECT inbox FROM paused)"
                f" RETURNING {JOB_COLUMNS}",
                (device, self._clock(), *ids),
            ).fetchall()
        got = {row[0]: job(row) for row in rows}
        return [got[job_id] for job_id in ids if job_id in got]

    def finish(
        self,
        job: Job,
        *,
        content: bytes | None = None,
        question: bytes | None = None,
        original: bool = False,
        hook: Facts | None = None,
    ) -> bool:
        """Mark a running job as done; to be called when its sidecars are durable.

        Args:
            job: the job.
            content: the hash of the file's bytes, if its answer may serve for others like it.
            question: what was asked.
            original: whether the source file is now to be moved or deleted.
            hook: what its inbox wants somebody to be told of it; None: nobody. See `hook_due`.
        """
        return self._end(
            job, State.DONE, content=content, question=question, original=original, hook=hook
        )

    def fail(
        self,
        job: Job,
        fault: str,
        reason: str,
        phase: str = "",
        *,
        original: bool = False,
        hook: Facts | None = None,
    ) -> bool:
        """Give a running job up, with whose fault it was, why, and where; see `finish`."""
        return self._end(
            job,
            State.FAILED,
            fault=fault,
            reason=reason,
            phase=phase,
            original=original,
            hook=hook,
        )

    def drop(self, job: Job, reason: str) -> bool:
        """Forget a running job whose file has changed or gone; a newer version is another job."""
        return self._end(job, State.DROPPED, reason=reason)

    def _end(
        self,
        job: Job,
        state: State,
        *,
        fault: str | None = None,
        reason: str | None = None,
        phase: str | None = None,
        content: bytes | None = None,
        question: bytes | None = None,
        original: bool = False,
        hook: Facts | None = None,
    ) -> bool:
        now = self._clock()
        with self._write() as db:
            cursor = db.execute(
                "UPDATE job SET state = ?, fault = ?, reason = ?, phase = ?, content = ?,"
                " question = ?, original = ?, moved_to = NULL, fresh = 0, finished = ?"
                " WHERE id = ? AND state = 'running'",
                (
                    state,
                    fault,
                    reason,
                    phase,
                    content,
                    question,
                    "due" if original else None,
                    now,
                    job.id,
                ),
            )
            if hook is not None and cursor.rowcount == 1:
                hooks.add(db, job, state, hook, now)
        return cursor.rowcount == 1

    def requeue(
        self,
        job: Job,
        *,
        count: bool,
        crashed: bool = False,
        died: bool = False,
        wait: float = 0.0,
        fault: str | None = None,
        reason: str | None = None,
    ) -> bool:
        """Put a running job back; one that somebody cancelled is given up instead.

        Args:
            job: the job.
            count: whether the attempt counts; not when the job was merely interrupted.
            crashed: whether a decode process died on it.
            died: whether the device was lost while it answered for this job alone.
            wait: seconds before it may be tried again.
            fault: whose fault it is that it has to wait.
            reason: why it has to wait.
        """
        with self._write() as db:
            if db.execute(f"{_STOP} AND id = ?", (self._clock(), job.id)).rowcount:
                return True
            cursor = db.execute(
                "UPDATE job SET state = 'queued', attempts = attempts - ?, crashes = crashes + ?,"
                " deaths = deaths + ?, waits = waits + ?, next_try = ?, fault = ?, reason = ?"
                " WHERE id = ? AND state = 'running'",
                (
                    0 if count else 1,
                    int(crashed),
                    int(died),
                    int(wait > 0),
                    self._clock() + wait if wait else 0,
                    fault,
                    reason,
                    job.id,
                ),
            )
        return cursor.rowcount == 1

    def interrupted(self) -> list[Job]:
        """At the start: what was running when the daemon died."""
        with self._read() as db:
            rows = db.execute(f"SELECT {JOB_COLUMNS} FROM job WHERE state = 'running'").fetchall()
        return [job(row) for row in rows]

    def end_cancelled(self) -> list[Job]:
        """At the start: what was cancelled while it ran, and did not stop in time, is given up.

        Returns:
            The jobs given up.
        """
        with self._write() as db:
            rows = db.execute(f"{_STOP} RETURNING {JOB_COLUMNS}", (self._clock(),)).fetchall()
        return [job(row) for row in rows]

    def recover(self) -> list[Job]:
        """At the start: what was running when the daemon died waits again. The attempt counts.

        What would wait since a time to come, because the clock was set back, waits since now:
        nothing else would bring it before what comes after it.

        Returns:
            The jobs put back.
        """
        now = self._clock()
        with self._write() as db:
            rows = db.execute(
                f"UPDATE job SET state = 'queued' WHERE state = 'running' RETURNING {JOB_COLUMNS}"
            ).fetchall()
            db.execute(
                "UPDATE job SET queued = ? WHERE state = 'queued' AND coalesce(queued, added) > ?",
                (now, now),
            )
        return [job(row) for row in rows]

    # ---- answers that are known

    def answered(self, size: int, question: bytes) -> dict[str, tuple[str, bytes]]:
        """Where files of a size were answered the same question.

        Args:
            size: bytes.
            question: see `phi4d.job.question`.

        Returns:
            The content's hash, in hexadecimal, to the inbox and path of one that has it.
        """
        with self._read() as db:
            rows = db.execute(
                "SELECT content, inbox, path FROM job WHERE state = 'done' AND content IS NOT NULL"
                " AND size = ? AND question = ? ORDER BY id DESC LIMIT 1000",
                (size, question),
            ).fetchall()
        return {bytes(content).hex(): (inbox, bytes(path)) for content, inbox, path in rows}

    # ---- originals

    def originals(self, inboxes: Sequence[str], limit: int = 100) -> list[tuple[Job, State]]:
        """Jobs of some inboxes whose originals are due to be moved or deleted, and how they ended.

        Those of other inboxes, where it cannot be done now, do not stand in the way.
        """
        marks = ",".join("?" * len(inboxes))
        with self._read() as db:
            rows = db.execute(
                f"SELECT {JOB_COLUMNS}, state FROM job WHERE original = 'due'"
                f" AND +inbox IN ({marks}) ORDER BY id LIMIT ?",
                (*inboxes, limit),
            ).fetchall()
        return [(job(row[:-1]), State(row[-1])) for row in rows]

    def settle_original(self, job: Job, became: str, moved_to: bytes | None = None) -> None:
        """Note what became of a source file that was due: 'moved', 'deleted' or 'kept'."""
        with self._write() as db:
            db.execute(
                "UPDATE job SET original = ?, moved_to = ? WHERE id = ? AND original = 'due'",
                (became, moved_to, job.id),
            )

    # ---- hooks

    def hook_due(self, target: Target) -> Due | None:
        """The oldest hook of an inbox and an end of its jobs that may be seen to now.

        Not before the job's source file is where it is to stay, nor before its next try; those that
        were tried before come last.
        """
        with self._read() as db:
            return hooks.first(db, target, self._clock())

    def hooks_left(self, target: Target) -> int:
        """How many have not been seen to, whenever they may be."""
        with self._read() as db:
            return hooks.count(db, target)

    def settle_hook(self, due: Due) -> None:
        """Note that a hook has been seen to."""
        with self._write() as db:
            db.execute("DELETE FROM hook WHERE id = ?", (due.id,))

    def put_off_hook(self, due: Due, wait: float) -> None:
        """Let a hook be tried again in so many seconds."""
        with self._write() as db:
            db.execute(
                "UPDATE hook SET tries = tries + 1, next_try = ? WHERE id = ?",
                (self._clock() + wait, due.id),
            )

    def hurry_hooks(self) -> None:
        """Let every hook be tried at once."""
        with self._write() as db:
            db.execute("UPDATE hook SET next_try = 0 WHERE next_try > 0")

    def give_up_hooks(self, target: Target, seconds: float) -> int:
        """Remove the hooks of jobs that ended longer ago; how many there were."""
        with self._write() as db:
            return hooks.give_up(db, target, self._clock() - seconds)

    def forget_hooks(self, keep: Collection[Target]) -> int:
        """Remove the hooks of all other inboxes and ends; how many there were."""
        with self._write() as db:
            return hooks.forget(db, keep)

    # ---- what people ask for

    def retry(self, inbox: str, below: bytes = b"") -> Chosen:
        """Take up what failed or waits for its next try, as if it had just come in.

        What was moved away or deleted is passed over, here and below.

        Args:
            inbox: the inbox's name.
            below: a file in the inbox, or a folder with everything in it; nothing: all.

        Returns:
            What is queued now.
        """
        which = "(state = 'failed' OR state = 'queued' AND next_try > 0)"
        return self._again("fresh = fresh", which, (), inbox, below, dry_run=False)

    def cancel(
        self, inbox: str, below: bytes, reason: str, *, running: bool = False
    ) -> tuple[Chosen, int]:
        """Give up what waits, without a try; see `retry`.

        Args:
            inbox: the inbox's name.
            below: as for `retry`.
            reason: who wants it, and what to do if it is wanted after all.
            running: whether what runs is to be given up too: it is marked, and its worker ends it
                when it asks `cancelled`, unless it is done before that.

        Returns:
            What was given up, and how many were marked.
        """
        which = "(state = 'queued' OR state = 'running')" if running else "state = 'queued'"
        first: list[bytes] = []
        count = marked = 0
        for some in self._ids(which, (), inbox, below):
            with self._write() as db:
                rows = db.execute(
                    "UPDATE job SET fault = 'operator', reason = ?, phase = NULL,"
                    " finished = iif(state = 'queued', ?, finished),"
                    " state = iif(state = 'queued', 'failed', state)"
                    f" WHERE {which} AND id IN (SELECT value FROM json_each(?))"
                    " RETURNING id, path, state",
                    (reason, self._clock(), some),
                ).fetchall()
            given_up = sorted((n, path) for n, path, state in rows if state == State.FAILED)
            count += len(given_up)
            marked += len(rows) - len(given_up)
            first += [bytes(path) for _, path in given_up[: FIRST_FEW - len(first)]]
        return Chosen(count, tuple(first)), marked

    def cancelled(self, jobs: Collection[Job]) -> dict[int, str]:
        """Which of some running jobs somebody cancelled: their ids, and the reason."""
        with self._read() as db:
            rows = db.execute(
                "SELECT id, reason FROM job WHERE state = 'running' AND fault IS 'operator'"
                " AND id IN (SELECT value FROM json_each(?))",
                (json.dumps([job.id for job in jobs]),),
            ).fetchall()
        return dict(rows)

    def regenerate(self, inbox: str, below: bytes = b"", *, dry_run: bool = False) -> Chosen:
        """Answer anew what is done, whatever is known; see `retry`.

        Args:
            inbox: the inbox's name.
            below: as for `retry`.
            dry_run: only tell what it would be.
        """
        return self._again("fresh = 1", "state = 'done'", (), inbox, below, dry_run=dry_run)

    def regenerate_stale(
        self,
        inbox: str,
        kind: Kind,
        question: bytes,
        below: bytes = b"",
        *,
        dry_run: bool = False,
    ) -> Chosen:
        """Answer anew what is done of a kind, but was asked something else; see `regenerate`."""
        which, values = "state = 'done' AND kind = ? AND question IS NOT ?", (kind, question)
        return self._again("fresh = 0", which, values, inbox, below, dry_run=dry_run)

    def _again(
        self,
        how: str,
        which: str,
        values: tuple[object, ...],
        inbox: str,
        below: bytes,
        *,
        dry_run: bool,
    ) -> Chosen:
        which += " AND (original IS NULL OR original NOT IN ('moved', 'deleted'))"
        first: list[bytes] = []
        count = 0
        # bit by bit: the workers have their turns in between
        for some in self._ids(which, values, inbox, below):
            these = f"{which} AND id IN (SELECT value FROM json_each(?))"
            with self._read() if dry_run else self._write() as db:
                if dry_run:
                    found = db.execute(f"SELECT id, path FROM job WHERE {these}", (*values, some))
                else:
                    found = db.execute(
                        "UPDATE job SET state = 'queued', original = NULL, queued = ?,"
                        f" {how}, {_ANEW} WHERE {these} RETURNING id, path",
                        (self._clock(), *values, some),
                    )
                rows = found.fetchall()
            count += len(rows)
            first += [bytes(path) for _, path in sorted(rows)[: FIRST_FEW - len(first)]]
        return Chosen(count, tuple(first))

    def _ids(
        self, which: str, values: tuple[object, ...], inbox: str, below: bytes
    ) -> Iterator[str]:
        """The ids of jobs in an inbox, or a part of it, in order; a few at a time, as JSON."""
        query, values = _in(which, values, inbox, below)
        # in one string, for whoever steps through a million rows keeps other threads waiting
        with self._look() as db:
            (found,) = db.execute(
                f"SELECT json_group_array(id) FROM (SELECT id FROM job WHERE {query})", values
            ).fetchone()
        ids = array("q", sorted(json.loads(found)))
        for begin in range(0, len(ids), ADD_ROWS):
            yield json.dumps(ids[begin : begin + ADD_ROWS].tolist())

    def gone(self, state: State, inbox: str, below: bytes = b"") -> Iterator[Job]:
        """Jobs that ended so, and whose source files were then moved or deleted; see `retry`."""
        which = "state = ? AND original IN ('moved', 'deleted')"
        for some in self._ids(which, (state,), inbox, below):
            with self._read() as db:
                rows = db.execute(
                    f"SELECT {JOB_COLUMNS} FROM job WHERE id IN (SELECT value FROM json_each(?))",
                    (some,),
                ).fetchall()
            yield from map(job, rows)

    def came_back(self, job: Job) -> None:
        """Note that a source file which was moved away is at its place again."""
        with self._write() as db:
            db.execute("UPDATE job SET original = NULL, moved_to = NULL WHERE id = ?", (job.id,))

    # ---- inboxes that somebody paused

    def pause(self, inbox: str, who: str, why: str = "") -> bool:
        """Let nothing more be claimed of an inbox until `resume`, over restarts too.

        Args:
            inbox: its name.
            who: the user who wants it.
            why: in the user's words.

        Returns:
            Whether it was not paused before; an earlier pause stays as it is.
        """
        with self._write() as db:
            cursor = db.execute(
                "INSERT INTO paused VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (inbox, self._clock(), who, why),
            )
        return cursor.rowcount == 1

    def resume(self, inbox: str) -> bool:
        """End the pause of an inbox; whether it was paused."""
        with self._write() as db:
            cursor = db.execute("DELETE FROM paused WHERE inbox = ?", (inbox,))
        return cursor.rowcount == 1

    def paused(self) -> dict[str, Paused]:
        """The inboxes that somebody paused, by their names."""
        with self._read() as db:
            return reader.paused(db)

    # ---- what people want to know

    def notice(self, inbox: str, about: str, text: str | None) -> None:
        """Note what keeps an inbox from working, for `phi4d status`; None: it works again."""
        with self._write() as db:
            if text is None:
                db.execute("DELETE FROM notice WHERE inbox = ? AND about = ?", (inbox, about))
                return
            db.execute(
                "INSERT INTO notice VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET text = excluded.text",
                (inbox, about, text, self._clock()),
            )

    def forget_notices(self) -> None:
        """At the start: what kept a daemon from working that is no more."""
        with self._write() as db:
            db.execute("DELETE FROM notice")

    def busy(self, inboxes: Sequence[str]) -> bool:
        """Whether any job of these inboxes runs, or waits for nothing but its turn or a retry.

        What waits for its surroundings is left out: that may take for ever; see `blocked`.
        """
        marks = ",".join("?" * len(inboxes))
        # each half has an index of its own, however many jobs are done
        with self._read() as db:
            (found,) = db.execute(
                "SELECT EXISTS (SELECT 1 FROM job"
                " WHERE state = 'queued' AND fault IS NOT 'environment'"
                f" AND inbox IN ({marks}))"
                " OR EXISTS (SELECT 1 FROM job"
                f" WHERE state = 'running' AND +inbox IN ({marks}))",
                (*inboxes, *inboxes),
            ).fetchone()
        return bool(found)

    def blocked(self, inboxes: Sequence[str]) -> list[tuple[Job, str]]:
        """Up to ten jobs that wait for their surroundings, and for what."""
        marks = ",".join("?" * len(inboxes))
        with self._read() as db:
            rows = db.execute(
                f"SELECT {JOB_COLUMNS}, reason FROM job WHERE state = 'queued'"
                f" AND fault = 'environment' AND inbox IN ({marks}) ORDER BY id LIMIT 10",
                (*inboxes,),
            ).fetchall()
        return [(job(row[:-1]), str(row[-1])) for row in rows]

    def versions(self, inbox: str, path: bytes) -> list[Row]:
        """Every version of a file that is known, the newest first."""
        with self._read() as db:
            return reader.versions(db, inbox, path)

    def holds(self, inbox: str, below: bytes) -> bool:
        """Whether a file, or anything in a folder, is known; see `retry`."""
        query, values = _in("true", (), inbox, below)
        with self._read() as db:
            (found,) = db.execute(
                f"SELECT EXISTS (SELECT 1 FROM job WHERE {query})", values
            ).fetchone()
        return bool(found)

    def counts(self) -> dict[str, dict[State, int]]:
        """Number of jobs by inbox and state, without those that somebody cancelled."""
        with self._read() as db:
            return reader.counts(db)

    def tally(self) -> dict[tuple[str, Kind, State], int]:
        """Number of jobs by inbox, kind and state."""
        with self._read() as db:
            return reader.tally(db)

    def oldest(self) -> dict[str, float]:
        """Since when the longest waiting job of each inbox waits, in seconds since the epoch.

        Inboxes in which nothing waits are missing.
        """
        with self._read() as db:
            return reader.oldest(db)


def _unreadable(error: sqlite3.Error) -> EnvironmentFault:
    return EnvironmentFault(
        f"the store cannot be read: {error}; expected a disk that works: it is tried again"
    )


def _in(
    which: str, values: tuple[object, ...], inbox: str, below: bytes
) -> tuple[str, tuple[object, ...]]:
    """The condition that a job is such a one, and in an inbox or a part of it; and its values."""
    if not below:
        return f"{which} AND inbox = ?", (*values, inbox)
    # the first two bounds are what an index can be asked
    part = "inbox = ? AND path >= ? AND path < ? AND (path = ? OR path > ?)"
    return f"{which} AND {part}", (*values, inbox, below, below + b"0", below, below + b"/")


_ANEW = (
    "attempts = 0, crashes = 0, deaths = 0, waits = 0, next_try = 0, fault = NULL, phase = NULL,"
    " reason = NULL, moved_to = NULL"
)
_STOP = (
    "UPDATE job SET state = 'failed', finished = ? WHERE state = 'running' AND fault IS 'operator'"
)
"""gives up what was cancelled while it ran"""
_GONE = "job.state = 'dropped' OR job.original IS NOT NULL AND job.original IN ('moved', 'deleted')"
