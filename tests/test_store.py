"""The store: compare-and-set, idempotent, durable, one writer."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import Clock

from phi4d.errors import ConfigError, EnvironmentFault
from phi4d.job import Arrival, Fingerprint, Kind, State
from phi4d.store import ADD_ROWS, SCHEMA_VERSION, Reader, Store

VERSION_1 = """
CREATE TABLE job (
    id         INTEGER PRIMARY KEY,
    inbox      TEXT    NOT NULL,
    path       BLOB    NOT NULL,
    kind       TEXT    NOT NULL,
    inode      INTEGER NOT NULL,
    size       INTEGER NOT NULL,
    mtime_ns   INTEGER NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('queued','running','done','failed','dropped')),
    attempts   INTEGER NOT NULL DEFAULT 0,
    crashes    INTEGER NOT NULL DEFAULT 0,
    device     TEXT,
    fault      TEXT,
    reason     TEXT,
    added      REAL    NOT NULL,
    started    REAL,
    finished   REAL,
    UNIQUE (inbox, path, inode, size, mtime_ns)
) STRICT;
CREATE INDEX job_waiting ON job (id) WHERE state = 'queued';
CREATE INDEX job_running ON job (id) WHERE state = 'running';
CREATE INDEX job_state ON job (inbox, state);
CREATE INDEX job_failed ON job (finished) WHERE state = 'failed';
PRAGMA user_version = 1;
"""


def arrival(path: bytes = b"a.jpg", version: int = 1, inbox: str = "in") -> Arrival:
    return Arrival(inbox, path, Kind.IMAGE, Fingerprint(11, 22, version))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite3"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[Store]:
    with Store(path, clock) as store:
        yield store


def states(store: Store, inbox: str = "in") -> dict[str, int]:
    return {str(s): n for s, n in store.counts().get(inbox, {}).items() if n}


class TestAdd:
    def test_a_version_is_queued_once_however_often_it_is_seen(self, store: Store) -> None:
        assert store.add([arrival(), arrival()]) == 1
        assert store.add([arrival()]) == 0
        assert states(store) == {"queued": 1}

    def test_a_finished_version_is_not_queued_again(self, store: Store) -> None:
        store.add([arrival()])
        (job,) = store.claim([1], "cpu")
        store.finish(job)
        assert store.add([arrival()]) == 0
        assert states(store) == {"done": 1}

    @pytest.mark.parametrize("became", ["queued", "done", "failed"])
    def test_a_newer_version_takes_the_place_of_an_older(self, store: Store, became: str) -> None:
        store.add([arrival(version=1)])
        if became != "queued":
            (job,) = store.claim([1], "cpu")
            store.finish(job) if became == "done" else store.fail(job, "file", "bad")
        assert store.add([arrival(version=2)]) == 1
        assert states(store) == {"dropped": 1, "queued": 1}
        assert store.waiting(9, ["in"])[0].fingerprint.mtime_ns == 2

    def test_a_running_version_is_left_to_its_worker(self, store: Store) -> None:
        store.add([arrival(version=1)])
        store.claim([1], "cpu")
        store.add([arrival(version=2)])
        assert states(store) == {"running": 1, "queued": 1}

    def test_a_version_that_comes_back_is_done_again(self, store: Store) -> None:
        store.add([arrival(version=1)])
        store.finish(store.claim([1], "cpu")[0])
        store.add([arrival(version=2)])
        assert store.add([arrival(version=1)]) == 1
        assert states(store) == {"dropped": 1, "queued": 1}
        assert store.waiting(9, ["in"])[0].fingerprint.mtime_ns == 1
        assert store.waiting(9, ["in"])[0].attempts == 0

    def test_the_same_path_in_two_inboxes_is_two_jobs(self, store: Store) -> None:
        assert store.add([arrival(inbox="a"), arrival(inbox="b")]) == 2

    def test_more_rows_than_one_transaction_holds(self, store: Store) -> None:
        many = [arrival(b"%d.jpg" % n) for n in range(ADD_ROWS + 5)]
        assert store.add(many) == len(many)
        assert len(store.waiting(len(many) * 2, ["in"])) == len(many)

    @given(st.binary(min_size=1, max_size=300).filter(lambda b: b"\0" not in b))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def test_any_name_comes_back_as_it_went_in(self, store: Store, name: bytes) -> None:
        store.add([arrival(name)])
        assert name in {job.path for job in store.waiting(10_000, ["in"])}


class TestClaim:
    def test_a_claim_moves_the_job_and_counts_the_attempt(self, store: Store) -> None:
        store.add([arrival()])
        (job,) = store.claim([1], "cuda:0")
        assert job.attempts == 1
        assert states(store) == {"running": 1}
        assert store.waiting(9, ["in"]) == []

    def test_two_workers_never_get_the_same_job(self, store: Store) -> None:
        store.add([arrival(b"%d" % n) for n in range(200)])
        ids = [job.id for job in store.waiting(200, ["in"])]
        got: list[int] = []

        def work() -> None:
            for job_id in ids:
                got.extend(job.id for job in store.claim([job_id], "cpu"))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == sorted(ids)

    def test_inboxes_that_were_not_asked_for_are_passed_over(self, store: Store) -> None:
        store.add([arrival(inbox="a"), arrival(inbox="b")])
        assert [job.inbox for job in store.waiting(9, ["b"])] == ["b"]
        assert store.waiting(9, []) == []
        assert store.busy(["a"])
        assert not store.busy(["c"])
        assert not store.busy([])
        for job in store.claim([1, 2], "cpu"):
            assert store.busy([job.inbox])  # what runs counts as well
            store.finish(job)
        assert not store.busy(["a", "b"])

    def test_the_oldest_come_first(self, store: Store) -> None:
        store.add([arrival(b"z"), arrival(b"a")])
        assert [job.path for job in store.waiting(1, ["in"])] == [b"z"]
        assert [job.path for job in store.claim([2, 1], "cpu")] == [b"z", b"a"]

    @pytest.mark.parametrize(
        ("call", "index"),
        [("busy", "job_running"), ("busy", "job_waiting"), ("waiting", "job_waiting")],
    )
    def test_a_million_finished_jobs_do_not_slow_it_down(
        self, store: Store, call: str, index: str
    ) -> None:
        asked: list[str] = []
        store._db.set_trace_callback(asked.append)
        store.busy(["x"]) if call == "busy" else store.waiting(5, ["x"])
        store._db.set_trace_callback(None)
        (query,) = asked
        plan = " ".join(row[-1] for row in store._db.execute("EXPLAIN QUERY PLAN " + query))
        assert index in plan
        assert "SCAN job USING" in plan or "SEARCH job USING" in plan
        assert "job_state" not in plan

    def test_jobs_to_pass_over_do_not_count_towards_the_limit(self, store: Store) -> None:
        store.add([arrival(b"%d" % n) for n in range(1000)])
        assert [job.id for job in store.waiting(5, ["in"], range(1, 999))] == [999, 1000]
        assert [job.id for job in store.waiting(1, ["in"], [1])] == [2]


class TestEnds:
    def test_each_end_needs_a_running_job(self, store: Store) -> None:
        store.add([arrival()])
        (waiting,) = store.waiting(1, ["in"])
        assert not store.finish(waiting)
        assert not store.fail(waiting, "file", "x")
        assert not store.drop(waiting, "x")
        assert not store.requeue(waiting, count=True)
        assert states(store) == {"queued": 1}

    def test_a_job_ends_once(self, store: Store) -> None:
        store.add([arrival()])
        (job,) = store.claim([1], "cpu")
        assert store.finish(job)
        assert not store.fail(job, "file", "x")
        assert states(store) == {"done": 1}

    @pytest.mark.parametrize(("count", "attempts"), [(True, 1), (False, 0)])
    def test_what_is_put_back_counts_if_it_is_told_to(
        self, store: Store, count: bool, attempts: int
    ) -> None:
        store.add([arrival()])
        (job,) = store.claim([1], "cpu")
        assert store.requeue(job, count=count, crashed=True)
        (again,) = store.waiting(1, ["in"])
        assert (again.attempts, again.crashes, again.deaths) == (attempts, 1, 0)
        (job,) = store.claim([1], "cpu")
        assert store.requeue(job, count=count, died=True)
        (again,) = store.waiting(1, ["in"])
        assert (again.attempts, again.crashes, again.deaths) == (2 * attempts, 1, 1)

    def test_failures_are_told_newest_first(self, store: Store, path: Path, clock: Clock) -> None:
        store.add([arrival(b"a"), arrival(b"b")])
        for job in store.claim([1, 2], "cpu"):
            clock.advance(1)
            store.fail(job, "file", f"reason {job.id}")
        reader = Reader(path)
        assert [(f.path, f.reason, f.fault) for f in reader.failures(1)] == [
            (b"b", "reason 2", "file")
        ]
        reader.close()


class TestRecovery:
    def test_what_was_running_waits_again_and_the_attempt_counts(
        self, store: Store, path: Path, clock: Clock
    ) -> None:
        store.add([arrival(b"a"), arrival(b"b")])
        store.claim([1], "cpu")
        store.close()

        with Store(path, clock) as again:
            assert [job.path for job in again.recover()] == [b"a"]
            assert [(job.path, job.attempts) for job in again.waiting(9, ["in"])] == [
                (b"a", 1),
                (b"b", 0),
            ]

    def test_a_killed_process_loses_nothing_that_was_acknowledged(self, path: Path) -> None:
        script = (
            "import os, sys, signal\n"
            "from pathlib import Path\n"
            "from phi4d.store import *\n"
            "store = Store(Path(sys.argv[1]))\n"
            "a = [Arrival('in', b'%d' % n, Kind.IMAGE, Fingerprint(1, 2, n)) for n in range(50)]\n"
            "store.add(a)\n"
            "for job in store.claim(range(1, 21), 'cpu')[:10]: store.finish(job)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
        assert done.returncode == -9
        with Store(path) as store:
            assert states(store) == {"done": 10, "running": 10, "queued": 30}
            assert len(store.recover()) == 10
            assert states(store) == {"done": 10, "queued": 40}


class TestFile:
    def test_it_writes_ahead_and_through_to_the_disk(self, store: Store) -> None:
        db = store._db
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)

    def test_something_else_in_its_place_is_refused(self, path: Path) -> None:
        path.write_bytes(b"not a database, but long enough to be looked at" * 100)
        with pytest.raises(ConfigError, match="cannot be opened"):
            Store(path)
        assert path.read_bytes().startswith(b"not a database")

    def test_a_store_from_the_future_is_refused(self, path: Path) -> None:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
        with pytest.raises(ConfigError, match="version 99"):
            Store(path)

    def test_a_store_of_the_first_version_is_brought_up_to_date(self, path: Path) -> None:
        # given a store that the first version made
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.executescript(VERSION_1)
            db.execute(
                "INSERT INTO job (inbox, path, kind, inode, size, mtime_ns, state, attempts,"
                " device, added, started)"
                " VALUES ('in', x'61', 'image', 1, 2, 3, 'running', 4, 'cpu', 8, 9)"
            )
        # when it is only looked at, it can be read as it is
        reader = Reader(path)
        ((running, device, _),) = reader.running()
        reader.close()
        assert (running.path, running.attempts, device) == (b"a", 4, "cpu")
        # when a daemon opens it, and another one later
        for _ in range(2):
            with Store(path) as store:
                store.recover()
                (job,) = store.waiting(1, ["in"])
                assert (job.path, job.attempts, job.deaths) == (b"a", 4, 0)
        # then it is a store like any new one
        Store(path.with_name("new")).close()
        found = []
        for each in (path, path.with_name("new")):
            with contextlib.closing(sqlite3.connect(each)) as db:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                found.append((version, db.execute("PRAGMA table_info(job)").fetchall()))
        assert found[0] == found[1]
        assert found[0][0] == SCHEMA_VERSION

    def test_a_store_that_cannot_be_brought_up_to_date_is_left_as_it_was(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.executescript(VERSION_1 + "ALTER TABLE job ADD COLUMN deaths TEXT;")
        with pytest.raises(ConfigError, match="cannot be opened: duplicate column"):
            Store(path)
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (1,)

    def test_a_full_disk_is_the_surroundings_fault_and_heals(self, store: Store) -> None:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(EnvironmentFault, match="disk is full"):
            store.add([arrival(b"x" * 200 + b"%d" % n) for n in range(500)])
        assert states(store) == {}

        store._db.execute("PRAGMA max_page_count = 1000000")
        assert store.add([arrival()]) == 1

    def test_closing_twice_is_no_fault(self, store: Store) -> None:
        store.close()
        store.close()


class TestReader:
    def test_it_needs_a_store(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Reader(path)

    @pytest.mark.parametrize("open_", [True, False])
    def test_it_sees_the_same_with_and_without_a_daemon(
        self, store: Store, path: Path, clock: Clock, open_: bool
    ) -> None:
        store.add([arrival(b"a"), arrival(b"b")])
        store.claim([1], "cuda:1")
        if not open_:
            store.close()
        reader = Reader(path)
        assert reader.counts()["in"][State.RUNNING] == 1
        ((job, device, since),) = reader.running()
        assert (job.path, device, since) == (b"a", "cuda:1", clock.now)
        reader.close()

    def test_it_cannot_write(self, store: Store, path: Path) -> None:
        reader = Reader(path)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._db.execute("DELETE FROM job")
        reader.close()


def test_an_arrival_is_a_plain_value() -> None:
    assert replace(arrival(), path=b"b") == arrival(b"b")
