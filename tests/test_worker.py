"""The worker, with real files, store and decode processes, and a fake engine."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phi4d.engine.fake import FakeEngine
from phi4d.errors import DecoderDied, DeviceError, EnvironmentFault
from phi4d.job import Arrival, Fingerprint, Job, Kind, Result, Sampling
from phi4d.media.pool import DecodePool
from phi4d.media.probe import kind_of
from phi4d.scheduler import Pauses
from phi4d.store import Store
from phi4d.task import Rule
from phi4d.worker import DECODER_TRIES, DEVICE_TRIES, LOOK_AHEAD, Worker

WAIT_SECONDS = 30.0  # until a test gives up


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(2) as pool:
        yield pool


class Desk:
    """A worker with everything around it."""

    def __init__(self, folder: Path, pool: DecodePool) -> None:
        self.inbox, self.outbox = folder / "in", folder / "out"
        self.inbox.mkdir()
        self.outbox.mkdir()
        self.pool = pool
        self.store = Store(folder / "jobs.sqlite3")
        self.pauses = Pauses(0.01)
        self.prompts = {Kind.IMAGE: "Describe.", Kind.AUDIO: "Transcribe."}
        self.ended: list[tuple[Job, Result | None, str]] = []
        self.worker: Worker | None = None
        self._changed = threading.Condition()

    def add(self, *paths: Path, inbox: str = "in") -> None:
        self.store.add(
            Arrival(
                inbox,
                os.fsencode(path.relative_to(self.inbox)),
                kind_of(os.fsencode(path.name)) or Kind.IMAGE,
                Fingerprint.of(path.stat()),
            )
            for path in paths
        )
        if self.worker:
            self.worker.wake()

    def start(self, engine: FakeEngine, **options: Any) -> Worker:
        rules = {
            "in": Rule(os.fsencode(self.inbox), os.fsencode(self.outbox), self.prompts),
        }
        self.worker = Worker(
            engine, self.store, self.pool, rules, self.pauses, on_result=self._on_result, **options
        )
        self.worker.start()
        return self.worker

    def _on_result(self, job: Job, result: Result | None, words: str) -> None:
        with self._changed:
            self.ended.append((job, result, words))
            self._changed.notify_all()

    def wait_for(self, n: int) -> list[tuple[Job, Result | None, str]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ended) >= n, WAIT_SECONDS), self.ended
        return self.ended

    def counts(self) -> dict[str, int]:
        return {str(s): n for s, n in self.store.counts().get("in", {}).items() if n}

    def close(self) -> None:
        if self.worker:
            self.worker.abort()
            self.worker.join()
        self.store.close()


@pytest.fixture
def desk(tmp_path: Path, pool: DecodePool) -> Iterator[Desk]:
    desk = Desk(tmp_path, pool)
    yield desk
    desk.close()


class TestWork:
    def test_pictures_and_recordings_get_their_sidecars(
        self, desk: Desk, make_picture: Callable[..., Path], make_recording: Callable[..., Path]
    ) -> None:
        desk.add(
            make_picture(desk.inbox / "a.png", (64, 48)),
            make_picture(desk.inbox / "sub/b.jpg", (32, 16)),
            make_recording(desk.inbox / "c.wav", 1.5),
        )
        desk.start(FakeEngine())
        desk.wait_for(3)
        assert (desk.outbox / "a.png.txt").read_text() == "picture 64x48: Describe.\n"
        assert (desk.outbox / "sub/b.jpg.txt").read_text() == "picture 32x16: Describe.\n"
        assert (desk.outbox / "c.wav.txt").read_text() == "audio 1.5 s: Transcribe.\n"
        assert (desk.outbox / "c.wav.json").exists()
        assert desk.counts() == {"done": 3}

    def test_batches_are_of_one_kind_and_no_larger_than_told(
        self, desk: Desk, make_picture: Callable[..., Path], make_recording: Callable[..., Path]
    ) -> None:
        files = [make_picture(desk.inbox / f"{n}.png") for n in range(5)]
        files += [make_recording(desk.inbox / f"{n}.wav") for n in range(3)]
        desk.add(*files)
        engine = FakeEngine()
        desk.start(engine, batch_size=3)
        desk.wait_for(8)
        assert [len(call) for call in engine.calls] == [3, 2, 3]
        assert all(len({request.kind for request in call}) == 1 for call in engine.calls)

    def test_the_engine_is_asked_as_was_configured_and_the_record_says_so(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        engine = FakeEngine(tokens=5)
        desk.start(engine, max_new_tokens=4, sampling=Sampling(0.5, 1.5, 7))
        desk.wait_for(1)
        ((request,),) = engine.calls
        assert (request.max_new_tokens, request.sampling) == (4, Sampling(0.5, 1.5, 7))
        record = json.loads((desk.outbox / "a.png.json").read_text())
        told = (record["temperature"], record["repetition_penalty"], record["seed"])
        assert told == (0.5, 1.5, 7)
        assert record["finish_reason"] == "length"
        assert (desk.outbox / "a.png.txt").read_text() == "picture 64x48: Describe. […]\n"

    def test_a_recording_of_silence_has_an_empty_transcript(self, desk: Desk) -> None:
        import numpy as np
        import soundfile

        path = desk.inbox / "silence.wav"
        soundfile.write(path, np.zeros(16_000), 16_000)
        desk.add(path)
        engine = FakeEngine()
        desk.start(engine)
        desk.wait_for(1)
        assert (desk.outbox / "silence.wav.txt").read_text() == "\n"
        assert desk.counts() == {"done": 1}
        assert engine.calls == []

    def test_what_waits_for_an_inbox_that_is_gone_does_not_stand_in_the_way(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.store.add(
            Arrival("former", b"%d.png" % n, Kind.IMAGE, Fingerprint(n, n, n))
            for n in range(LOOK_AHEAD + 1)
        )
        desk.add(make_picture(desk.inbox / "a.png"))
        desk.start(FakeEngine())
        desk.wait_for(1)
        assert desk.counts() == {"done": 1}

    def test_what_comes_later_wakes_it(self, desk: Desk, make_picture: Callable[..., Path]) -> None:
        desk.start(FakeEngine())
        desk.add(make_picture(desk.inbox / "a.png"))
        desk.wait_for(1)
        assert desk.counts() == {"done": 1}

    def test_the_log_tells_of_a_file_but_not_what_is_in_it(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        with caplog.at_level(logging.INFO):
            desk.start(FakeEngine(answer=lambda request: "a secret"))
            desk.wait_for(1)
        (record,) = [r for r in caplog.records if "done" in r.getMessage()]
        assert record.getMessage().startswith("in/a.png: done: image, ")
        assert record.PHI4D_FILE == "a.png"  # type: ignore[attr-defined]
        assert "secret" not in caplog.text


class TestFilesAtFault:
    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("empty.jpg", b""),
            ("text.jpg", b"this is no picture"),
            ("short.wav", b"RIFF\x00\x00\x00\x00WAVE"),
        ],
    )
    def test_a_bad_file_is_given_up_with_its_reason_and_the_rest_goes_on(
        self,
        desk: Desk,
        make_picture: Callable[..., Path],
        caplog: pytest.LogCaptureFixture,
        name: str,
        data: bytes,
    ) -> None:
        (desk.inbox / name).write_bytes(data)
        desk.add(desk.inbox / name, make_picture(desk.inbox / "good.png"))
        desk.start(FakeEngine())
        desk.wait_for(2)
        assert desk.counts() == {"done": 1, "failed": 1}
        assert f"in/{name}: failed: " in caplog.text
        assert not (desk.outbox / f"{name}.txt").exists()

    def test_a_file_that_is_gone_is_set_aside(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        path = make_picture(desk.inbox / "a.png")
        desk.add(path)
        path.unlink()
        desk.start(FakeEngine())
        desk.wait_for(1)
        assert desk.counts() == {"dropped": 1}

    def test_a_file_that_changed_before_it_was_read_is_set_aside(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        path = make_picture(desk.inbox / "a.png")
        desk.add(path)
        make_picture(path, (5, 5))
        desk.start(FakeEngine())
        desk.wait_for(1)
        assert desk.counts() == {"dropped": 1}
        assert list(desk.outbox.iterdir()) == []

    def test_an_answer_to_an_older_version_is_not_written(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        path = make_picture(desk.inbox / "a.png")
        desk.add(path)
        engine = FakeEngine(gate=threading.Event())
        desk.start(engine)
        assert engine.entered.wait(WAIT_SECONDS)
        make_picture(path, (5, 5))
        desk.add(path)
        assert engine.gate
        engine.gate.set()
        desk.wait_for(2)
        assert desk.counts() == {"dropped": 1, "done": 1}
        assert "picture 5x5" in (desk.outbox / "a.png.txt").read_text()

    def test_a_file_that_kills_its_decoder_twice_is_given_up(
        self, desk: Desk, make_recording: Callable[..., Path]
    ) -> None:
        desk.add(make_recording(desk.inbox / "a.wav"))
        real, tries = desk.pool.decode, []

        def decode(*args: Any, **options: Any) -> Any:
            tries.append(1)
            raise DecoderDied("the decode process was killed by SIGSEGV")

        desk.pool.decode = decode  # type: ignore[method-assign]
        try:
            desk.start(FakeEngine())
            ((_, _, words),) = desk.wait_for(1)
        finally:
            desk.pool.decode = real  # type: ignore[method-assign]
        assert len(tries) == DECODER_TRIES
        assert "SIGSEGV" in words
        assert desk.counts() == {"failed": 1}

    def test_a_file_that_was_often_begun_and_never_ended_is_given_up(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        for _ in range(2):  # as if the daemon had died twice while working on it
            desk.store.claim([1], "cpu")
            desk.store.recover()
        desk.start(FakeEngine(), max_attempts=2)
        ((_, _, words),) = desk.wait_for(1)
        assert "was started 2 times and never finished" in words
        assert desk.counts() == {"failed": 1}


class TestSurroundings:
    def test_an_outbox_that_is_gone_pauses_the_inbox_and_heals(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.outbox.rmdir()
        desk.add(make_picture(desk.inbox / "a.png"), make_picture(desk.inbox / "b.png"))
        engine = FakeEngine()
        times, often = [], threading.Event()
        real = desk.pauses.pause

        def pause(*args: Any) -> bool:
            news = real(*args)
            times.append(1)
            if len(times) == 3:  # at first, and when it was tried again
                often.set()
            return news

        desk.pauses.pause = pause  # type: ignore[method-assign]
        desk.start(engine)
        assert often.wait(WAIT_SECONDS)
        assert "failed" not in desk.counts()
        desk.outbox.mkdir()
        desk.wait_for(2)
        assert desk.counts() == {"done": 2}
        assert caplog.text.count('inbox "in" pauses, nothing is lost') == 1
        assert 'inbox "in": works again' in caplog.text
        # the model was asked once in vain, and not again before the outbox could be written
        assert len(engine.calls) == 2
        assert [job.attempts for job, _, _ in desk.ended] == [1, 1]

    def test_a_disk_that_cannot_be_read_pauses_the_inbox_and_costs_no_attempt(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        real, refusals = desk.pool.decode, [1, 1, 1]

        def decode(*args: Any, **options: Any) -> Any:
            if refusals:
                refusals.pop()
                raise EnvironmentFault("cannot be read: Input/output error")
            return real(*args, **options)

        desk.pool.decode = decode  # type: ignore[method-assign]
        try:
            desk.start(FakeEngine(), max_attempts=1)
            desk.wait_for(1)
        finally:
            desk.pool.decode = real  # type: ignore[method-assign]
        assert desk.counts() == {"done": 1}
        assert caplog.text.count("pauses, nothing is lost") == 1
        assert caplog.text.count("works again") == 1

    def test_a_store_that_cannot_be_written_is_waited_for(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        real, refusals = desk.store.finish, [1]

        def finish(job: Job) -> bool:
            if refusals:
                refusals.pop()
                raise EnvironmentFault("the store cannot be written: disk full")
            return real(job)

        desk.store.finish = finish  # type: ignore[method-assign]
        desk.start(FakeEngine())
        desk.wait_for(1)
        assert desk.counts() == {"done": 1}
        assert "the store cannot be written" in caplog.text

    def test_a_store_that_cannot_be_claimed_from_is_tried_again(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        real, refusals = desk.store.claim, [1]

        def claim(*args: Any) -> list[Job]:
            if refusals:
                refusals.pop()
                raise EnvironmentFault("the store cannot be written: disk full")
            return real(*args)

        desk.store.claim = claim  # type: ignore[method-assign]
        desk.start(FakeEngine())
        desk.wait_for(1)
        assert desk.counts() == {"done": 1}


class TestDevice:
    def test_out_of_memory_halves_the_batch_and_nothing_is_lost(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(4)))
        engine = FakeEngine(failures={1: DeviceError("cuda:0: out of memory")})
        desk.start(engine, batch_size=4)
        desk.wait_for(4)
        assert [len(call) for call in engine.calls] == [4, 2, 2]
        assert desk.counts() == {"done": 4}
        assert [job.attempts for job, _, _ in desk.ended] == [1] * 4
        assert "goes on with batches of 2" in caplog.text

    def test_a_device_that_fails_again_and_again_ends_the_worker(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        lost = DeviceError("cuda:0: is lost")
        worker = desk.start(FakeEngine(failures=dict.fromkeys(range(1, 99), lost)), batch_size=1)
        worker.join(WAIT_SECONDS)
        assert worker.error is lost
        assert desk.counts() == {"queued": 1}
        assert desk.store.waiting(1, ["in"])[0].attempts == DEVICE_TRIES

    def test_a_fault_of_ours_costs_no_other_file(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.add(*(make_picture(desk.inbox / f"{n}.png", (n + 1, 5)) for n in range(3)))

        def answer(request: Any) -> str:
            if request.media.shape[1] == 2:
                raise ZeroDivisionError("a bug")
            return "fine"

        desk.start(FakeEngine(answer=answer), max_attempts=2)
        desk.wait_for(3)
        assert desk.counts() == {"done": 2, "failed": 1}
        assert "unexpected error" in caplog.text

    def test_a_worker_that_ends_unexpectedly_says_how(
        self, desk: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*args: Any) -> list[Job]:
            raise ZeroDivisionError("a bug")

        desk.store.waiting = broken  # type: ignore[method-assign]
        worker = desk.start(FakeEngine())
        worker.join(WAIT_SECONDS)
        assert isinstance(worker.error, ZeroDivisionError)
        assert "ended unexpectedly" in caplog.text


class TestStop:
    def test_between_two_calls_the_rest_is_put_back(
        self, desk: Desk, make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(3)))
        monkeypatch.setattr("phi4d.worker.pick", lambda waiting, capacity: list(waiting))
        engine = FakeEngine(gate=threading.Event())
        worker = desk.start(engine, batch_size=1)
        assert engine.entered.wait(WAIT_SECONDS)
        worker.stop()
        assert engine.gate
        engine.gate.set()
        worker.join(WAIT_SECONDS)
        assert desk.counts() == {"done": 1, "queued": 2}
        assert [job.attempts for job in desk.store.waiting(9, ["in"])] == [0, 0]

    def test_a_running_call_may_end(self, desk: Desk, make_picture: Callable[..., Path]) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        engine = FakeEngine(gate=threading.Event())
        worker = desk.start(engine)
        assert engine.entered.wait(WAIT_SECONDS)
        worker.stop()
        assert engine.gate
        engine.gate.set()
        worker.join(WAIT_SECONDS)
        assert desk.counts() == {"done": 1}

    def test_an_abort_puts_the_work_back_at_the_next_step_uncounted(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        engine = FakeEngine(gate=threading.Event())
        worker = desk.start(engine)
        assert engine.entered.wait(WAIT_SECONDS)
        worker.abort()
        worker.join(WAIT_SECONDS)
        assert worker.error is None
        assert desk.counts() == {"queued": 1}
        assert desk.store.waiting(1, ["in"])[0].attempts == 0

    def test_it_beats_while_the_engine_works(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        engine = FakeEngine(gate=threading.Event())
        worker = desk.start(engine)
        assert engine.entered.wait(WAIT_SECONDS)
        seen = worker.last_beat
        beat = threading.Event()
        worker._clock = lambda: (beat.set(), seen + 1)[1]  # type: ignore[func-returns-value]
        assert beat.wait(WAIT_SECONDS)
