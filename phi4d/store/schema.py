"""The store's tables, how an older store becomes one of today, what is done with a broken one."""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import time
from pathlib import Path

from phi4d import events
from phi4d.errors import PASSING, ConfigError, EnvironmentFault
from phi4d.notify import GettingOn

log = logging.getLogger(__name__)

SQLITE_VERSION = sqlite3.sqlite_version_info
PROGRESS_OPCODES = 100_000  # of SQLite's machine, some milliseconds
SCHEMA_VERSION = 7
DUE = "coalesce(queued, added) + iif(kind = 'audio', min(size / 16000.0, 10800.0), 0.0)"
"""`Job.due` in SQL, word for word as `job_due` has it, or SQLite does not see that it is the same;
other numbers want another index, and so a migration"""
_HOOKS = """
CREATE TABLE hook (                         -- what is to be run or told because a job has ended
    id         INTEGER PRIMARY KEY,
    event      TEXT    NOT NULL,            -- names this end of the job, to whoever is told
    job        INTEGER NOT NULL,
    inbox      TEXT    NOT NULL,
    path       BLOB    NOT NULL,
    kind       TEXT    NOT NULL,
    state      TEXT    NOT NULL,            -- how the job ended: 'done', 'failed'
    finished   REAL    NOT NULL,            -- seconds since the epoch, like next_try
    facts      TEXT    NOT NULL,            -- JSON: device, seconds, reason and so on
    tries      INTEGER NOT NULL DEFAULT 0,
    next_try   REAL    NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX hook_due ON hook (inbox, state, next_try, id);
"""
_TALLY = """
CREATE TABLE tally (                        -- jobs by these three: counting them takes long
    inbox      TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    state      TEXT    NOT NULL,
    n          INTEGER NOT NULL,
    PRIMARY KEY (inbox, kind, state)
) STRICT, WITHOUT ROWID;
INSERT INTO tally SELECT inbox, kind, state, count(*) FROM job GROUP BY inbox, kind, state;
CREATE TRIGGER tally_insert AFTER INSERT ON job BEGIN
    INSERT INTO tally VALUES (new.inbox, new.kind, new.state, 1)
        ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER tally_update AFTER UPDATE OF kind, state ON job
    WHEN old.state <> new.state OR old.kind <> new.kind BEGIN
    UPDATE tally SET n = n - 1 WHERE inbox = old.inbox AND kind = old.kind AND state = old.state;
    INSERT INTO tally VALUES (new.inbox, new.kind, new.state, 1)
        ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER tally_delete AFTER DELETE ON job BEGIN
    UPDATE tally SET n = n - 1 WHERE inbox = old.inbox AND kind = old.kind AND state = old.state;
END;
CREATE TABLE paused (                       -- inboxes from which an operator lets nothing be taken
    inbox      TEXT    NOT NULL PRIMARY KEY,
    since      REAL    NOT NULL,            -- seconds since the epoch
    who        TEXT    NOT NULL,            -- the user who asked for it
    why        TEXT    NOT NULL             -- in that user's words; may be empty
) STRICT, WITHOUT ROWID;
CREATE INDEX job_oldest ON job (inbox, coalesce(queued, added)) WHERE state = 'queued';
"""
_FAILURES = """
CREATE INDEX job_failure ON job (finished) WHERE state = 'failed' AND fault IS NOT 'operator';
CREATE INDEX job_cancelled ON job (inbox, kind, state, fault)
    WHERE state = 'failed' AND fault IS 'operator';
"""
_INDEXES = """
CREATE TABLE notice (                       -- what keeps an inbox from working, for `phi4d status`
    inbox      TEXT    NOT NULL,
    about      TEXT    NOT NULL,            -- 'outbox', 'watch', 'originals', 'on_done' ...
    text       TEXT    NOT NULL,
    since      REAL    NOT NULL,            -- seconds since the epoch
    PRIMARY KEY (inbox, about)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_answer ON job (size, question) WHERE state = 'done' AND content IS NOT NULL;
CREATE INDEX job_put_off ON job (id) WHERE state = 'queued' AND next_try > 0;
CREATE INDEX job_original ON job (id) WHERE original = 'due';
"""
_QUEUES = f"CREATE INDEX job_due ON job (inbox, kind, {DUE}) WHERE state = 'queued';"
SCHEMA = (
    """
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
    next_try   REAL    NOT NULL DEFAULT 0,  -- not claimed before, seconds since the epoch
    waits      INTEGER NOT NULL DEFAULT 0,  -- how often it was put off
    phase      TEXT,                        -- where it failed: 'decode', 'answer', 'write'
    content    BLOB,                        -- SHA-256 of the file's bytes
    question   BLOB,                        -- SHA-256 of model, prompt and options
    fresh      INTEGER NOT NULL DEFAULT 0,  -- to be answered anew, even if an answer is known
    original   TEXT,                        -- 'due' to be moved or deleted, 'moved', 'deleted', ...
    moved_to   BLOB,                        -- where to; any bytes
    queued     REAL,                        -- since when it waits; NULL: since it was added
    UNIQUE (inbox, path, inode, size, mtime_ns)
) STRICT;
CREATE INDEX job_running ON job (id) WHERE state = 'running';
"""
    + _INDEXES
    + _TALLY
    + _HOOKS
    + _FAILURES
    + _QUEUES
)
MIGRATIONS = {
    1: "ALTER TABLE job ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;",
    2: """
DROP INDEX job_state;
DROP INDEX job_waiting;
ALTER TABLE job ADD COLUMN next_try REAL NOT NULL DEFAULT 0;
ALTER TABLE job ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;
ALTER TABLE job ADD COLUMN phase TEXT;
ALTER TABLE job ADD COLUMN content BLOB;
ALTER TABLE job ADD COLUMN question BLOB;
ALTER TABLE job ADD COLUMN fresh INTEGER NOT NULL DEFAULT 0;
ALTER TABLE job ADD COLUMN original TEXT;
ALTER TABLE job ADD COLUMN moved_to BLOB;
"""
    + _INDEXES,
    3: """
DROP TRIGGER IF EXISTS tally_insert;
DROP TRIGGER IF EXISTS tally_update;
DROP TRIGGER IF EXISTS tally_delete;
DROP TABLE IF EXISTS tally;
ALTER TABLE job ADD COLUMN queued REAL;
"""
    + _TALLY,
    4: _HOOKS,
    5: "DROP INDEX job_failed;" + _FAILURES,
    6: "DROP INDEX IF EXISTS job_queue;" + _QUEUES,
}
"""what makes the next version of a store of this version"""
_PASSING = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
}
"""primary result codes of what goes by by itself, or with help, but not with another config"""
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def open_store(path: Path, *, anew: bool = True) -> sqlite3.Connection:
    """Open the store for reading and writing, made or brought up to date if need be.

    A store that is damaged is set aside under another name, said in the log, and begun anew: the
    sidecars tell what was done (`phi4d.outputs.told`).

    Args:
        path: the store.
        anew: False: a damaged store is left as it is.

    Raises:
        ConfigError: it cannot be opened, or is from a newer phi4d.
        EnvironmentFault: its disk is full or failing; or it is damaged, and left as it is.
    """
    try:
        try:
            return _open(path)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            if not anew:
                raise damaged(path, error) from error
            aside = set_aside(path)
            log.error(  # noqa: TRY400 -- foreseen
                "%s: the store is damaged (%s); it was set aside as %s and is begun anew: files "
                "that have their sidecars count as done",
                path,
                error,
                aside,
                extra=events.STORE_SET_ASIDE(),
            )
            return _open(path)
    except sqlite3.Error as error:
        if _code(error) in _PASSING or _is_full(path.parent):
            raise EnvironmentFault(
                f"{path}: the store cannot be opened: {error}; expected room on its disk, and a "
                "disk that works"
            ) from error
        raise ConfigError(
            f"{path}: the store cannot be opened: {error}; expected a folder that the daemon's "
            "user can write, and no other program's file in its place"
        ) from error


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error tells that the store itself is broken."""
    return _code(error) in _BROKEN


def damaged(path: Path, error: sqlite3.Error) -> EnvironmentFault:
    """What a damaged store is called where it is not set aside."""
    return EnvironmentFault(
        f"{path}: the store is damaged ({error}): start phi4d anew, which sets it aside and begins "
        "another; files that have their sidecars count as done"
    )


def _is_full(folder: Path) -> bool:
    """Whether a folder takes no file because its disk is full: SQLite does not tell."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return False
    except OSError as error:
        return error.errno in PASSING


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA busy_timeout = 5000")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # NORMAL forgets 'done' at a power cut
        # what takes long in a large store asks the service manager for more time
        db.set_progress_handler(GettingOn(), PROGRESS_OPCODES)
        _check(db)
        _upgrade(db, path)
        db.set_progress_handler(None, 0)
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection) -> None:
    """Look whether the file's structure is sound; a million jobs take about a second."""
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        error = sqlite3.DatabaseError(str(found).replace("\n", "; "))
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _upgrade(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == 0:
        db.executescript(
            f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
        return
    while version in MIGRATIONS:
        db.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;"
        )
        version += 1
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: the store has version {version}; this phi4d knows {SCHEMA_VERSION}: "
            "install the newer phi4d again, or move the file away to begin anew"
        )


def set_aside(path: Path) -> Path:
    """Give a broken store, and the files that belong to it, another name.

    Returns:
        The new name.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.name}.broken-{stamp}")
    n = 0
    while aside.exists():
        n += 1
        aside = path.with_name(f"{path.name}.broken-{stamp}-{n}")
    # what was not yet written into the database goes first: were we killed in between, the next
    # start would take it for the new store's
    for suffix in ("-wal", "-shm", ""):
        old = path.with_name(path.name + suffix)
        if old.exists():
            os.rename(old, aside.with_name(aside.name + suffix))
    return aside
