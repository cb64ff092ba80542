"""What a worker tells the meter of: with real files, store and decode processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deskkit import Desk

from phi4d.engine.fake import FakeEngine
from phi4d.errors import DeviceError, SourceFault
from phi4d.job import Kind, State
from phi4d.media.pool import Decoding
from phi4d.meter import Memory, Meter, Phase


def spent(meter: Meter) -> dict[tuple[str, str], int]:
    """How many durations were counted, by phase and kind."""
    return {(p, k): spread.counts[-1] for (p, k), spread in meter.numbers().phases.items()}


def close(desk: Desk) -> None:
    """Wait for the end of what the workers count."""
    for worker in desk.workers:
        worker.stop()
        worker.join()


def test_every_phase_of_every_file(
    desk: Desk, make_picture: Callable[..., Path], make_recording: Callable[..., Path]
) -> None:
    files = [make_picture(desk.inbox / f"{n}.png") for n in range(3)]
    desk.add(*files, make_recording(desk.inbox / "a.wav", 1.5))
    meter = Meter()
    desk.start(FakeEngine(tokens=4), batch_size=2, meter=meter)
    desk.wait_for(4)
    close(desk)

    numbers = meter.numbers()
    assert numbers.ended == {("in", Kind.IMAGE, State.DONE): 3, ("in", Kind.AUDIO, State.DONE): 1}
    assert numbers.audio_seconds == {"in": pytest.approx(1.5)}
    assert spent(meter) == {
        (Phase.QUEUE, Kind.IMAGE): 3,
        (Phase.DECODE, Kind.IMAGE): 3,
        (Phase.ANSWER, Kind.IMAGE): 3,
        (Phase.WRITE, Kind.IMAGE): 3,
        (Phase.QUEUE, Kind.AUDIO): 1,
        (Phase.DECODE, Kind.AUDIO): 1,
        (Phase.ANSWER, Kind.AUDIO): 1,
        (Phase.WRITE, Kind.AUDIO): 1,
    }
    pictures, speech = numbers.work["cpu", Kind.IMAGE], numbers.work["cpu", Kind.AUDIO]
    assert (pictures.requests, pictures.new_tokens) == (3, 12)
    assert (speech.requests, speech.speech_seconds) == (1, pytest.approx(1.5, abs=0.05))
    assert 0 < pictures.seconds <= pictures.row_seconds
    assert numbers.starved["cpu"] > 0  # until the first was decoded
    assert meter.rates().total_per_minute > 0
    assert set(meter.rates().seconds_per_file) == {Kind.IMAGE, Kind.AUDIO}


def test_a_file_at_fault_and_one_that_waits(
    desk: Desk, make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk.inbox / "bad.jpg").write_bytes(b"this is no picture")
    decode, refusals = desk.pool.try_decode, [SourceFault("a.png: a bad sector")]

    def now_and_then(path: bytes, *args: Any, **options: Any) -> Decoding | None:
        if path.endswith(b"a.png") and refusals:
            raise refusals.pop()
        return decode(path, *args, **options)

    monkeypatch.setattr(desk.pool, "try_decode", now_and_then)
    meter = Meter()
    desk.add(desk.inbox / "bad.jpg", make_picture(desk.inbox / "a.png"))
    desk.start(FakeEngine(), batch_size=1, meter=meter)
    desk.wait_for(2)
    close(desk)

    numbers = meter.numbers()
    assert numbers.faults == {("in", "file", True): 1, ("in", "environment", False): 1}
    assert numbers.ended == {("in", Kind.IMAGE, State.FAILED): 1, ("in", Kind.IMAGE, State.DONE): 1}


def test_an_answer_that_is_copied_is_no_work_of_the_engine(
    desk: Desk, make_recording: Callable[..., Path]
) -> None:
    first = make_recording(desk.inbox / "a.wav", 1.0)
    meter = Meter()
    desk.add(first)
    desk.start(FakeEngine(), meter=meter, reuse=True)
    desk.wait_for(1)
    desk.add(Path(shutil.copy(first, desk.inbox / "b.wav")))
    desk.wait_for(2)
    close(desk)

    numbers = meter.numbers()
    assert numbers.ended == {("in", Kind.AUDIO, State.DONE): 2}
    assert numbers.copied == {("in", Kind.AUDIO): 1}
    assert numbers.audio_seconds == {"in": pytest.approx(1.0)}
    assert numbers.work["cpu", Kind.AUDIO].requests == 1


def test_a_request_that_does_not_fit(desk: Desk, make_picture: Callable[..., Path]) -> None:
    desk.add(*(make_picture(desk.inbox / f"{n}.png", (3000, 2000)) for n in range(2)))
    meter = Meter()
    desk.start(FakeEngine(failures={1: DeviceError("cpu: out of memory")}), meter=meter)
    desk.wait_for(2)
    close(desk)

    numbers = meter.numbers()
    assert numbers.too_large == {("cpu", Kind.IMAGE): 1}
    assert numbers.work["cpu", Kind.IMAGE].requests == 2


def test_an_inbox_that_pauses(
    desk: Desk, make_picture: Callable[..., Path], make_recording: Callable[..., Path]
) -> None:
    desk.add(make_picture(desk.inbox / "a.png"))
    desk.outbox.rmdir()
    meter = Meter()
    worker = desk.start(FakeEngine(), meter=meter)
    while not meter.numbers().pauses:
        worker.join(0.01)
    desk.outbox.mkdir()
    desk.wait_for(1)
    close(desk)

    assert meter.numbers().pauses["in"] >= 1
    assert meter.numbers().faults == {}


def test_what_the_device_holds_is_looked_at_now_and_then(
    desk: Desk, make_picture: Callable[..., Path]
) -> None:
    meter = Meter()
    holds = Memory(size_bytes=80, used_bytes=30, own_bytes=20)
    desk.add(make_picture(desk.inbox / "a.png"))
    desk.start(FakeEngine(device="cuda:7", holds=holds), meter=meter)
    desk.wait_for(1)
    close(desk)

    assert meter.numbers().memory == {"cuda:7": holds}
