"""The worker, with real files, store and decode processes, and a fake engine."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from deskkit import WAIT_SECONDS, Desk
from kit import Clock

from phi4d import demo
from phi4d.engine import Engine
from phi4d.engine.fake import FakeEngine
from phi4d.engine.resident import Resident
from phi4d.errors import DecoderDied, DeviceError, DeviceLost, EnvironmentFault
from phi4d.job import Arrival, Fingerprint, Job, Kind, Request, Sampling
from phi4d.media.pool import DecodePool
from phi4d.prepared.cutting import size
from phi4d.worker import DECODER_TRIES, DEVICE_DEATHS, Worker

LONG = demo.SAMPLES / "digits-long.mp3"
"""a recording of eight pieces"""
CHANGED: dict[str, Any] = {
    "batch_size": 4,
    "max_new_tokens": 512,
    "sampling": Sampling(),
    "max_attempts": 5,
    "retry_seconds": 0.001,
    "reuse": False,
    "ahead": 2,
}


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

    def test_the_engine_has_both_kinds_beside_each_other_and_no_more_than_told(
        self, desk: Desk, make_picture: Callable[..., Path], make_recording: Callable[..., Path]
    ) -> None:
        files = [make_picture(desk.inbox / f"{n}.png") for n in range(5)]
        files += [make_recording(desk.inbox / f"{n}.wav") for n in range(3)]
        desk.add(*files)
        engine = FakeEngine(gate=threading.Event())
        worker = desk.start(engine, batch_size=3)
        while engine.most < 3:
            worker.join(0.01)
        assert {request.kind for (request,) in engine.calls} == set(Kind)
        assert engine.gate
        engine.gate.set()
        desk.wait_for(8)
        assert engine.most == 3

    def test_how_many_it_may_have_can_be_changed(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(6)))
        engine = FakeEngine(gate=threading.Event())
        worker = desk.start(engine, batch_size=1)
        assert engine.entered.wait(WAIT_SECONDS)
        worker.change(**CHANGED)
        while engine.most < 4:
            worker.join(0.01)
        assert engine.gate
        engine.gate.set()
        desk.wait_for(6)
        assert engine.most == 4

    def test_a_small_file_does_not_wait_for_a_long_one(
        self, desk: Desk, make_recording: Callable[..., Path]
    ) -> None:
        # given a recording of eight pieces, of which a few fill the engine
        desk.add(Path(shutil.copy(LONG, desk.inbox / "long.mp3")))
        engine = FakeEngine(gate=threading.Event(), tokens=50)
        worker = desk.start(engine, batch_size=2, ahead=2)
        while engine.most < 2:
            worker.join(0.01)
        # when a memo comes
        desk.add(make_recording(desk.inbox / "memo.wav"))
        while "in/memo.wav" not in [name for name, _ in worker.at_work()]:
            worker.join(0.01)
        assert engine.gate
        engine.gate.set()
        # then it is answered before the rest of the recording
        assert [job.name for job, _, _ in desk.wait_for(2)] == ["memo.wav", "long.mp3"]
        starts = [segment.start for segment in desk.results(2)["long.mp3"].segments]
        assert starts == sorted(starts)
        assert len(starts) == 8

    def test_a_recording_waits_for_no_import_of_pictures(
        self, desk: Desk, make_picture: Callable[..., Path], make_recording: Callable[..., Path]
    ) -> None:
        # given many pictures, of which the first are being answered
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(50)))
        engine = FakeEngine(gate=threading.Event())
        desk.start(engine, batch_size=4)
        assert engine.entered.wait(WAIT_SECONDS)
        # when a recording comes
        desk.add(make_recording(desk.inbox / "memo.wav"))
        assert engine.gate
        engine.gate.set()
        # then it is among the next few
        assert "memo.wav" in [job.name for job, _, _ in desk.wait_for(51)][:20]

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
            Arrival("former", b"%d.png" % n, Kind.IMAGE, Fingerprint(n, n, n)) for n in range(99)
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
        assert re.fullmatch(
            rf"done in/a\.png: picture, \d\.\d s, \d+ tokens on cpu → {desk.outbox}/a\.png\.txt",
            record.getMessage(),
        )
        assert record.PHI4D_FILE == "a.png"  # type: ignore[attr-defined]
        assert "secret" not in caplog.text

    def test_long_recordings_leave_a_decode_process_to_what_is_short(
        self,
        desk: Desk,
        make_recording: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # given two recordings that count as long, more of which waits than the engine has room for
        monkeypatch.setattr("phi4d.worker.claiming.LONG_SECONDS", 1.0)
        desk.add(*(Path(shutil.copy(LONG, desk.inbox / f"{n}.mp3")) for n in range(2)))
        engine = FakeEngine(gate=threading.Event())
        worker = desk.start(engine, batch_size=1, ahead=2)
        assert engine.entered.wait(WAIT_SECONDS)
        # when something short comes
        desk.add(make_recording(desk.inbox / "memo.wav", 0.3))
        while "in/memo.wav" not in at_work(worker):
            worker.join(0.01)
        # then it is at work beside one of the two
        assert at_work(worker) == ["in/0.mp3", "in/memo.wav"]
        assert engine.gate
        engine.gate.set()
        assert [job.name for job, _, _ in desk.wait_for(3)] == ["memo.wav", "0.mp3", "1.mp3"]


class TestPause:
    def paused(self, desk: Desk, engine: FakeEngine, **options: Any) -> Worker:
        """A worker whose inbox was paused in the midst of a recording."""

        def answer(request: Request) -> str:
            if len(engine.calls) == 2:
                desk.pauses.hold({"in": "ada wants it"})
                desk.workers[0].wake()
                while desk.workers[0]._paused != {"in"}:
                    desk.workers[0].join(0.01)
            return "words"

        engine.answer = answer
        desk.add(Path(shutil.copy(LONG, desk.inbox)))
        worker = desk.start(engine, batch_size=1, **options)
        while worker._paused != {"in"} or worker._answering._inside:
            worker.join(0.01)
        return worker

    def test_it_counts_within_a_step_and_the_recording_goes_on_where_it_was(
        self, desk: Desk
    ) -> None:
        engine = FakeEngine()
        worker = self.paused(desk, engine)
        assert len(engine.calls) == 2
        assert desk.counts() == {"running": 1}
        desk.pauses.hold({})
        worker.wake()
        (result,) = desk.results(1).values()
        assert len(result.segments) == 8
        assert len(engine.calls) == 8  # none twice

    def test_where_somebody_else_wants_its_decode_process_it_begins_anew_later(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.more["other"] = desk.inbox.with_name("other")
        desk.more["other"].mkdir()
        with DecodePool(1) as desk.pool:
            worker = self.paused(desk, FakeEngine(), ahead=2)
            desk.add(make_picture(desk.more["other"] / "a.png"), inbox="other")
            assert "a.png" in desk.results(1)
            assert desk.counts() == {"queued": 1}
            desk.pauses.hold({})
            worker.wake()
            assert len(desk.results(2)["digits-long.mp3"].segments) == 8
            worker.stop()
            worker.join()
        assert {job.attempts for job, _, _ in desk.ended} == {1}

    def test_a_stop_meanwhile_puts_it_back(self, desk: Desk) -> None:
        worker = self.paused(desk, FakeEngine())
        worker.stop()
        worker.join(WAIT_SECONDS)
        assert desk.counts() == {"queued": 1}


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
        assert f"failed in/{name}: " in caplog.text
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
        real, tries = desk.pool.try_decode, []

        def decode(*args: Any, **options: Any) -> Any:
            tries.append(1)
            raise DecoderDied("the decode process was killed by SIGSEGV")

        desk.pool.try_decode = decode  # type: ignore[method-assign]
        try:
            desk.start(FakeEngine())
            ((_, _, words),) = desk.wait_for(1)
        finally:
            desk.pool.try_decode = real  # type: ignore[method-assign]
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
        # the model was asked in vain about what it had, and not again before it could be written
        assert len(engine.calls) <= 4
        assert [job.attempts for job, _, _ in desk.ended] == [1, 1]

    def test_a_disk_that_cannot_be_read_pauses_the_inbox_and_costs_no_attempt(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        real, refusals = desk.pool.try_decode, [1, 1, 1]

        def decode(*args: Any, **options: Any) -> Any:
            if refusals:
                refusals.pop()
                raise EnvironmentFault("cannot be read: Input/output error")
            return real(*args, **options)

        desk.pool.try_decode = decode  # type: ignore[method-assign]
        try:
            desk.start(FakeEngine(), max_attempts=1)
            desk.wait_for(1)
        finally:
            desk.pool.try_decode = real  # type: ignore[method-assign]
        assert desk.counts() == {"done": 1}
        assert caplog.text.count("pauses, nothing is lost") == 1
        assert caplog.text.count("works again") == 1

    def test_a_store_that_cannot_be_written_is_waited_for(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        real, refusals = desk.store.finish, [1]

        def finish(job: Job, **options: Any) -> bool:
            if refusals:
                refusals.pop()
                raise EnvironmentFault("the store cannot be written: disk full")
            return real(job, **options)

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


def asked(request: Request) -> float:
    """What a request asks of the memory: crops, or seconds."""
    most = (request.max_crops or 36) if request.kind is Kind.IMAGE else 30
    return min(size(request.kind, request.media), most)


class TestMemory:
    def test_what_was_answered_before_is_not_asked_again(self, desk: Desk) -> None:
        # given a recording of several pieces, of which the second does not fit
        with desk.pool.decode(os.fsencode(LONG), Kind.AUDIO) as pieces:
            speech = np.concatenate([piece.media for piece in pieces])
        soundfile.write(desk.inbox / "a.wav", np.tile(speech, 3), 16_000)
        with desk.pool.decode(os.fsencode(desk.inbox / "a.wav"), Kind.AUDIO) as pieces:
            lengths = [len(piece.media) for piece in pieces]
        desk.add(desk.inbox / "a.wav")
        engine = FakeEngine(failures={2: DeviceError("cpu: out of memory")})
        desk.start(engine, batch_size=1)
        (result,) = desk.results(1).values()
        # then that one is asked about in parts, and everything else once
        asked = [len(request.media) for (request,) in engine.calls]
        assert asked[:2] == lengths[:2]
        assert len(asked) > len(lengths) + 1
        assert sum(asked) - lengths[1] == sum(lengths)
        spans = [(segment.start, segment.end) for segment in result.segments]
        assert spans == sorted(spans)
        assert desk.ended[0][0].attempts == 1

    def test_where_memory_holds_fewer_beside_each_other_nothing_is_reduced(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(8)))
        engine = FakeEngine(capacity=lambda requests: len(requests) <= 2)
        desk.start(engine, batch_size=8)
        assert not any(result.reduced for result in desk.results(8).values())
        assert len(engine.calls) == 8

    def test_large_pictures_get_fewer_crops_and_say_so_and_small_ones_do_not(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.add(
            make_picture(desk.inbox / "large.png", (3000, 2000)),
            make_picture(desk.inbox / "small.png", (448, 448)),
        )
        engine = FakeEngine(capacity=lambda requests: asked(requests[0]) <= 4)
        desk.start(engine, batch_size=1)
        found = desk.results(2)
        assert sorted(asked(request) for (request,) in engine.calls) == [1, 4, 12, 35]
        assert (found["large.png"].reduced, found["small.png"].reduced) == (
            "at most 4 crops: device memory",
            "",
        )
        record = json.loads((desk.outbox / "large.png.json").read_text())
        assert record["reduced"] == "at most 4 crops: device memory"
        assert "reduced" not in json.loads((desk.outbox / "small.png.json").read_text())
        assert caplog.text.count("from now on pictures: at most 12 crops") == 1
        assert caplog.text.count("from now on pictures: at most 4 crops") == 1

    def test_a_rung_that_asks_no_less_is_left_out(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png", (900, 900)))  # 9 crops; this model cuts 6
        engine = FakeEngine(capacity=lambda requests: requests[0].max_crops == 4, max_crops=6)
        desk.start(engine)
        desk.wait_for(1)
        assert [request.max_crops for (request,) in engine.calls] == [None, 4]

    def test_recordings_get_shorter_windows_and_keep_their_times(
        self, desk: Desk, make_recording: Callable[..., Path]
    ) -> None:
        desk.add(make_recording(desk.inbox / "a.wav", 29.0))
        engine = FakeEngine(capacity=lambda requests: max(map(asked, requests)) <= 8)
        desk.start(engine)
        result = desk.results(1)["a.wav"]
        segments = result.segments
        assert (segments[0].start, segments[-1].end) == (0.0, 29.0)
        assert [s.end for s in segments[:-1]] == [s.start for s in segments[1:]]
        assert max(s.end - s.start for s in segments) <= 8
        assert [s.text for s in segments] == [
            f"audio {s.end - s.start:.1f} s: Transcribe." for s in segments
        ]
        assert result.reduced == "at most 8 s at a time: device memory"

    def test_one_kind_tells_nothing_of_the_other(
        self, desk: Desk, make_picture: Callable[..., Path], make_recording: Callable[..., Path]
    ) -> None:
        desk.add(*(make_picture(desk.inbox / f"{n}.png", (3000, 2000)) for n in range(2)))

        def holds(requests: Sequence[Request]) -> bool:
            return requests[0].kind is Kind.AUDIO or sum(map(asked, requests)) <= 4

        engine = FakeEngine(capacity=holds)
        desk.start(engine, batch_size=4)
        desk.wait_for(2)
        desk.add(*(make_recording(desk.inbox / f"{n}.wav", 20.0) for n in range(4)))
        found = desk.results(6)
        assert len([call for call in engine.calls if call[0].kind is Kind.AUDIO]) == 4
        assert [found[f"{n}.wav"].reduced for n in range(4)] == [""] * 4

    def test_at_last_a_request_has_the_device_for_itself(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        # given two slots of one device, of which each has a file for long
        inside: list[FakeEngine] = []

        class Slot(FakeEngine):
            def serve(self, *args: Any, **options: Any) -> None:
                inside.append(self)
                try:
                    super().serve(*args, **options)
                finally:
                    inside.remove(self)

        def holds(requests: Sequence[Request]) -> bool:
            return len(inside) == 1 or not any(len(request.media) == 20 for request in requests)

        slots = [Slot(gate=threading.Event(), capacity=holds) for _ in range(2)]
        desk.add(make_picture(desk.inbox / "a.png"), make_picture(desk.inbox / "b.png"))
        workers = desk.start_all(slots, batch_size=1)
        while not all(slot.calls for slot in slots):
            workers[0].join(0.01)
        # when one of them gets a file that fits only without the other
        desk.add(make_picture(desk.inbox / "large.png", (20, 20)))
        while not (has := [n for n in (0, 1) if "in/large.png" in at_work(workers[n])]):
            workers[0].join(0.01)
        waiting = tell_of_waiting(workers[has[0]])
        gate, other = slots[has[0]].gate, slots[1 - has[0]].gate
        assert gate
        assert other
        gate.set()
        assert waiting.wait(WAIT_SECONDS)
        # then it waits until the device is free
        assert inside == [slots[1 - has[0]]]
        other.set()
        found = desk.results(3)
        assert len(slots[has[0]].calls) == 3
        assert not any(result.reduced for result in found.values())

    def test_a_job_that_a_device_refuses_waits_for_another_device(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        # given a small device and a large one
        small, large = FakeEngine(device="cuda:0"), FakeEngine(device="cuda:1")
        small.capacity = lambda requests: asked(requests[0]) < 4
        desk.start_all([small, large], batch_size=1)
        # when the small one meets a file that it cannot hold; others meet the large one
        n = 0
        while "waits for another device" not in caplog.text:
            n += 1
            desk.add(make_picture(desk.inbox / f"large{n}.png", (3000, 2000)))
            desk.wait_for(n)
        # then the large one takes it, with nothing reduced
        result = desk.results(n)[f"large{n}.png"]
        assert (result.device, result.reduced) == ("cuda:1", "")
        assert desk.counts() == {"done": n}
        assert f"in/large{n}.png: waits for another device: cuda:0: out of memory" in caplog.text
        assert len([call for call in small.calls if asked(call[0]) == 4]) == 1
        assert {job.attempts for job, _, _ in desk.ended} == {1}

    def test_what_every_device_refuses_fails_with_what_to_do(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.add(
            make_picture(desk.inbox / "large.png", (3000, 2000)),
            make_picture(desk.inbox / "small.png"),
        )
        engines = [
            FakeEngine(device=name, capacity=lambda requests: asked(requests[0]) < 4)
            for name in ("cuda:0", "cuda:1", "cuda:1")
        ]
        desk.start_all(engines, batch_size=1)
        words = {job.name: words for job, _, words in desk.wait_for(2)}
        assert desk.counts() == {"done": 1, "failed": 1}
        assert (
            "needs more memory than any device has, even alone and with at most 4 crops: give the "
            'device more, set quantization = "4bit", or make the file smaller (cuda:'
        ) in words["large.png"]
        (record,) = [r for r in caplog.records if "failed in/large.png: needs" in r.getMessage()]
        assert record.PHI4D_FAULT == "device"  # type: ignore[attr-defined]
        assert not (desk.outbox / "large.png.txt").exists()

    def test_a_long_recording_that_is_refused_is_not_decoded_further(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(Path(shutil.copy(LONG, desk.inbox)), make_picture(desk.inbox / "a.png"))
        engine = FakeEngine(capacity=lambda requests: requests[0].kind is Kind.IMAGE)
        desk.start(engine, batch_size=1)
        desk.wait_for(2)
        assert desk.counts() == {"done": 1, "failed": 1}
        assert len(engine.calls) == 2


def at_work(worker: Worker) -> list[str]:
    return [name for name, _ in worker.at_work()]


def tell_of_waiting(worker: Worker) -> threading.Event:
    """An event that is set whenever somebody waits at the gate of a worker's device."""
    waiting, real = threading.Event(), worker._answering._gate.enter

    def enter(*, alone: bool, on_wait: Callable[[], None]) -> Any:
        def wait() -> None:
            waiting.set()
            on_wait()

        return real(alone=alone, on_wait=wait)

    worker._answering._gate.enter = enter  # type: ignore[method-assign, assignment]
    return waiting


class TestLostDevice:
    LOST = DeviceLost("cuda:0: an illegal memory access was encountered")

    def again(self, desk: Desk, engine: FakeEngine) -> None:
        """The next start, on a new engine, one request at a time, up to its end."""
        for worker in desk.workers:
            worker.join(WAIT_SECONDS)
        worker = desk.start(engine, batch_size=1)
        worker.join(WAIT_SECONDS)
        assert worker.error is self.LOST

    def waiting(self, desk: Desk) -> list[tuple[str, int, int]]:
        """(name, attempts, deaths) of what is queued."""
        return [(job.name, job.attempts, job.deaths) for job in desk.store.waiting(9, ["in"])]

    def test_it_ends_the_worker_and_the_jobs_wait_for_the_next(
        self, desk: Desk, make_picture: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(2)))
        engine = FakeEngine(failures={1: self.LOST}, gate=threading.Event())
        worker = desk.start(engine)
        while engine.most < 2:
            worker.join(0.01)
        assert engine.gate
        engine.gate.set()
        worker.join(WAIT_SECONDS)
        assert worker.error is self.LOST
        # beside each other, it may have been any of them: each goes alone from now on
        assert self.waiting(desk) == [("0.png", 1, 0), ("1.png", 1, 0)]
        assert str(self.LOST) in caplog.text
        self.again(desk, FakeEngine(failures={1: self.LOST}))
        assert self.waiting(desk) == [("0.png", 2, 1), ("1.png", 1, 0)]

    def test_the_third_time_alone_the_file_is_taken_for_the_cause(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(2)))
        for _ in range(DEVICE_DEATHS):
            assert not desk.ended
            self.again(desk, FakeEngine(failures={1: self.LOST}))
        ((job, _, words),) = desk.ended
        assert job.name == "0.png"
        assert "the device was lost 3 times over it alone" in words
        assert "illegal memory access" in words
        desk.start(FakeEngine())
        desk.wait_for(2)
        assert desk.counts() == {"done": 1, "failed": 1}

    def test_jobs_that_the_engine_did_not_have_are_not_to_blame(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(3)))
        self.again(desk, FakeEngine(failures={2: self.LOST}))
        assert self.waiting(desk) == [("1.png", 1, 1), ("2.png", 0, 0)]

    def test_a_slot_beside_it_is_not_to_blame_and_shares_no_call_with_a_suspect(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        # given a file that was begun and not finished
        desk.add(make_picture(desk.inbox / "suspect.png"))
        desk.store.claim([1], "cpu")
        desk.store.recover()
        gate = threading.Event()
        slots = [FakeEngine(gate=gate, failures={1: self.LOST}) for _ in range(2)]
        entered = slots[0].entered = slots[1].entered
        workers = desk.start_all(slots)
        waiting = tell_of_waiting(workers[0])
        # when it is asked about, and another comes meanwhile
        assert entered.wait(WAIT_SECONDS)
        desk.add(make_picture(desk.inbox / "other.png"))
        assert waiting.wait(WAIT_SECONDS)
        gate.set()
        for worker in workers:
            worker.join(WAIT_SECONDS)
        # then the other was never on the device
        assert sum(len(slot.calls) for slot in slots) == 1
        assert all(isinstance(worker.error, DeviceLost) for worker in workers)
        assert self.waiting(desk) == [("suspect.png", 2, 1), ("other.png", 0, 0)]

    def test_two_slots_that_lose_their_device_together_are_both_suspects(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        both = threading.Barrier(2)

        def answer(request: Request) -> str:
            both.wait(WAIT_SECONDS)
            raise self.LOST

        workers = desk.start_all([FakeEngine(answer=answer) for _ in range(2)], batch_size=1)
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(2)))
        for worker in workers:
            worker.join(WAIT_SECONDS)
        assert self.waiting(desk) == [("0.png", 1, 0), ("1.png", 1, 0)]


class TestBugs:
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
    def test_what_the_engine_does_not_have_is_put_back(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(3)))
        engine = FakeEngine(gate=threading.Event())
        worker = desk.start(engine, batch_size=1)
        assert engine.entered.wait(WAIT_SECONDS)
        worker.stop()
        assert engine.gate
        engine.gate.set()
        worker.join(WAIT_SECONDS)
        assert desk.counts() == {"done": 1, "queued": 2}
        assert [job.attempts for job in desk.store.waiting(9, ["in"])] == [0, 0]

    def test_a_recording_that_is_not_read_to_its_end_is_put_back_within_a_step(
        self, desk: Desk
    ) -> None:
        desk.add(Path(shutil.copy(LONG, desk.inbox)))
        engine = FakeEngine(gate=threading.Event())
        worker = desk.start(engine, batch_size=2)
        assert engine.entered.wait(WAIT_SECONDS)
        worker.stop()
        worker.join(WAIT_SECONDS)  # the gate is closed: it waits for no answer
        assert desk.counts() == {"queued": 1}
        assert len(engine.calls) <= 2

    def test_what_the_engine_has_may_end(
        self, desk: Desk, make_picture: Callable[..., Path]
    ) -> None:
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


class TestIdle:
    """A model that is unloaded while there is no work."""

    @pytest.fixture
    def loads(self) -> list[FakeEngine | Exception]:
        """What loading gives, one after the other."""
        return []

    @pytest.fixture
    def engine(self, loads: list[FakeEngine | Exception], clock: Clock) -> Resident:
        def reload(progress: Callable[[int, int], None]) -> Engine:
            progress(0, 1)
            made = loads.pop(0)
            if isinstance(made, Exception):
                raise made
            return made

        return Resident(FakeEngine(), reload, idle_seconds=60, clock=clock)

    def test_a_worker_without_work_unloads_it_and_the_next_file_has_it_loaded_again(
        self,
        desk: Desk,
        make_picture: Callable[..., Path],
        engine: Resident,
        loads: list[FakeEngine | Exception],
        clock: Clock,
    ) -> None:
        desk.add(make_picture(desk.inbox / "a.png"))
        worker = desk.start(engine)
        desk.wait_for(1)
        # when it has nothing to do for long
        clock.advance(60)
        loads.append(FakeEngine())
        while engine.is_loaded:
            worker.wake()
        desk.add(make_picture(desk.inbox / "b.png"))
        # then
        desk.wait_for(2)
        assert engine.is_loaded
        assert desk.counts() == {"done": 2}

    def test_while_others_have_the_memory_files_wait_and_nothing_counts_against_them(
        self,
        desk: Desk,
        make_picture: Callable[..., Path],
        engine: Resident,
        loads: list[FakeEngine | Exception],
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("phi4d.worker.thread.BUSY_SECONDS", 0.0)
        clock.advance(60)
        assert engine.rest()
        loads += [EnvironmentFault("cuda:0: full")] * 9 + [FakeEngine()]
        desk.add(make_picture(desk.inbox / "a.png"))
        desk.start(engine, max_attempts=2)
        ((job, result, _),) = desk.wait_for(1)
        assert result is not None
        assert job.attempts == 1
        assert loads == []

    def test_a_slot_that_cannot_load_leaves_the_files_to_others(
        self,
        desk: Desk,
        make_picture: Callable[..., Path],
        engine: Resident,
        loads: list[FakeEngine | Exception],
        clock: Clock,
    ) -> None:
        clock.advance(60)
        assert engine.rest()
        loads += [EnvironmentFault("full")] * 2
        refused, _ = desk.start_all([engine, FakeEngine(device="cuda:1")])
        desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(20)))
        results = desk.results(20)
        assert {result.device for result in results.values()} == {"cuda:1"}
        assert refused.is_alive()

    def test_a_stop_while_it_is_loaded_puts_the_file_back(
        self, desk: Desk, make_picture: Callable[..., Path], clock: Clock
    ) -> None:
        loading = threading.Event()

        def reload(progress: Callable[[int, int], None]) -> Engine:
            while True:
                progress(0, 1)
                loading.set()

        engine = Resident(FakeEngine(), reload, idle_seconds=60, clock=clock)
        clock.advance(60)
        assert engine.rest()
        desk.add(make_picture(desk.inbox / "a.png"))
        worker = desk.start(engine)
        assert loading.wait(WAIT_SECONDS)
        worker.stop()
        worker.join(WAIT_SECONDS)
        assert not worker.is_alive()
        assert desk.counts() == {"queued": 1}
        (job,) = desk.store.waiting(1, ["in"])
        assert job.attempts == 0
        assert engine.state == "unloaded (idle)"
