"""What becomes of a job: by whose fault it is, with real files, store and decode processes."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deskkit import WAIT_SECONDS, Desk

from phi4d.engine.fake import FakeEngine
from phi4d.errors import DecoderDied, EnvironmentFault, SourceFault, Stopped
from phi4d.job import Kind, State
from phi4d.outputs import atomic, originals
from phi4d.store import Reader, Row
from phi4d.task import Rule
from phi4d.worker import Originals, Surroundings, Worker


def row(desk: Desk, name: str) -> Row:
    reader = Reader(desk.outbox.parent / "jobs.sqlite3")
    try:
        return reader.versions("in", name.encode())[0]
    finally:
        reader.close()


def record(desk: Desk, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((desk.outbox / f"{name}.json").read_text())
    return found


def refuse(desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str, *errors: Exception) -> None:
    """Let the decoding of a file fail, once with each error."""
    waiting = list(errors)

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def decode(path: bytes, *args: Any, **options: Any) -> Any:
            if path.endswith(name.encode()) and waiting:
                raise waiting.pop(0)
            return real(path, *args, **options)

        return decode

    monkeypatch.setattr(desk.pool, "decode", failing(desk.pool.decode))
    monkeypatch.setattr(desk.pool, "try_decode", failing(desk.pool.try_decode))


class TestQuarantine:
    def test_a_file_at_fault_gets_a_record_of_why(self, desk: Desk) -> None:
        (desk.inbox / "sub").mkdir()
        bad = desk.inbox / "sub" / "bad.jpg"
        bad.write_bytes(b"this is no picture")
        desk.add(bad)
        desk.start(FakeEngine())
        desk.wait_for(1)

        told = record(desk, "sub/bad.jpg.error")
        assert told["source"] == "sub/bad.jpg"
        assert (told["fault"], told["phase"], told["attempts"]) == ("file", "decode", 1)
        assert "it holds text" in told["message"]
        found = row(desk, "sub/bad.jpg")
        assert (found.state, found.fault, found.phase) == (State.FAILED, "file", "decode")
        assert bad.exists()

    def test_the_record_goes_when_the_file_was_mended(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        path = desk.inbox / "a.png"
        path.write_bytes(b"this is no picture")
        desk.add(path)
        desk.start(FakeEngine())
        desk.wait_for(1)
        assert (desk.outbox / "a.png.error.json").exists()

        make_picture(path)
        desk.add(path)
        desk.wait_for(2)
        assert sorted(os.listdir(desk.outbox)) == ["a.png.json", "a.png.txt"]

    def test_what_failed_of_an_older_version_is_of_no_interest(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        path = desk.inbox / "a.png"
        path.write_bytes(b"this is no picture")
        desk.add(path)
        make_picture(desk.inbox / "new.png").rename(path)
        desk.start(FakeEngine(), max_attempts=0)
        desk.wait_for(1)
        assert row(desk, "a.png").state is State.DROPPED
        assert os.listdir(desk.outbox) == []

    def test_a_retry_takes_it_up_again(self, desk: Desk) -> None:
        path = desk.inbox / "a.png"
        path.write_bytes(b"this is no picture")
        desk.add(path)
        (worker,) = (desk.start(FakeEngine()),)
        desk.wait_for(1)
        assert desk.store.retry("in").count == 1
        worker.wake()
        desk.wait_for(2)
        assert row(desk, "a.png").job.attempts == 1

    def test_where_the_record_cannot_be_written_the_inbox_pauses_and_nothing_fails(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paused = threading.Event()
        real = desk.pauses.pause
        monkeypatch.setattr(desk.pauses, "pause", lambda *args: (paused.set(), real(*args))[1])
        path = desk.inbox / "a.png"
        path.write_bytes(b"this is no picture")
        desk.outbox.rmdir()
        desk.add(path)
        desk.start(FakeEngine())
        assert paused.wait(WAIT_SECONDS)
        assert "failed" not in desk.counts()
        desk.outbox.mkdir()
        desk.wait_for(1)
        assert desk.counts() == {"failed": 1}
        assert (desk.outbox / "a.png.error.json").exists()

    def test_a_folder_in_the_place_of_the_record_does_not_hold_the_failure_up(
        self, desk: Desk
    ) -> None:
        path = desk.inbox / "a.png"
        path.write_bytes(b"this is no picture")
        (desk.outbox / "a.png.error.json").mkdir()
        desk.add(path)
        desk.start(FakeEngine())
        ((_, _, words),) = desk.wait_for(1)
        assert "it holds text" in words
        assert "no record of it" in words


class TestPutOff:
    def test_what_cannot_be_read_now_waits_and_the_others_go_on(
        self,
        desk: Desk,
        make_picture: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        # given a file that cannot be read for longer than attempts are counted
        fault = SourceFault("cannot be read: Permission denied")
        refuse(desk, monkeypatch, "a.png", *[fault] * 7)
        desk.add(make_picture(desk.inbox / "a.png"), make_picture(desk.inbox / "b.png", (5, 5)))
        desk.start(FakeEngine(), max_attempts=2)
        # then it is done at last, after the other; nothing failed and nothing paused
        ended = desk.wait_for(2)
        assert [job.name for job, _, _ in ended] == ["b.png", "a.png"]
        assert desk.counts() == {"done": 2}
        assert caplog.text.count("Permission denied; next try in") == 1
        assert "pauses" not in caplog.text
        assert row(desk, "a.png").reason is None

    def test_what_waits_is_known_with_its_reason(
        self, desk: Desk, make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse(desk, monkeypatch, "a.png", SourceFault("cannot be read: Permission denied"))
        put_off = threading.Event()
        real = desk.store.requeue
        monkeypatch.setattr(
            desk.store, "requeue", lambda *a, **o: (real(*a, **o), put_off.set())[0]
        )
        desk.add(make_picture(desk.inbox / "a.png"))
        desk.start(FakeEngine(), retry_seconds=1000.0)
        assert put_off.wait(WAIT_SECONDS)
        found = row(desk, "a.png")
        assert (found.state, found.fault) == (State.QUEUED, "environment")
        assert found.reason == "cannot be read: Permission denied"
        assert found.job.attempts == 0
        assert 200 < found.next_try - found.added < 400  # never longer than minutes
        assert desk.store.blocked(["in"])

    def test_a_crash_of_its_decoder_is_forgiven_once(
        self, desk: Desk, make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse(desk, monkeypatch, "a.png", DecoderDied("killed by SIGSEGV"))
        desk.add(make_picture(desk.inbox / "a.png"))
        desk.start(FakeEngine())
        desk.wait_for(1)
        assert desk.counts() == {"done": 1}
        assert row(desk, "a.png").job.crashes == 1

    def test_a_fault_of_ours_is_told_in_the_record_at_last(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))

        def answer(_: object) -> str:
            raise ZeroDivisionError("a bug")

        desk.start(FakeEngine(answer=answer), max_attempts=2)
        desk.wait_for(1)
        told = record(desk, "a.png.error")
        assert (told["fault"], told["attempts"]) == ("internal", 2)
        assert "ZeroDivisionError: a bug" in told["message"]

    def test_a_folder_of_the_outbox_that_cannot_be_written_holds_up_its_files_alone(
        self,
        desk: Desk,
        make_picture: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        shut = os.fsencode(desk.outbox / "shut")
        real, other = atomic.write_all, desk.outbox / "b.png.json"

        def write_all(folder: bytes, *args: Any) -> Any:
            if folder == shut and not other.exists():
                raise atomic.as_fault(PermissionError(errno.EACCES, "Permission denied"), folder)
            return real(folder, *args)

        monkeypatch.setattr(atomic, "write_all", write_all)
        desk.add(
            make_picture(desk.inbox / "shut/a.png"), make_picture(desk.inbox / "b.png", (5, 5))
        )
        desk.start(FakeEngine(), batch_size=1)
        ended = desk.wait_for(2)
        assert [job.name for job, _, _ in ended] == ["b.png", "shut/a.png"]
        assert desk.counts() == {"done": 2}
        assert "pauses" not in caplog.text

    def test_a_pause_ends_though_nothing_is_left_to_do(
        self, desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resumed = threading.Event()
        real = desk.pauses.resume
        monkeypatch.setattr(desk.pauses, "resume", lambda inbox: (real(inbox), resumed.set())[0])
        desk.pauses.pause("in", "the outbox is gone", 0.0)
        desk.start(FakeEngine())
        assert resumed.wait(WAIT_SECONDS)
        assert desk.pauses.reasons() == {}


class TestInboxGone:
    def test_files_of_an_inbox_that_is_gone_are_not_gone(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        # given files of an inbox that was unmounted after they were queued
        path = make_picture(desk.inbox / "a.png")
        desk.add(path)
        away = desk.inbox.with_name("away")
        desk.inbox.rename(away)
        asked = threading.Event()

        def root_fault(inbox: str) -> str | None:
            fault = None if desk.inbox.exists() else f'inbox "{inbox}" is not there'
            asked.set()
            return fault

        desk.start(FakeEngine(), surroundings=Surroundings(root_fault))
        assert asked.wait(WAIT_SECONDS)
        assert "dropped" not in desk.counts()
        # when it is back
        away.rename(desk.inbox)
        desk.wait_for(1)
        # then they are done
        assert desk.counts() == {"done": 1}
        assert caplog.text.count('inbox "in" is not there') == 1

    def test_a_file_that_changed_is_looked_at_again(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        path = make_picture(desk.inbox / "a.png")
        desk.add(path)
        make_picture(path, (5, 5))
        told: list[tuple[str, bytes]] = []

        def changed(inbox: str, name: bytes) -> None:
            told.append((inbox, name))
            desk.add(path)

        desk.start(FakeEngine(), surroundings=Surroundings(changed=changed))
        desk.wait_for(2)
        assert told == [("in", b"a.png")]
        assert desk.counts() == {"done": 1}


class TestDoneBefore:
    @pytest.fixture
    def killed(self, desk: Desk, make_picture: Callable[..., Path]) -> Desk:
        """A daemon wrote the sidecars, and was killed before it could say so in the store."""
        desk.add(make_picture(desk.inbox / "a.png"))
        worker = desk.start(FakeEngine(), reuse=True)
        desk.wait_for(1)
        worker.stop()
        worker.join()
        desk.store._db.execute("UPDATE job SET state = 'running', content = NULL")
        desk.store.recover()
        return desk

    def test_what_was_safe_is_not_asked_again(self, killed: Desk) -> None:
        engine = FakeEngine()
        killed.start(engine)
        killed.wait_for(2)
        assert engine.calls == []
        assert killed.counts() == {"done": 1}
        assert len(killed.store.answered(*self.key(killed))) == 1

    def key(self, desk: Desk) -> tuple[int, bytes]:
        found = row(desk, "a.png")
        assert found.question
        return found.job.fingerprint.size, found.question

    def test_what_was_replaced_meanwhile_is_not_done(self, killed: Desk) -> None:
        (killed.inbox / "a.png").write_bytes(b"another")
        killed.start(FakeEngine())
        killed.wait_for(2)
        assert killed.counts() == {"dropped": 1}

    @pytest.mark.parametrize("what", ["question", "version", "fresh", "half"])
    def test_what_is_not_about_this_very_job_is(self, killed: Desk, what: str) -> None:
        if what == "question":
            killed.prompts[Kind.IMAGE] = "What else?"
        elif what == "version":
            os.utime(killed.inbox / "a.png", (1, 1))
            killed.store._db.execute("UPDATE job SET mtime_ns = 1000000000")
        elif what == "fresh":
            killed.store._db.execute("UPDATE job SET fresh = 1")
        else:
            (killed.outbox / "a.png.txt").unlink()
        engine = FakeEngine()
        killed.start(engine)
        killed.wait_for(2)
        assert len(engine.calls) == 1

    def test_the_record_of_an_earlier_failure_goes(self, killed: Desk) -> None:
        (killed.outbox / "a.png.error.json").write_text('{"phi4d": "0", "source": "a.png"}')
        engine = FakeEngine()
        killed.start(engine)
        killed.wait_for(2)
        assert engine.calls == []
        assert not (killed.outbox / "a.png.error.json").exists()


class TestReuse:
    def first(self, desk: Desk, make_picture: Callable[..., Path], **options: Any) -> FakeEngine:
        engine = FakeEngine()
        desk.add(make_picture(desk.inbox / "a.png"))
        desk.start(engine, **{"reuse": True, **options})
        desk.wait_for(1)
        return engine

    def again(self, desk: Desk, name: str = "b.png") -> None:
        shutil.copyfile(desk.inbox / "a.png", desk.inbox / name)
        desk.add(desk.inbox / name)

    def test_the_same_bytes_cost_nothing(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "phi4d")
        engine = self.first(desk, make_picture)
        self.again(desk)
        desk.wait_for(2)
        assert len(engine.calls) == 1
        a, b = record(desk, "a.png"), record(desk, "b.png")
        assert b["source"] == "b.png"
        assert b["reused_from"] == "in/a.png"
        assert "reused_from" not in a
        own = ("source", "reused_from", "created", "source_modified", "source_mtime_ns")
        assert {k: v for k, v in a.items() if k not in own} == {
            k: v for k, v in b.items() if k not in own
        }
        assert (desk.outbox / "b.png.txt").read_bytes() == (desk.outbox / "a.png.txt").read_bytes()
        assert "copied from in/a.png" in caplog.text

    @pytest.mark.parametrize("kind", ["picture", "recording"])
    def test_twins_that_come_together_are_asked_about_once(
        self,
        desk: Desk,
        make_picture: Callable[..., Path],
        make_recording: Callable[..., Path],
        kind: str,
    ) -> None:
        first = desk.inbox / ("1.png" if kind == "picture" else "1.wav")
        make_picture(first) if kind == "picture" else make_recording(first)
        paths = [first]
        for n in range(2, 6):
            paths.append(first.with_name(f"{n}{first.suffix}"))
            shutil.copyfile(first, paths[-1])
        desk.add(*paths)
        engine = FakeEngine()
        desk.start(engine, reuse=True)
        desk.wait_for(5)
        assert [len(call) for call in engine.calls] == [1]
        assert desk.counts() == {"done": 5}
        assert record(desk, f"5{first.suffix}")["reused_from"] == f"in/1{first.suffix}"

    def test_other_bytes_of_the_same_length_are_asked_about(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        engine = self.first(desk, make_picture)
        data = bytearray((desk.inbox / "a.png").read_bytes())
        data += b"x"
        (desk.inbox / "b.png").write_bytes(data)
        data[-1] = ord("y")
        (desk.inbox / "c.png").write_bytes(data)
        desk.add(desk.inbox / "b.png")
        desk.wait_for(2)
        desk.add(desk.inbox / "c.png")
        desk.wait_for(3)
        assert len(engine.calls) == 3

    def test_not_if_it_is_switched_off(self, desk: Desk, make_picture: Callable[..., Path]) -> None:
        engine = self.first(desk, make_picture, reuse=False)
        self.again(desk)
        desk.wait_for(2)
        assert len(engine.calls) == 2
        assert "source_sha256" not in record(desk, "a.png")

    def test_not_if_it_is_to_be_answered_anew(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        engine = self.first(desk, make_picture)
        self.again(desk)
        desk.wait_for(2)
        desk.store.regenerate("in", b"b.png")
        desk.workers[0].wake()
        desk.wait_for(3)
        assert len(engine.calls) == 2
        assert "reused_from" not in record(desk, "b.png")

    def test_not_if_the_question_is_another(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        self.first(desk, make_picture)
        desk.workers[0].stop()
        desk.workers[0].join()
        desk.prompts[Kind.IMAGE] = "What else?"
        engine = FakeEngine()
        desk.start(engine, reuse=True)
        self.again(desk)
        desk.wait_for(2)
        assert len(engine.calls) == 1

    def test_not_an_answer_that_was_cut(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        engine = self.first(desk, make_picture, max_new_tokens=2)
        self.again(desk)
        desk.wait_for(2)
        assert len(engine.calls) == 2

    @pytest.mark.parametrize("how", ["gone", "foreign", "edited"])
    def test_not_if_the_sidecars_to_copy_are_no_more(
        self, desk: Desk, make_picture: Callable[..., Path], how: str
    ) -> None:
        engine = self.first(desk, make_picture)
        path = desk.outbox / "a.png.json"
        if how == "gone":
            path.unlink()
        elif how == "foreign":
            path.write_text('{"a": 1}')
        else:
            told = record(desk, "a.png")
            path.write_text(json.dumps({**told, "prompt": "Something else."}))
        self.again(desk)
        desk.wait_for(2)
        assert len(engine.calls) == 2
        assert desk.counts() == {"done": 2}


class TestOriginals:
    def finish(self, desk: Desk, name: str, make_picture: Callable[..., Path]) -> Worker:
        desk.add(make_picture(desk.inbox / name))
        worker = desk.start(FakeEngine())
        desk.wait_for(1)
        worker.stop()
        worker.join()
        return worker

    def test_they_are_left_where_they_are(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        self.finish(desk, "a.png", make_picture)
        assert (desk.inbox / "a.png").exists()
        assert row(desk, "a.png").original is None

    def test_they_are_moved_with_their_folders(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        done = desk.inbox.with_name("done")
        done.mkdir()
        desk.rule = {"originals": "move", "done_dir": os.fsencode(done)}
        self.finish(desk, "sub/a.png", make_picture)
        assert not (desk.inbox / "sub/a.png").exists()
        assert (done / "sub/a.png").exists()
        found = row(desk, "sub/a.png")
        assert (found.state, found.original) == (State.DONE, "moved")
        assert found.moved_to == os.fsencode(done / "sub/a.png")

    def test_they_are_deleted(self, desk: Desk, make_picture: Callable[..., Path]) -> None:
        desk.rule = {"originals": "delete"}
        self.finish(desk, "a.png", make_picture)
        assert not (desk.inbox / "a.png").exists()
        assert (desk.outbox / "a.png.json").exists()
        assert row(desk, "a.png").original == "deleted"

    def test_what_failed_is_moved_only_if_it_is_at_fault(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        failed = desk.inbox.with_name("failed")
        failed.mkdir()
        desk.rule = {"failed_dir": os.fsencode(failed)}
        (desk.inbox / "bad.png").write_bytes(b"this is no picture")
        desk.add(desk.inbox / "bad.png", make_picture(desk.inbox / "innocent.png"))

        def answer(_: object) -> str:
            raise ZeroDivisionError("a bug")

        worker = desk.start(FakeEngine(answer=answer), max_attempts=1)
        desk.wait_for(2)
        worker.stop()
        worker.join()
        assert (failed / "bad.png").exists()
        assert not (desk.inbox / "bad.png").exists()
        assert (desk.inbox / "innocent.png").exists()
        assert (desk.outbox / "bad.png.error.json").exists()

    def test_what_was_due_when_the_daemon_died_is_moved_by_the_next(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        done = desk.inbox.with_name("done")
        done.mkdir()
        desk.add(make_picture(desk.inbox / "a.png"))
        (job,) = desk.store.claim([1], "cpu")
        desk.store.finish(job, original=True)
        desk.rule = {"originals": "move", "done_dir": os.fsencode(done)}
        desk.start(FakeEngine())
        # another file, so that there is an end to wait for
        desk.add(make_picture(desk.inbox / "b.png", (5, 5)))
        desk.wait_for(1)
        assert (done / "a.png").exists()

    def test_a_file_of_an_inbox_that_is_gone_is_not_taken_for_deleted(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        (job,) = desk.store.claim([1], "cpu")
        desk.store.finish(job, original=True)
        rule = Rule(
            os.fsencode(desk.inbox), os.fsencode(desk.outbox), desk.prompts, originals="delete"
        )
        faults = ["is not mounted"]
        found = Originals(
            desk.store, {"in": rule}, root_fault=lambda _: faults[0] if faults else None
        )
        found.settle(job, State.DONE, rule)
        assert desk.store.originals(["in"]) == [(job, State.DONE)]
        faults.clear()
        found.settle(job, State.DONE, rule)
        assert desk.store.originals(["in"]) == []
        assert not (desk.inbox / "a.png").exists()

    def test_many_that_are_due_do_not_wait_for_each_other_nor_for_an_inbox_that_is_stuck(
        self, desk: Desk, make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("phi4d.worker.originals.AT_ONCE", 2)
        paths = [make_picture(desk.inbox / f"{n}.png", (n, 5)) for n in range(1, 6)]
        for inbox in ("stuck", "unknown", "in"):
            desk.add(*paths, inbox=inbox)
        for job in desk.store.claim(range(1, 16), "cpu"):
            desk.store.finish(job, original=True)
        rule = Rule(
            os.fsencode(desk.inbox), os.fsencode(desk.outbox), desk.prompts, originals="delete"
        )
        found = Originals(
            desk.store,
            {"stuck": rule, "in": rule},
            root_fault=lambda inbox: "is not mounted" if inbox == "stuck" else None,
            clock=lambda: 0.0,
        )
        for _ in range(4):
            found.settle_due()
        assert desk.store.originals(["in"]) == []
        assert len(desk.store.originals(["stuck", "unknown"])) == 10
        assert os.listdir(desk.inbox) == []

    def test_a_sign_of_life_is_given_while_one_is_copied_and_a_stop_ends_it(
        self, desk: Desk, make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = desk.inbox.with_name("done")
        done.mkdir()
        path = make_picture(desk.inbox / "a.png")
        desk.add(path)
        (job,) = desk.store.claim([1], "cpu")
        desk.store.finish(job, original=True)
        rule = Rule(
            os.fsencode(desk.inbox),
            os.fsencode(desk.outbox),
            desk.prompts,
            originals="move",
            done_dir=os.fsencode(done),
        )

        def other_file_system(*_: object) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(originals, "_rename_new", other_file_system)

        def beat() -> None:
            raise Stopped("the daemon is stopping")

        found = Originals(desk.store, {"in": rule})
        found.settle(job, State.DONE, rule, beat)
        assert path.exists()
        assert os.listdir(done) == []
        assert desk.store.originals(["in"]) == [(job, State.DONE)]

    def test_it_stays_when_the_store_was_not_told(
        self, desk: Desk, make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = make_picture(desk.inbox / "a.png")
        desk.add(path)
        desk.rule = {"originals": "delete"}

        def full(*_: object, **__: object) -> bool:
            worker.stop()
            raise EnvironmentFault("the store cannot be written: disk full")

        monkeypatch.setattr(desk.store, "finish", full)
        worker = desk.start(FakeEngine())
        worker.join(WAIT_SECONDS)
        assert not worker.is_alive()
        assert row(desk, "a.png").state is State.RUNNING
        assert path.exists()

    def test_a_newer_version_is_not_moved_in_place_of_the_older(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        path = make_picture(desk.inbox / "a.png")
        desk.add(path)
        (job,) = desk.store.claim([1], "cpu")
        desk.store.finish(job, original=True)
        make_picture(path, (7, 7))
        desk.rule = {"originals": "delete"}
        desk.start(FakeEngine())
        desk.add(make_picture(desk.inbox / "b.png", (5, 5)))
        desk.wait_for(1)
        assert path.exists()
        assert row(desk, "a.png").original == "kept"

    def test_what_cannot_be_moved_now_is_said_once_and_moved_later(
        self,
        desk: Desk,
        make_picture: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("phi4d.worker.originals.AGAIN_SECONDS", 0.0)
        real, refusals = originals.delete, [1, 1, 1]

        def delete(*args: Any) -> None:
            if refusals:
                refusals.pop()
                raise SourceFault("/in: cannot be written: Read-only file system; mount it")
            real(*args)

        monkeypatch.setattr(originals, "delete", delete)
        desk.rule = {"originals": "delete"}
        desk.add(make_picture(desk.inbox / "a.png"))
        worker = desk.start(FakeEngine())
        settled = threading.Event()
        settle = desk.store.settle_original
        monkeypatch.setattr(
            desk.store, "settle_original", lambda *a: (settle(*a), settled.set())[0]
        )
        while not settled.wait(0.01):
            worker.wake()
        worker.stop()
        worker.join()
        assert not (desk.inbox / "a.png").exists()
        assert caplog.text.count("originals stay for now") == 1
        assert caplog.text.count("originals are moved again") == 1
