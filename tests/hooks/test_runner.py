"""Which hook is run when, and what becomes of it: a real store, real programs, a real receiver."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hookkit import WAIT_SECONDS, Receiver
from kit import Clock

from phi4d import events
from phi4d.errors import EnvironmentFault
from phi4d.hooks import Hooks, command, runner
from phi4d.job import Arrival, Fingerprint, Kind, State
from phi4d.meter import Meter
from phi4d.notices import Notices
from phi4d.store import Reader, Store
from phi4d.task import Rule

DAY = 86_400.0
DONE = ("in", State.DONE)


class House:
    """Hooks with everything around them, and a clock that stands still."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.store = Store(folder / "jobs.sqlite3", clock)
        self.rules: dict[str, Rule] = {}
        self.notices = Notices()
        self.meter = Meter()
        self.hooks = self.another()
        self._n = 0

    def another(self) -> Hooks:
        """The hooks of the next daemon."""
        self.hooks = Hooks(
            self.store, self.rules, self.notices, self.meter, clock=self.clock, now=self.clock
        )
        return self.hooks

    def rule(self, inbox: str = "in", **options: Any) -> None:
        place = os.fsencode(self.folder)
        self.rules[inbox] = Rule(place + b"/in", place + b"/out", {}, **options)

    def ends(
        self, *names: str, inbox: str = "in", reason: str = "", original: bool = False
    ) -> None:
        """Files of these names are done, or have failed if there is a reason."""
        for name in names:
            self._n += 1
            fingerprint = Fingerprint(self._n, 1, 1)
            self.store.add([Arrival(inbox, name.encode(), Kind.IMAGE, fingerprint)])
            jobs = self.store.waiting(1, [inbox])
            (job,) = self.store.claim([job.id for job in jobs], "cpu")
            if reason:
                facts: dict[str, str | float] = {"fault": "file", "reason": reason}
                self.store.fail(job, "file", reason, hook=facts, original=original)
            else:
                self.store.finish(job, hook={"device": "cpu", "tokens": 5}, original=original)
        self.hooks.wake()

    def settle(self) -> None:
        """Wait until nothing is to be done any more, or nothing now."""
        changed = self.hooks._changed
        with changed:
            assert changed.wait_for(self.hooks.is_idle, WAIT_SECONDS), self.hooks.left()

    def later(self, seconds: float = 10.0) -> None:
        """Some time goes by, and what is due then is done."""
        self.clock.advance(seconds)
        self.hooks.wake()
        self.settle()

    def counted(self) -> tuple[int, int]:
        """Tries that went well, and others."""
        found = self.meter.numbers().hooks
        return found.get(("in", False), 0), found.get(("in", True), 0)


@pytest.fixture
def house(tmp_path: Path, clock: Clock) -> Iterator[House]:
    house = House(tmp_path, clock)
    yield house
    house.hooks.stop(time.monotonic())
    house.store.close()


@pytest.fixture
def notes(tmp_path: Path) -> Callable[[], list[str]]:
    """What commands noted."""

    def read() -> list[str]:
        path = tmp_path / "notes"
        return path.read_text().splitlines() if path.exists() else []

    return read


@pytest.fixture
def note(tmp_path: Path) -> tuple[str, ...]:
    """A command that notes the file, or, of a file that it is to refuse, fails."""
    script = tmp_path / "note"
    script.write_text(
        '#!/bin/sh\necho "$@" >> "$0s"\ncase "$PHI4D_NAME" in *bad*) echo no >&2; exit 4;; esac\n'
    )
    script.chmod(0o755)
    return str(script), "{state}", "{name}"


@pytest.fixture
def nobody() -> str:
    """The URL of a receiver that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


class TestCommands:
    def test_they_are_run_in_the_order_of_the_ends(
        self, house: House, note: tuple[str, ...], notes: Callable[[], list[str]]
    ) -> None:
        house.rule(on_done=note, on_failed=note)
        house.ends(*(f"{n}.png" for n in range(20)))
        house.settle()
        assert notes() == [f"done in/{n}.png" for n in range(20)]
        house.ends("half.png", reason="it is cut off")
        house.settle()
        assert notes()[20:] == ["failed in/half.png"]
        assert house.counted() == (21, 0)
        assert house.hooks.left() == []

    def test_one_that_fails_is_said_once_and_the_file_stays_done(
        self,
        house: House,
        note: tuple[str, ...],
        notes: Callable[[], list[str]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        # given a command that fails for one of two files
        caplog.set_level(logging.INFO, "phi4d")
        house.rule(on_done=note)
        # when both are done, and time goes by
        house.ends("bad.png", "good.png")
        house.settle()
        house.later(DAY)
        # then each was told once, and the fault is in the log once, with its fields
        assert notes() == ["done in/bad.png", "done in/good.png"]
        (line,) = caplog.records
        assert line.getMessage() == (
            f"in/bad.png: the hook on_done failed: {note[0]} ended with exit code 4: no"
        )
        told = vars(line)
        assert (line.levelname, told["MESSAGE_ID"]) == ("WARNING", events.HOOK_FAILED.id)
        assert (told["PHI4D_INBOX"], told["PHI4D_FILE"]) == ("in", "bad.png")
        assert house.store.counts()["in"][State.DONE] == 2
        assert house.counted() == (1, 1)

    def test_what_fails_again_and_again_is_told_by_the_status_until_it_works(
        self, house: House, note: tuple[str, ...]
    ) -> None:
        house.rule(on_done=note)
        house.ends("bad1", "bad2")
        house.settle()
        assert house.notices.about("on_done") == {}
        house.ends("bad3")
        house.settle()
        assert "the hook on_done failed 3 times in a row" in house.notices.about("on_done")["in"]
        house.ends("good")
        house.settle()
        assert house.notices.about("on_done") == {}

    def test_an_inbox_without_one_has_none(
        self, house: House, note: tuple[str, ...], notes: Callable[[], list[str]]
    ) -> None:
        house.rule(on_failed=note)
        house.store.add([Arrival("in", b"a", Kind.IMAGE, Fingerprint(1, 1, 1))])
        house.store.finish(house.store.claim([1], "cpu")[0])
        house.hooks.begin()
        house.hooks.wake()
        house.settle()
        assert notes() == []

    def test_an_error_that_nobody_foresaw_holds_nothing_up(
        self,
        house: House,
        note: tuple[str, ...],
        notes: Callable[[], list[str]],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        real = command.filled

        def broken(*args: Any) -> list[bytes]:
            monkeypatch.setattr(command, "filled", real)
            raise RuntimeError("a bug")

        monkeypatch.setattr(command, "filled", broken)
        house.rule(on_done=note)
        house.ends("a", "b")
        house.settle()
        assert notes() == ["done in/b"]
        assert "unexpected error; please report it" in warnings(caplog)[0]


class TestWebhooks:
    def test_one_that_gets_through_is_sent_once(self, house: House, receiver: Receiver) -> None:
        house.rule(on_done=receiver.url, on_failed=receiver.url)
        house.ends("a.png")
        house.settle()
        house.ends("b.png", reason="it is cut off")
        house.settle()
        house.later(DAY)
        done, failed = (request.message for request in receiver.requests)
        assert (done["type"], done["data"]["name"]) == ("file.done", "in/a.png")
        assert (failed["type"], failed["data"]["reason"]) == ("file.failed", "it is cut off")
        assert done["id"] != failed["id"]

    def test_one_that_does_not_is_tried_again_after_longer_each_time(
        self, house: House, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given a receiver that is down
        caplog.set_level(logging.INFO, "phi4d")
        receiver.answers += [(503, {})] * 3
        house.rule(on_done=receiver.url)
        house.ends("a.png")
        house.settle()
        # when time goes by, it is tried again: after 5, 10 and 20 seconds, more or less a fifth
        for before, after in ((3.9, 2.2), (7.9, 4.2), (15.9, 8.2)):
            sent = len(receiver.requests)
            house.later(before)
            assert len(receiver.requests) == sent
            house.later(after)
            assert len(receiver.requests) == sent + 1
        # then it is the same message each time, and the log says once that it failed
        assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
        stamps = [int(request.headers["webhook-timestamp"]) for request in receiver.requests]
        assert stamps == sorted(set(stamps))
        failed, works = warnings(caplog)
        assert "in/a.png: the hook on_done failed: http://127.0.0.1:" in failed
        assert "answered 503 Service Unavailable; next try in" in failed
        assert works == 'inbox "in": the hook on_done works again'
        assert house.counted() == (1, 3)
        assert house.hooks.left() == []

    def test_while_it_is_down_the_others_wait_and_then_all_come(
        self, house: House, receiver: Receiver
    ) -> None:
        receiver.answers += [(503, {})]
        house.rule(on_done=receiver.url)
        house.ends("a", "b", "c")
        house.settle()
        assert len(receiver.requests) == 1
        house.later()
        assert sorted(r.message["data"]["name"] for r in receiver.requests[1:]) == [
            "in/a", "in/b", "in/c"
        ]  # fmt: skip

    def test_one_that_the_receiver_never_takes_does_not_hold_up_the_others(
        self, house: House, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        receiver.answers += [(500, {}), (204, {}), (500, {}), (204, {}), (500, {})]
        house.rule(on_done=receiver.url, webhook_seconds=3600.0)
        house.ends("poison", "b")
        house.settle()
        house.later(6.1)  # b's turn, then the other's
        house.ends("c")
        house.later(6.1)
        house.later(3600)
        house.later(3600)
        names = [r.message["data"]["name"] for r in receiver.requests]
        assert names == ["in/poison", "in/b", "in/poison", "in/c", "in/poison"]
        assert warnings(caplog)[-1].endswith("Error; given up (webhook_hours = 1)")
        assert house.hooks.left() == []

    def test_what_the_receiver_refuses_is_not_tried_again(
        self, house: House, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        receiver.answers += [(422, {})]
        house.rule(on_done=receiver.url)
        house.ends("a", "b")
        house.settle()
        house.later(DAY)
        assert [r.message["data"]["name"] for r in receiver.requests] == ["in/a", "in/b"]
        assert len(warnings(caplog)) == 1

    def test_a_receiver_that_is_down_for_good_is_given_up(
        self, house: House, nobody: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given many files, and nobody who hears of them
        house.rule(on_done=nobody, webhook_seconds=DAY)
        house.ends(*(f"{n}.png" for n in range(50)))
        house.settle()
        assert house.hooks.left() == ['inbox "in": the hook on_done still waits (files: 50)']
        # when it has been tried often enough, but not for long
        for _ in range(runner.DOWN_AFTER):
            house.later(400)
        assert house.store.hooks_left(DONE) == 50
        # then a day later all are given up at the next try, in two lines
        before = len(warnings(caplog))
        house.later(DAY)
        assert house.hooks.left() == []
        one, rest = warnings(caplog)[before:]
        assert "cannot be reached: Connection refused; given up (webhook_hours = 24)" in one
        assert (
            rest
            == 'inbox "in": the hook on_done is given up for 49 more files (webhook_hours = 24)'
        )
        assert "Connection refused" in house.notices.about("on_done")["in"]

    def test_without_hours_it_is_tried_once(
        self, house: House, nobody: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        house.rule(on_done=nobody, webhook_seconds=0.0)
        house.ends("a")
        house.settle()
        assert house.hooks.left() == []
        assert len(warnings(caplog)) == 1

    def test_it_is_signed_and_the_secret_stays_where_it_is(
        self,
        house: House,
        receiver: Receiver,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        secret = tmp_path / "secret"
        house.rule(on_done=receiver.url, webhook_secret_file=bytes(secret))
        # given a secret that is not there, nothing is sent
        house.ends("a")
        house.settle()
        assert receiver.requests == []
        # when it is there
        secret.write_text("open sesame\n")
        house.later()
        # then what comes is signed with it
        (request,) = receiver.requests
        assert request.headers["webhook-signature"] == request.signature(b"open sesame")
        assert "sesame" not in caplog.text

    def test_the_answer_is_told_where_it_is_wanted(
        self, house: House, receiver: Receiver, tmp_path: Path
    ) -> None:
        from phi4d import outputs
        from phi4d.job import Job, Result

        (tmp_path / "out").mkdir()
        job = Job(1, "in", b"a.png", Kind.IMAGE, Fingerprint(1, 1, 1))
        outputs.write(
            job, Result(Kind.IMAGE, "a red square", "?", "m", "cpu"), bytes(tmp_path / "out")
        )
        for wanted in (False, True):
            house.rule(on_done=receiver.url, webhook_text=wanted)
            house.ends("a.png")
            house.settle()
        first, second = (request.message["data"] for request in receiver.requests)
        assert "text" not in first
        assert second["text"] == "a red square"
        assert second["sidecars"] == [f"{tmp_path}/out/a.png.txt", f"{tmp_path}/out/a.png.json"]


class TestOrder:
    def test_a_few_at_once_and_of_each_inbox_one(self, house: House, receiver: Receiver) -> None:
        receiver.gate.clear()
        inboxes = [f"inbox {n}" for n in range(runner.AT_ONCE + 2)]
        for inbox in inboxes:
            house.rule(inbox, on_done=receiver.url)
            house.ends("a", "b", inbox=inbox)
        receiver.wait_for(runner.AT_ONCE)
        running = [r.message["data"]["inbox"] for r in receiver.requests]
        assert len(running) == len(set(running)) == runner.AT_ONCE
        receiver.gate.set()
        house.settle()
        told = [r.message["data"]["name"] for r in receiver.requests]
        assert sorted(told) == sorted(f"{inbox}/{name}" for inbox in inboxes for name in "ab")
        for inbox in inboxes:
            assert told.index(f"{inbox}/a") < told.index(f"{inbox}/b")

    def test_not_before_the_original_is_where_it_stays(
        self, house: House, notes: Callable[[], list[str]], note: tuple[str, ...]
    ) -> None:
        # given a file that is to be moved, and another that is not
        house.rule(on_done=(note[0], "{path}"))
        house.ends("a", original=True)
        house.ends("b")
        house.settle()
        assert notes() == [f"{house.folder}/in/b"]
        # when it was moved
        ((job, _),) = house.store.originals(["in"])
        house.store.settle_original(job, "moved", b"/done/a")
        house.later()
        # then its hook is told where it is
        assert notes()[1:] == ["/done/a"]

    def test_what_becomes_of_a_file_later_takes_no_hook_away(
        self, house: House, note: tuple[str, ...], notes: Callable[[], list[str]]
    ) -> None:
        # given a file that was done while nobody ran hooks, done again, and replaced
        house.rule(on_done=note)
        house.hooks.take_no_more()
        house.ends("a")
        assert house.store.regenerate("in").count == 1
        (job,) = house.store.claim([1], "cpu")
        house.store.finish(job, hook={})
        house.store.add([Arrival("in", b"a", Kind.IMAGE, Fingerprint(99, 1, 1))])
        # when they are run
        house.another().begin()
        house.settle()
        # then each end is told of
        assert notes() == ["done in/a", "done in/a"]


class TestRestart:
    def test_what_was_cut_off_is_sent_again_under_the_same_id(
        self, house: House, receiver: Receiver
    ) -> None:
        # given a receiver that takes its time, and a daemon that is stopped meanwhile
        receiver.gate.clear()
        house.rule(on_done=receiver.url)
        house.ends("a", "b")
        receiver.wait_for(1)
        house.hooks.stop(time.monotonic())
        receiver.gate.set()
        # when it starts again
        house.another().begin()
        house.settle()
        # then nothing is missing, and what came twice can be told by its id
        names = [r.message["data"]["name"] for r in receiver.requests]
        assert names == ["in/a", "in/a", "in/b"]
        assert receiver.requests[0].message["id"] == receiver.requests[1].message["id"]

    def test_a_stop_lets_what_runs_end(self, house: House, receiver: Receiver) -> None:
        receiver.gate.clear()
        house.rule(on_done=receiver.url)
        house.ends("a", "b")
        receiver.wait_for(1)
        house.hooks.take_no_more()
        receiver.gate.set()
        house.hooks.stop(time.monotonic() + WAIT_SECONDS)
        assert len(receiver.requests) == 1
        assert house.store.hooks_left(DONE) == 1

    def test_after_a_stop_none_is_begun(
        self, house: House, note: tuple[str, ...], notes: Callable[[], list[str]]
    ) -> None:
        house.rule(on_done=note)
        house.hooks.stop(time.monotonic())
        house.ends("a")
        house.hooks.stop(time.monotonic())
        assert notes() == []

    def test_what_waits_is_tried_at_once_at_the_next_start(
        self, house: House, receiver: Receiver
    ) -> None:
        receiver.answers += [(503, {})]
        house.rule(on_done=receiver.url)
        house.ends("a")
        house.settle()
        house.hooks.stop(time.monotonic())
        house.another().begin()
        house.settle()
        assert len(receiver.requests) == 2

    def test_the_rule_in_force_decides(
        self,
        house: House,
        note: tuple[str, ...],
        notes: Callable[[], list[str]],
        nobody: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        # given files whose hooks wait
        caplog.set_level(logging.INFO, "phi4d")
        house.rule(on_done=nobody)
        house.rule("other", on_done=nobody)
        house.ends("a")
        house.ends("b", inbox="other")
        house.settle()
        # when another is configured for the one, and none for the other
        house.rule(on_done=note)
        house.rule("other")
        house.hooks.begin()
        house.settle()
        # then the one is run, and the other forgotten
        assert notes() == ["done in/a"]
        assert house.store.hooks_left(("other", State.DONE)) == 0
        assert "1 hooks were due that are configured no more; they are forgotten" in caplog.text

    def test_a_store_that_cannot_be_written_is_waited_for(
        self,
        house: House,
        note: tuple[str, ...],
        notes: Callable[[], list[str]],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(runner, "STORE_SECONDS", 0.001)
        real, faults = house.store.settle_hook, [EnvironmentFault("the disk is full")] * 3

        def settle(due: Any) -> None:
            if faults:
                raise faults.pop()
            real(due)

        monkeypatch.setattr(house.store, "settle_hook", settle)
        house.rule(on_done=note)
        house.ends("a", "b")
        house.settle()
        assert notes() == ["done in/a", "done in/b"]
        assert warnings(caplog) == ["the disk is full"]


def test_the_end_of_a_job_and_its_hook_are_one_change(house: House) -> None:
    # given a job that somebody else ended meanwhile
    house.store.add([Arrival("in", b"a", Kind.IMAGE, Fingerprint(1, 1, 1))])
    (job,) = house.store.claim([1], "cpu")
    assert house.store.drop(job, "gone")
    # then there is no hook for an end that is none
    assert not house.store.finish(job, hook={})
    assert house.store.hooks_left(DONE) == 0
    reader = Reader(house.folder / "jobs.sqlite3")
    assert reader.counts()["in"][State.DROPPED] == 1
    reader.close()
