"""Work that is wanted no more stops within a step, and that of the others goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from deskkit import WAIT_SECONDS, Desk

from phi4d import demo
from phi4d.engine.fake import FakeEngine
from phi4d.engine.phi4 import Phi4Engine
from phi4d.engine.requests import Asked
from phi4d.errors import EnvironmentFault
from phi4d.job import Kind, Request, State
from phi4d.media.pool import DecodePool, Decoding
from phi4d.store import Store

WHY = "cancelled by ada; phi4d retry takes it up again"
LONG = demo.SAMPLES / "digits-long.mp3"
"""a recording of eight pieces"""


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    """One for each test: which of its processes are idle, and which were replaced, is looked at."""
    with DecodePool(2) as pool:
        yield pool


def cancel(desk: Desk, name: str) -> None:
    """As the order does it."""
    _, marked = desk.store.cancel("in", os.fsencode(name), WHY, running=True)
    assert marked == 1
    for worker in desk.workers:
        worker.heed_cancels()


def standing(desk: Desk, name: str) -> tuple[str, str | None, str | None]:
    row = desk.store.versions("in", os.fsencode(name))[0]
    return row.state, row.fault, row.reason


def written(desk: Desk) -> set[str]:
    return {path.name for path in desk.outbox.iterdir()}


def test_one_stops_and_the_others_are_answered_as_ever(
    desk: Desk, make_picture: Callable[..., Path]
) -> None:
    # given three files that are answered beside each other
    desk.add(*(make_picture(desk.inbox / f"{n}.png", (64 + n, 48)) for n in range(3)))
    engine = FakeEngine(gate=threading.Event())
    worker = desk.start(engine, batch_size=3)
    while engine.most < 3:
        worker.join(0.01)
    # when one of them is cancelled
    cancel(desk, "1.png")
    ((job, result, words),) = desk.wait_for(1)
    # then it ends in the midst of it, and nothing is written of it
    assert (job.name, result, words) == ("1.png", None, WHY)
    assert engine.gate
    engine.gate.set()
    answers = desk.results(3)
    assert standing(desk, "1.png") == ("failed", "operator", WHY)
    assert len(engine.calls) == 3
    assert {name: result.text for name, result in answers.items()} == {
        "0.png": "picture 64x48: Describe.",
        "2.png": "picture 66x48: Describe.",
    }
    assert written(desk) == {"0.png.txt", "0.png.json", "2.png.txt", "2.png.json"}
    # and it did not cost the others an attempt
    assert [desk.store.versions("in", b"%d.png" % n)[0].job.attempts for n in (0, 2)] == [1, 1]
    # and it can be taken up again
    desk.store.retry("in", b"1.png")
    desk.workers[0].wake()
    desk.wait_for(4)
    assert standing(desk, "1.png")[0] == "done"


def test_with_a_real_model_the_others_answers_are_the_same_to_the_letter(desk: Desk) -> None:
    # given four pictures beside each other in the toy, of which one is cancelled after some tokens
    engine = Phi4Engine.load(str(demo.CHECKPOINT), name=demo.NAME, threads=1)
    pictures = sorted(demo.SAMPLES.glob("shapes-*"))
    asked: list[Asked] = []
    serve = engine.serve

    def telling(source: Any, on_result: Any, *, on_step: Any = None) -> None:
        steps = iter(range(1000))
        while worker._answering.ready().total() < len(pictures) - len(asked):
            worker.join(0.01)

        def noting(room: int) -> Any:
            taken = source(room)
            asked.extend(taken)
            return taken

        def step() -> None:
            if len(asked) == len(pictures) and next(steps) == 3:
                cancel(desk, "shapes-448x448.png")
                while standing(desk, "shapes-448x448.png")[0] == "running":
                    worker.join(0.01)
            on_step()

        serve(noting, on_result, on_step=step)

    engine.serve = telling  # type: ignore[method-assign]
    desk.prompts[Kind.IMAGE] = "Describe the image."
    desk.add(*(Path(shutil.copy(picture, desk.inbox)) for picture in pictures))
    # when they are answered
    worker = desk.start(engine, batch_size=len(pictures))
    found = desk.results(len(pictures))
    engine.close()
    # then the others' answers are those that the toy gives to each alone
    expected = json.loads((demo.SAMPLES / "expected.json").read_text())
    assert {name: result.text for name, result in found.items()} == {
        picture.name: expected[picture.name]
        for picture in pictures
        if picture.name != "shapes-448x448.png"
    }


def test_a_recording_stops_between_two_of_its_stretches(desk: Desk) -> None:
    def answer(request: Request) -> str:
        if len(engine.calls) == 2:
            cancel(desk, "long.wav")
            desk.wait_for(1)
        return "words"

    desk.add(Path(shutil.copy(LONG, desk.inbox / "long.wav")))
    engine = FakeEngine(answer=answer)
    worker = desk.start(engine, batch_size=1)
    desk.wait_for(1)
    while worker.at_work():
        worker.join(0.01)
    assert standing(desk, "long.wav") == ("failed", "operator", WHY)
    assert len(engine.calls) <= 3
    assert written(desk) == set()


def test_what_is_done_by_then_is_done(
    desk: Desk, make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a file that is cancelled when its sidecars are there
    def finish(*args: Any, **options: Any) -> bool:
        cancel(desk, "a.png")
        return real(*args, **options)

    real = desk.store.finish
    monkeypatch.setattr(desk.store, "finish", finish)
    desk.add(make_picture(desk.inbox / "a.png"))
    desk.start(FakeEngine(answer=lambda request: "an answer"))
    # then it is done, and the mark has gone
    assert desk.results(1)["a.png"].text == "an answer"
    assert standing(desk, "a.png") == ("done", None, None)
    assert written(desk) == {"a.png.txt", "a.png.json"}


def test_a_file_that_is_being_decoded_stops_and_lets_its_process_go(
    desk: Desk,
    pool: DecodePool,
    make_picture: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given decode processes that do not get on
    begun = threading.Event()
    real = pool.try_decode

    def decode(*args: Any, **options: Any) -> Decoding | None:
        begun.set()
        return real(*args, **options)

    monkeypatch.setattr(pool, "try_decode", decode)
    stopped = list(pool._all)
    for process in stopped:
        os.kill(process.pid, signal.SIGSTOP)
    desk.add(make_picture(desk.inbox / "a.png"), make_picture(desk.inbox / "b.png"))
    engine = FakeEngine()
    desk.start(engine)
    assert begun.wait(WAIT_SECONDS)
    # when the file that one of them has is cancelled
    cancel(desk, "a.png")
    ((job, _, _),) = desk.wait_for(1)
    # then it ends, though its process never answered, and the other file is done
    assert (job.name, standing(desk, "a.png")[1]) == ("a.png", "operator")
    for process in stopped:
        with contextlib.suppress(ProcessLookupError):  # that one has been replaced
            os.kill(process.pid, signal.SIGCONT)
    assert "b.png" in desk.results(2)
    assert written(desk) == {"b.png.txt", "b.png.json"}
    assert [len(call) for call in engine.calls] == [1]


def test_a_file_that_was_decoded_ahead_lets_its_process_go(
    desk: Desk, pool: DecodePool, make_recording: Callable[..., Path]
) -> None:
    # given two recordings that hold both processes, and a call about the first
    desk.add(*(Path(shutil.copy(LONG, desk.inbox / f"{n}.wav")) for n in range(2)))
    engine = FakeEngine(gate=threading.Event())
    desk.start(engine, batch_size=2, ahead=2)
    assert engine.entered.wait(WAIT_SECONDS)
    # when the second is cancelled
    cancel(desk, "1.wav")
    desk.wait_for(1)
    # then somebody else can have its process
    path = make_recording(desk.inbox / "other.wav")
    with pool.decode(os.fsencode(path), Kind.AUDIO) as pieces:
        assert len(list(pieces)) == 1
    # and the first goes on
    assert engine.gate
    engine.gate.set()
    assert "0.wav" in desk.results(2)
    assert written(desk) == {"0.wav.txt", "0.wav.json"}


def test_while_the_store_cannot_be_written_the_call_goes_on_and_it_stops_later(
    desk: Desk, make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a file that is cancelled, and a disk that is full when its worker looks
    desk.add(make_picture(desk.inbox / "a.png"))
    engine = FakeEngine(gate=threading.Event())
    worker = desk.start(engine)
    assert engine.entered.wait(WAIT_SECONDS)
    refused, has_room, fail = threading.Semaphore(0), threading.Event(), desk.store.fail

    def full(*args: Any, **options: Any) -> bool:
        if has_room.is_set():
            return fail(*args, **options)
        refused.release()
        raise EnvironmentFault("the store cannot be written: disk full")

    monkeypatch.setattr(desk.store, "fail", full)
    cancel(desk, "a.png")
    # when it has tried twice, there is room again
    assert refused.acquire(timeout=WAIT_SECONDS)
    assert refused.acquire(timeout=WAIT_SECONDS)
    assert worker.at_work()[0][0] == "in/a.png"
    has_room.set()
    # then it ends
    desk.wait_for(1)
    assert standing(desk, "a.png") == ("failed", "operator", WHY)


def test_what_was_put_back_meanwhile_is_given_up_too(desk: Desk) -> None:
    (desk.inbox / "a.png").write_bytes(b"x")
    desk.add(desk.inbox / "a.png")
    (job,) = desk.store.claim([1], "cpu")
    cancel(desk, "a.png")
    assert desk.store.requeue(job, count=False)
    assert standing(desk, "a.png") == ("failed", "operator", WHY)


def test_what_was_cancelled_when_the_daemon_was_killed_is_not_begun_again(
    desk: Desk, tmp_path: Path
) -> None:
    # given two files that are worked on, of which one was cancelled, when the daemon is killed
    for name in ("a.png", "b.png"):
        (desk.inbox / name).write_bytes(b"x")
        desk.add(desk.inbox / name)
    desk.store.claim([1, 2], "cpu")
    cancel(desk, "a.png")
    # when the next one starts
    with Store(tmp_path / "jobs.sqlite3") as store:
        assert [job.name for job in store.end_cancelled()] == ["a.png"]
        assert [job.name for job in store.recover()] == ["b.png"]
    assert standing(desk, "a.png") == ("failed", "operator", WHY)
    assert desk.store.versions("in", b"b.png")[0].state is State.QUEUED


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_cancelled_when_each_file_is_done_or_given_up_and_no_process_is_lost(
    desk: Desk, pool: DecodePool, make_picture: Callable[..., Path], seed: int
) -> None:
    # given two slots of a device, and somebody who cancels this and that at their every step
    names = [f"{n}.wav" if n % 10 == 0 else f"{n}.png" for n in range(50)]
    rng, wanted_no_more = Random(seed), set[str]()

    def cancel_something() -> None:
        if rng.random() < 0.1:
            name = rng.choice(names)
            taken, marked = desk.store.cancel("in", os.fsencode(name), WHY, running=True)
            if taken.count or marked:
                wanted_no_more.add(name)
            for worker in desk.workers:
                worker.heed_cancels()

    class Disturbed(FakeEngine):
        def serve(self, source: Any, on_result: Any, *, on_step: Any = None) -> None:
            def step() -> None:
                cancel_something()
                on_step()

            super().serve(source, on_result, on_step=step)

    for name in names:
        if name.endswith(".wav"):
            shutil.copy(LONG, desk.inbox / name)
        else:
            make_picture(desk.inbox / name)
    desk.add(*(desk.inbox / name for name in names))
    # when all is worked off
    workers = desk.start_all([Disturbed(tokens=20), Disturbed(tokens=20)], batch_size=8, ahead=2)
    while desk.store.busy(["in"]):
        workers[0].join(0.01)
    for worker in workers:
        worker.stop()
        worker.join()
    # then each file is done, with its sidecars, or was cancelled, and has none
    assert wanted_no_more
    states = {name: standing(desk, name)[:2] for name in names}
    assert set(states.values()) == {("done", None), ("failed", "operator")}
    assert {name for name, state in states.items() if state[0] == "failed"} <= wanted_no_more
    assert written(desk) == {
        f"{name}{suffix}"
        for name, (state, _) in states.items()
        if state == "done"
        for suffix in (".txt", ".json")
    }
    assert [worker.error for worker in workers] == [None, None]
    assert len(pool._idle) == 2
