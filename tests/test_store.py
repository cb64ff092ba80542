"""The store: compare-and-set, idempotent, durable, one writer."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import Clock, unprivileged

from phi4d.errors import ConfigError, EnvironmentFault
from phi4d.job import Arrival, Fingerprint, Kind, State
from phi4d.store import ADD_ROWS, SCHEMA_VERSION, Chosen, Reader, Store, reader, schema

NOTHING = Chosen(0, ())
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
TALLY_3 = """
CREATE TABLE tally (
    inbox      TEXT    NOT NULL,
    state      TEXT    NOT NULL,
    n          INTEGER NOT NULL,
    PRIMARY KEY (inbox, state)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER tally_insert AFTER INSERT ON job BEGIN
    INSERT INTO tally VALUES (new.inbox, new.state, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER tally_update AFTER UPDATE OF state ON job WHEN old.state <> new.state BEGIN
    UPDATE tally SET n = n - 1 WHERE inbox = old.inbox AND state = old.state;
    INSERT INTO tally VALUES (new.inbox, new.state, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER tally_delete AFTER DELETE ON job BEGIN
    UPDATE tally SET n = n - 1 WHERE inbox = old.inbox AND state = old.state;
END;
PRAGMA user_version = 3;
"""
"""what stores of the third version counted with"""


def arrival(path: bytes = b"a.jpg", version: int = 1, inbox: str = "in") -> Arrival:
    return Arrival(inbox, path, Kind.IMAGE, Fingerprint(11, 22, version))


def outline(path: Path) -> tuple[int, list[tuple[str, ...]], list[list[object]]]:
    """A store's version, what there is in it, and the columns of its tables."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        parts = db.execute("SELECT type, name, tbl_name FROM sqlite_master ORDER BY 1, 2")
        tables = ("hook", "job", "notice", "paused", "tally")
        columns = [db.execute(f"PRAGMA table_info({name})").fetchall() for name in tables]
        return version, parts.fetchall(), columns


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

    def test_the_oldest_come_first_and_are_got_in_the_order_that_was_wanted(
        self, store: Store
    ) -> None:
        store.add([arrival(b"z"), arrival(b"a"), arrival(b"b")])
        assert [job.path for job in store.waiting(1, ["in"])] == [b"z"]
        assert [job.path for job in store.claim([3, 99, 1, 2], "cpu")] == [b"b", b"z", b"a"]

    def test_of_each_kind_in_each_inbox_so_many_and_the_small_ones_first(
        self, store: Store, clock: Clock
    ) -> None:
        # given long recordings, then pictures and memos in two inboxes
        hour, memo = 57_600_000, 100_000
        for n, (inbox, kind, size) in enumerate(
            [("in", Kind.AUDIO, hour)] * 2
            + [("in", Kind.IMAGE, hour), *[("in", Kind.IMAGE, memo)] * 4]
            + [("in", Kind.AUDIO, memo), ("other", Kind.AUDIO, memo)]
        ):
            store.add([Arrival(inbox, b"%d" % n, kind, Fingerprint(n, size, 0))])
            clock.advance(60)
        # when the heads of the queues are asked for
        names = [(job.inbox, job.name) for job in store.waiting(2, ["in", "other"])]
        # then none stands in another's way
        assert names == [("in", "2"), ("in", "3"), ("in", "7"), ("in", "0"), ("other", "8")]

    @given(st.sampled_from(Kind), st.integers(0, 2**45), st.floats(1, 2e9))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def test_a_job_is_due_when_the_index_has_it(
        self, store: Store, kind: Kind, size: int, queued: float
    ) -> None:
        with store._write() as db:
            db.execute("DELETE FROM job")
        store._clock = lambda: queued
        store.add([Arrival("in", b"a", kind, Fingerprint(1, size, 0))])
        (job,) = store.waiting(1, ["in"])
        ((due,),) = store._db.execute(f"SELECT {schema.DUE} FROM job")  # noqa: S608 -- ours
        assert job.due == due

    def test_what_is_wanted_again_is_due_from_then_on(self, store: Store, clock: Clock) -> None:
        store.add([arrival(b"failed"), arrival(b"waits")])
        store.fail(*store.claim([1], "cpu"), "file", "bad")
        clock.advance(1)
        store.retry("in")
        assert [job.path for job in store.waiting(2, ["in"])] == [b"waits", b"failed"]

    @pytest.mark.parametrize(
        ("call", "index"),
        [("busy", "job_running"), ("busy", "(inbox=?)"), ("waiting", "job_due")],
    )
    def test_a_million_finished_jobs_do_not_slow_it_down(
        self, store: Store, call: str, index: str
    ) -> None:
        asked: list[str] = []
        store._db.set_trace_callback(asked.append)
        store.busy(["x"]) if call == "busy" else store.waiting(5, ["x"])
        store._db.set_trace_callback(None)
        assert len(asked) == (1 if call == "busy" else len(Kind))
        query = asked[0]
        plan = " ".join(row[-1] for row in store._db.execute("EXPLAIN QUERY PLAN " + query))
        assert index in plan
        assert "SCAN job USING" in plan or "SEARCH job USING" in plan
        assert "TEMP B-TREE" not in plan

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


class TestKnown:
    def test_a_file_that_is_written_over_and_over_leaves_no_row_each_time(
        self, store: Store
    ) -> None:
        for mtime_ns in range(5):
            store.add([Arrival("in", b"a.jpg", Kind.IMAGE, Fingerprint(1, 2, mtime_ns))])
        assert states(store) == {"dropped": 1, "queued": 1}

    def test_a_version_is_known_in_every_state_but_dropped(self, store: Store) -> None:
        store.add([arrival(b"%d" % n) for n in range(5)])
        jobs = store.claim([2, 3, 4, 5], "cpu")
        store.finish(jobs[1])
        store.fail(jobs[2], "file", "x")
        store.drop(jobs[3], "x")
        found = store.known([("in", b"%d" % n, arrival().fingerprint) for n in range(6)])
        assert found == [True, True, True, True, False, False]

    def test_another_version_or_inbox_is_not(self, store: Store) -> None:
        store.add([arrival()])
        fingerprint = arrival().fingerprint
        others = [replace(fingerprint, **{key: 7}) for key in ("inode", "size", "mtime_ns")]
        assert store.known([("in", b"a.jpg", other) for other in others]) == [False] * 3
        assert store.known([("other", b"a.jpg", fingerprint)]) == [False]

    def test_what_was_found_done_is_not_queued(self, store: Store) -> None:
        store.add([arrival(version=1)])
        assert store.adopt([(arrival(version=2), b"c", b"q"), (arrival(b"b"), None, None)]) == 2
        assert store.adopt([(arrival(version=2), b"c", b"q")]) == 0
        assert states(store) == {"dropped": 1, "done": 2}
        assert store.answered(22, b"q") == {b"c".hex(): ("in", b"a.jpg")}

    def test_what_was_moved_away_and_is_put_back_is_new(self, store: Store) -> None:
        store.add([arrival()])
        (job,) = store.claim([1], "cpu")
        store.finish(job, original=True)
        assert store.known([("in", b"a.jpg", job.fingerprint)]) == [True]  # it is due, not gone
        store.settle_original(job, "moved", b"/done/a.jpg")
        assert store.known([("in", b"a.jpg", job.fingerprint)]) == [False]
        assert store.adopt([(arrival(), b"c", b"q")], original=True) == 1
        assert [found.path for found, _ in store.originals(["in"])] == [b"a.jpg"]
        store.settle_original(job, "deleted")
        assert store.add([arrival()]) == 1
        assert states(store) == {"queued": 1}
        assert store.originals(["in"]) == []


class TestWaits:
    def test_a_job_that_was_put_off_is_passed_over_until_it_is_due(
        self, store: Store, clock: Clock
    ) -> None:
        store.add([arrival()])
        (job,) = store.claim([1], "cpu")
        assert store.requeue(job, count=True, wait=5, fault="file", reason="crashed")
        assert store.waiting(1, ["in"]) == []
        assert store.busy(["in"])
        clock.advance(5.1)
        (again,) = store.waiting(1, ["in"])
        assert (again.attempts, again.waits) == (1, 1)

    def test_a_clock_that_was_set_back_holds_nothing_up(self, store: Store, clock: Clock) -> None:
        store.add([arrival()])
        store.requeue(store.claim([1], "cpu")[0], count=False, wait=300)
        clock.advance(-86_400)
        assert len(store.waiting(1, ["in"])) == 1

    def test_what_waits_for_its_surroundings_does_not_keep_busy(self, store: Store) -> None:
        store.add([arrival(), arrival(inbox="other")])
        for job in store.claim([1, 2], "cpu"):
            store.requeue(job, count=False, wait=5, fault="environment", reason="no permission")
        assert not store.busy(["in"])
        ((blocked, reason),) = store.blocked(["in"])
        assert (blocked.inbox, reason) == ("in", "no permission")

    def test_what_was_waited_for_is_forgotten_at_the_end(self, store: Store, path: Path) -> None:
        store.add([arrival()])
        store.requeue(store.claim([1], "cpu")[0], count=False, wait=-1, fault="environment")
        store.finish(store.claim([1], "cpu")[0])
        reader = Reader(path)
        (row,) = reader.versions("in", b"a.jpg")
        reader.close()
        assert (row.state, row.fault, row.reason) == (State.DONE, None, None)


class TestAnswered:
    def test_only_done_ones_of_the_same_size_and_question_are_told(self, store: Store) -> None:
        store.add([arrival(b"%d" % n) for n in range(4)])
        a, b, c, _ = store.claim([1, 2, 3, 4], "cpu")
        store.finish(a, content=b"\1", question=b"q")
        store.finish(b, content=b"\2", question=b"other")
        store.finish(c, question=b"q")  # was cut or reduced: no use to others
        assert store.answered(22, b"q") == {"01": ("in", b"0")}
        assert store.answered(23, b"q") == {}


class TestOriginals:
    def test_they_are_due_until_something_became_of_them(self, store: Store, path: Path) -> None:
        store.add([arrival(b"a"), arrival(b"b"), arrival(b"c")])
        a, b, c = store.claim([1, 2, 3], "cpu")
        store.finish(a, original=True)
        store.fail(b, "file", "x", "decode", original=True)
        store.finish(c)
        assert [(job.path, state) for job, state in store.originals(["in"])] == [
            (b"a", State.DONE),
            (b"b", State.FAILED),
        ]
        store.settle_original(a, "moved", b"/done/a")
        store.settle_original(b, "deleted")
        assert store.originals(["in"]) == []
        reader = Reader(path)
        (row,) = reader.versions("in", b"a")
        assert (row.original, row.moved_to) == ("moved", b"/done/a")
        assert reader.versions("in", b"b")[0].phase == "decode"
        reader.close()

    def test_a_newer_version_spares_the_older_from_being_moved(self, store: Store) -> None:
        store.add([arrival(version=1)])
        store.finish(store.claim([1], "cpu")[0], original=True)
        store.add([arrival(version=2)])
        assert store.originals(["in"]) == []


class TestAgain:
    @pytest.fixture
    def ended(self, store: Store) -> Store:
        names = (b"a/1", b"a/2", b"a/b/3", b"a.x", b"ab", b"w", b"a0")
        store.add([arrival(name) for name in names])
        jobs = store.claim(range(1, 8), "cpu")
        for job in jobs[:3]:
            store.fail(job, "file", "x", "decode")
        store.finish(jobs[3], question=b"old")
        store.finish(jobs[4], question=b"new")
        store.requeue(jobs[5], count=False, wait=100, fault="environment", reason="y")
        store.fail(jobs[6], "file", "x", "decode")
        return store

    @pytest.mark.parametrize(
        ("below", "found"),
        [
            (b"", [b"a/1", b"a/2", b"a/b/3", b"w", b"a0"]),
            (b"a", [b"a/1", b"a/2", b"a/b/3"]),
            (b"a/b", [b"a/b/3"]),
            (b"a/1", [b"a/1"]),
            (b"w", [b"w"]),
            (b"a0", [b"a0"]),
            (b"ab", []),
            (b"nothing", []),
        ],
    )
    def test_what_failed_or_waits_is_taken_up(
        self, ended: Store, below: bytes, found: list[bytes]
    ) -> None:
        assert ended.retry("in", below) == Chosen(len(found), tuple(found))
        jobs = ended.waiting(9, ["in"])
        assert [job.path for job in jobs] == found
        assert not any(job.attempts or job.waits or job.fresh for job in jobs)
        assert ended.retry("other", below) == NOTHING
        assert ended.retry("in", below) == NOTHING

    def test_only_the_first_few_are_named(self, store: Store) -> None:
        store.add([arrival(b"%05d" % n) for n in range(ADD_ROWS + 5)])
        for job in store.claim(range(1, ADD_ROWS + 6), "cpu"):
            store.finish(job)
        names = tuple(b"%05d" % n for n in range(10))
        assert store.regenerate("in", dry_run=True) == Chosen(ADD_ROWS + 5, names)
        assert states(store) == {"done": ADD_ROWS + 5}
        assert store.regenerate("in") == Chosen(ADD_ROWS + 5, names)
        assert states(store) == {"queued": ADD_ROWS + 5}

    def test_a_file_is_found_without_looking_through_all(
        self, ended: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []
        connect = reader.connect

        def traced(path: Path) -> sqlite3.Connection:
            db = connect(path)
            db.set_trace_callback(asked.append)
            return db

        monkeypatch.setattr(reader, "connect", traced)
        ended.retry("in", b"a")
        ended._db.set_trace_callback(asked.append)
        ended.holds("in", b"a")
        ended._db.set_trace_callback(None)
        for query in (next(each for each in asked if "json_group_array" in each), asked[-1]):
            plan = [row[-1] for row in ended._db.execute("EXPLAIN QUERY PLAN " + query)]
            assert any(step.endswith("(inbox=? AND path>? AND path<?)") for step in plan)

    def test_while_files_are_looked_for_others_write(
        self, ended: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given an order that is in the midst of finding out what it is about
        begun, go_on, connect = threading.Event(), threading.Event(), reader.connect

        def slow(path: Path) -> sqlite3.Connection:
            begun.set()
            assert go_on.wait(30)
            return connect(path)

        monkeypatch.setattr(reader, "connect", slow)
        found: list[Chosen] = []
        looking = threading.Thread(target=lambda: found.append(ended.retry("in")))
        looking.start()
        try:
            assert begun.wait(30)
            # then an inbox can be paused, and a job come in
            assert ended.pause("in", "ada")
            assert ended.add([arrival(b"new")]) == 1
        finally:
            go_on.set()
            looking.join()
        assert found[0].count > 0

    def test_whether_anything_is_known_there(self, ended: Store) -> None:
        for known in (b"", b"a", b"a/b", b"a/b/3", b"ab"):
            assert ended.holds("in", known)
        assert not ended.holds("in", b"b")
        assert not ended.holds("other", b"")

    def test_what_is_done_is_answered_anew_if_asked_for(self, ended: Store) -> None:
        assert ended.regenerate("in", b"ab") == Chosen(1, (b"ab",))
        assert [job.fresh for job in ended.waiting(9, ["in"])] == [True]
        ended.finish(ended.claim([5], "cpu")[0])
        assert ended.retry("in", b"ab") == NOTHING

    def test_what_was_asked_something_else_is_stale(self, ended: Store) -> None:
        one = Chosen(1, (b"a.x",))
        assert ended.regenerate_stale("in", Kind.IMAGE, b"new", dry_run=True) == one
        assert ended.regenerate_stale("in", Kind.IMAGE, b"new") == one
        assert [(job.path, job.fresh) for job in ended.waiting(9, ["in"])] == [(b"a.x", False)]
        assert ended.regenerate_stale("in", Kind.AUDIO, b"x") == NOTHING
        assert ended.regenerate_stale("in", Kind.IMAGE, b"x", b"a") == NOTHING

    def test_what_was_moved_away_cannot_be_done_again(self, store: Store) -> None:
        store.add([arrival(b"a"), arrival(b"b")])
        for job in store.claim([1, 2], "cpu"):
            store.finish(job, original=True)
            store.settle_original(job, "moved" if job.path == b"a" else "kept", b"/x")
        assert store.regenerate("in") == Chosen(1, (b"b",))

    def test_what_is_at_its_place_again_can(self, store: Store) -> None:
        # given a failed and a done one, which were moved away and deleted
        store.add([arrival(b"a/1"), arrival(b"b")])
        failed, done = store.claim([1, 2], "cpu")
        store.fail(failed, "file", "x", original=True)
        store.finish(done, original=True)
        store.settle_original(failed, "moved", b"/x")
        store.settle_original(done, "deleted")
        assert [job.path for job in store.gone(State.FAILED, "in")] == [b"a/1"]
        assert [job.path for job in store.gone(State.DONE, "in")] == [b"b"]
        assert list(store.gone(State.FAILED, "in", b"b")) == []
        # when one is found where it was
        (gone,) = store.gone(State.FAILED, "in", b"a")
        store.came_back(gone)
        # then it is like any other
        assert list(store.gone(State.FAILED, "in")) == []
        assert store.retry("in") == Chosen(1, (b"a/1",))


class TestNotices:
    def test_they_stand_until_it_works_again(self, store: Store, path: Path, clock: Clock) -> None:
        reader = Reader(path)
        store.notice("in", "outbox", "full")
        clock.advance(1)
        store.notice("in", "watch", "polled")
        store.notice("in", "outbox", "still full")
        assert [(n.about, n.text, n.since) for n in reader.notices()] == [
            ("outbox", "still full", clock.now - 1),
            ("watch", "polled", clock.now),
        ]
        store.notice("in", "outbox", None)
        assert [n.about for n in reader.notices()] == ["watch"]
        store.forget_notices()
        assert reader.notices() == []
        reader.close()


class TestPaused:
    def test_a_pause_stays_until_it_is_ended(self, store: Store, path: Path, clock: Clock) -> None:
        assert store.pause("in", "ada", "the outbox moves")
        clock.advance(1)
        assert not store.pause("in", "bob")
        assert store.pause("other", "bob")
        with Store(path.with_name("x")) as another:
            assert another.paused() == {}
        store.close()
        with Store(path) as store, contextlib.closing(Reader(path)) as reader:
            assert reader.paused() == store.paused()
            first, second = store.paused().values()
            assert (first.inbox, first.since) == ("in", clock.now - 1)
            assert (first.words, second.words) == (
                "paused by ada: the outbox moves", "paused by bob",
            )  # fmt: skip
            assert store.resume("in")
            assert not store.resume("in")
            assert list(reader.paused()) == ["other"]


class TestOldest:
    def test_it_is_since_when_something_waits(self, store: Store, path: Path, clock: Clock) -> None:
        # given two that came in one after the other, and one elsewhere
        store.add([arrival(b"a")])
        clock.advance(1)
        store.add([arrival(b"b"), arrival(b"c", inbox="other")])
        with contextlib.closing(Reader(path)) as reader:
            began = clock.now - 1
            assert reader.oldest() == store.oldest() == {"in": began, "other": began + 1}
            # when the first is taken, the second is the oldest
            (job,) = store.claim([1], "cpu")
            assert job.queued == began
            assert reader.oldest()["in"] == began + 1
            # when it is put back, it has waited all the while
            clock.advance(1)
            store.requeue(job, count=False)
            assert reader.oldest()["in"] == began
            # when it has failed and is wanted again, it waits since then
            (job,) = store.claim([1], "cpu")
            store.fail(job, "file", "bad")
            clock.advance(1)
            store.retry("in")
            assert store.claim([1], "cpu")[0].queued == clock.now
            # when nothing waits, there is no oldest
            store.claim([2, 3], "cpu")
            assert reader.oldest() == {}

    def test_it_is_read_by_its_index(self, store: Store) -> None:
        plan: list[str] = []
        store._db.set_trace_callback(plan.append)
        store.add([arrival()])
        store.oldest()
        store._db.set_trace_callback(None)
        (query,) = [line for line in plan if line.startswith("SELECT inbox, (SELECT coalesce")]
        steps = [row[3] for row in store._db.execute(f"EXPLAIN QUERY PLAN {query}")]
        assert any("job_oldest (inbox=?)" in step for step in steps), steps
        assert not any("SCAN job" in step or "TEMP B-TREE FOR ORDER" in step for step in steps)


class TestTally:
    @given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), max_size=30))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def test_it_is_what_counting_gives(self, store: Store, steps: list[tuple[int, int]]) -> None:
        for what, n in steps:
            kind = Kind.AUDIO if what % 2 else Kind.IMAGE  # of a file that is back, perhaps another
            store.add([replace(arrival(b"%d" % n, version=what % 3), kind=kind)])
            jobs = store.claim([n], "cpu") if what > 1 else []
            for job in jobs:
                if what == 2:
                    store.finish(job)
                elif what == 3:
                    store.fail(job, "file", "x")
                elif what == 4:
                    store.drop(job, "x")
                elif what == 5:
                    store.requeue(job, count=True)
            store.retry("in")
        counted = store._db.execute("SELECT inbox, kind, state, count(*) FROM job GROUP BY 1, 2, 3")
        tally = {(inbox, Kind(kind), State(state)): n for inbox, kind, state, n in counted}
        assert store.tally() == tally
        totals = Counter[State]()
        for (_, _, state), n in tally.items():
            totals[state] += n
        assert states(store) == {str(state): n for state, n in totals.items()}


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

    def test_what_came_before_the_clock_was_set_back_has_its_turn(
        self, store: Store, clock: Clock
    ) -> None:
        # given a file that came while the clock went wrong
        clock.advance(1e6)
        store.add([arrival(b"early")])
        clock.advance(-1e6)
        # when the next daemon starts, and another comes
        store.recover()
        clock.advance(1)
        store.add([arrival(b"late")])
        # then it does not wait until the clock is there again
        assert [job.path for job in store.waiting(9, ["in"])] == [b"early", b"late"]

    def test_a_killed_process_loses_nothing_that_was_acknowledged(self, path: Path) -> None:
        script = (
            "import os, sys, signal\n"
            "from pathlib import Path\n"
            "from phi4d.job import *\n"
            "from phi4d.store import Store\n"
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

    @pytest.mark.parametrize("how", ["no database", "torn"])
    def test_a_broken_one_is_set_aside_with_its_name_in_the_log(
        self, path: Path, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given a store with jobs, of which something was destroyed
        with Store(path) as store:
            store.add([arrival(b"%d" % n) for n in range(2000)])
        data = bytearray(path.read_bytes())
        if how == "torn":
            data[8192 : len(data) // 2] = b"\xa5" * (len(data) // 2 - 8192)
        else:
            data = bytearray(b"not a database, but long enough to be looked at" * 100)
        path.write_bytes(data)
        # when it is opened
        with Store(path) as store:
            # then there is a new one, which works
            assert store.add([arrival()]) == 1
        # and the old one is kept, and named
        (aside,) = path.parent.glob("jobs.sqlite3.broken-*")
        assert aside.read_bytes() == data
        assert str(aside) in caplog.text

    def test_a_broken_one_is_left_alone_where_no_other_is_wanted(self, path: Path) -> None:
        path.write_bytes(b"not a database, but long enough to be looked at" * 100)
        with pytest.raises(EnvironmentFault, match=r"is damaged \(.*start phi4d anew"):
            Store(path, anew=False)
        with pytest.raises(EnvironmentFault, match=r"is damaged \(.*start phi4d anew"):
            Reader(path)
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_broken_ones_do_not_replace_each_other(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(schema.time, "strftime", lambda _: "now")
        for n in range(3):
            path.write_bytes(b"no database %d" % n * 100)
            Store(path).close()
        for n, name in enumerate(["broken-now", "broken-now-1", "broken-now-2"]):
            aside = path.with_name(f"{path.name}.{name}")
            assert aside.read_bytes().startswith(b"no database %d" % n)

    def test_a_folder_in_its_place_is_refused(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(ConfigError, match="cannot be opened"):
            Store(path)

    def test_a_folder_without_room_for_a_file_is_the_surroundings_fault(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN

        def cannot(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(schema.sqlite3, "connect", cannot)
        with pytest.raises(ConfigError, match="unable to open"):
            Store(path)

        def full(**_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(schema.tempfile, "TemporaryFile", full)
        with pytest.raises(EnvironmentFault, match="unable to open"):
            Store(path)

    def test_a_failing_disk_is_the_surroundings_fault(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL

        def full(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(schema.sqlite3, "connect", full)
        with pytest.raises(EnvironmentFault, match="disk is full"):
            Store(path)

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
                assert states(store) == {"queued": 1}
        # then it is a store like any new one
        Store(path.with_name("new")).close()
        assert outline(path) == outline(path.with_name("new"))
        assert outline(path)[0] == SCHEMA_VERSION

    def test_a_store_of_the_third_version_is_brought_up_to_date(self, path: Path) -> None:
        # given a store that counted by inbox and state alone
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.executescript(VERSION_1)
            for version in (1, 2):
                db.executescript(schema.MIGRATIONS[version])
            db.executescript(TALLY_3)
            db.executemany(
                "INSERT INTO job (inbox, path, kind, inode, size, mtime_ns, state, added,"
                " next_try) VALUES ('in', ?, ?, 1, 2, 3, ?, 8, 1)",
                [(b"a", "image", "queued"), (b"b", "audio", "done"), (b"c", "audio", "done")],
            )
        counted = {
            ("in", Kind.IMAGE, State.QUEUED): 1,
            ("in", Kind.AUDIO, State.DONE): 2,
        }
        # when it is only looked at, it can be read as it is
        with contextlib.closing(Reader(path)) as reader:
            assert reader.tally() == counted
            assert (reader.oldest(), reader.paused(), reader.put_off(1)) == ({}, {}, [])
            with pytest.raises(EnvironmentFault, match="start the daemon once"):
                reader.versions("in", b"a")
        # when a daemon opens it
        with Store(path) as store:
            # then it counts by kind, too, from there on
            assert store.tally() == counted
            store.claim([1], "cpu")
            assert store.tally() == {
                ("in", Kind.IMAGE, State.RUNNING): 1,
                ("in", Kind.AUDIO, State.DONE): 2,
            }
        # and it is a store like any new one
        Store(path.with_name("new")).close()
        assert outline(path) == outline(path.with_name("new"))

    def test_a_store_of_the_fourth_version_is_brought_up_to_date(self, path: Path) -> None:
        # given a store that knew no hooks, with a file that is being worked on
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.executescript(VERSION_1)
            for version in (1, 2, 3):
                db.executescript(schema.MIGRATIONS[version])
            db.execute(
                "INSERT INTO job (inbox, path, kind, inode, size, mtime_ns, state, added)"
                " VALUES ('in', x'61', 'image', 1, 2, 3, 'running', 8)"
            )
            db.execute("PRAGMA user_version = 4")
        # when it is only looked at, it can be read as it is
        with contextlib.closing(Reader(path)) as reader:
            assert reader.counts()["in"][State.RUNNING] == 1
        # when a daemon opens it, and the file is done
        with Store(path) as store:
            (job,) = store.recover()
            store.claim([job.id], "cpu")
            assert store.finish(job, hook={"device": "cpu"})
            # then its hook is due
            due = store.hook_due(("in", State.DONE))
            assert due is not None
            assert (due.path, due.facts) == (b"a", {"device": "cpu"})
        # and it is a store like any new one
        Store(path.with_name("new")).close()
        assert outline(path) == outline(path.with_name("new"))

    def test_a_store_of_the_sixth_version_is_brought_up_to_date(self, path: Path) -> None:
        # given a store with one queue an inbox
        with Store(path) as store:
            store.add([arrival(b"large"), arrival(b"small")])
            store._db.executescript(
                "UPDATE job SET kind = 'audio', size = 160000 WHERE id = 1; DROP INDEX job_due;"
                "CREATE INDEX job_queue ON job (inbox, id) WHERE state = 'queued';"
                "PRAGMA user_version = 6;"
            )
        # when a daemon opens it
        with Store(path) as store:
            # then each kind has its own
            assert [job.path for job in store.waiting(1, ["in"])] == [b"small", b"large"]
        # and it is a store like any new one
        Store(path.with_name("new")).close()
        assert outline(path) == outline(path.with_name("new"))

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

    def test_a_folder_that_may_not_be_read_is_said(self, store: Store, path: Path) -> None:
        with unprivileged(path.parent), pytest.raises(EnvironmentFault, match="be the daemon's"):
            Reader(path)

    def test_it_cannot_write(self, store: Store, path: Path) -> None:
        reader = Reader(path)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._db.execute("DELETE FROM job")
        reader.close()


def test_an_arrival_is_a_plain_value() -> None:
    assert replace(arrival(), path=b"b") == arrival(b"b")
