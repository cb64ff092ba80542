from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from phi4d.engine import Engine
from phi4d.engine.fake import FakeEngine
from phi4d.engine.requests import Asked
from phi4d.errors import DeviceError, DeviceLost, Stopped
from phi4d.job import Completion, Kind, Request, Sampling

PICTURE = Request(Kind.IMAGE, "Describe.", np.zeros((480, 640, 3), np.uint8))
CLIP = Request(Kind.AUDIO, "Transcribe.", np.zeros(51_200, np.float32))


def in_thread(call):
    """Run a call in a thread; returns the thread and the list that its outcome goes to."""
    outcome: list[object] = []

    def run():
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_is_an_engine():
    engine: Engine = FakeEngine("toy", "cuda:1")
    assert (engine.model, engine.device) == ("toy", "cuda:1")


def test_answers_follow_from_the_media_and_the_prompt():
    engine = FakeEngine()
    assert engine.generate([PICTURE])[0].text == "picture 640x480: Describe."
    assert engine.generate([CLIP, CLIP])[1].text == "audio 3.2 s: Transcribe."
    assert engine.calls == [(PICTURE,), (CLIP, CLIP)]


def test_an_answer_of_ones_own():
    engine = FakeEngine(answer=lambda request: request.prompt.upper())
    assert engine.generate([CLIP])[0].text == "TRANSCRIBE."


def test_on_step_is_called_for_each_token():
    beats: list[int] = []
    done = FakeEngine(tokens=5).generate([CLIP], on_step=lambda: beats.append(1))
    assert len(beats) == 5
    assert (done[0].new_tokens, done[0].finish_reason) == (5, "stop")


def test_the_limit_cuts():
    short = Request(Kind.AUDIO, "Transcribe.", CLIP.media, max_new_tokens=2)
    done = FakeEngine(tokens=5).generate([short])
    assert (done[0].new_tokens, done[0].finish_reason) == (2, "length")


def test_what_on_step_raises_ends_the_call():
    def stop():
        raise Stopped("now")

    engine = FakeEngine()
    with pytest.raises(Stopped):
        engine.generate([CLIP], on_step=stop)
    assert engine.generate([CLIP])[0].text


def test_failures_come_at_their_call():
    engine = FakeEngine(failures={2: DeviceError("cpu: out of memory")})
    engine.generate([CLIP])
    with pytest.raises(DeviceError, match="out of memory"):
        engine.generate([CLIP])
    engine.generate([CLIP])
    assert len(engine.calls) == 3


def test_a_call_that_its_memory_does_not_hold_fails():
    engine = FakeEngine(device="cuda:1", capacity=lambda requests: len(requests) < 2, max_crops=5)
    with pytest.raises(DeviceError, match="cuda:1: out of memory while answering 2 requests"):
        engine.generate([CLIP, CLIP])
    assert engine.generate([CLIP])[0].text
    assert [len(call) for call in engine.calls] == [2, 1]
    assert engine.max_crops == 5


def test_waits_at_the_gate_and_beats():
    engine, beaten = FakeEngine(gate=threading.Event()), threading.Event()
    thread, outcome = in_thread(lambda: engine.generate([CLIP], on_step=beaten.set))
    assert engine.entered.wait(10)
    assert beaten.wait(10)
    assert not outcome
    engine.gate.set()
    thread.join(10)
    assert outcome[0][0].text == "audio 3.2 s: Transcribe."


def test_hung_it_waits_without_beating():
    engine, beats = FakeEngine(gate=threading.Event(), hung=True, tokens=1), []
    thread, outcome = in_thread(lambda: engine.generate([CLIP], on_step=lambda: beats.append(1)))
    assert engine.entered.wait(10)
    assert not beats
    engine.gate.set()
    thread.join(10)
    assert beats == [1]
    assert outcome


def test_a_call_at_the_gate_can_be_stopped():
    def stop():
        raise Stopped("now")

    engine = FakeEngine(gate=threading.Event())
    thread, outcome = in_thread(lambda: engine.generate([CLIP], on_step=stop))
    thread.join(10)
    assert isinstance(outcome[0], Stopped)


def test_closing_opens_the_gate_and_refuses_further_calls():
    engine = FakeEngine(gate=threading.Event())
    thread, outcome = in_thread(lambda: engine.generate([CLIP]))
    assert engine.entered.wait(10)
    engine.close()
    engine.close()
    thread.join(10)
    assert len(outcome[0]) == 1
    assert engine.closed
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate([CLIP])


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([], "none"),
        ([PICTURE, CLIP], "audio and image"),
        ([Request(Kind.IMAGE, "", CLIP.media)], "image: "),
        ([Request(Kind.IMAGE, "", np.zeros((4, 4), np.uint8))], r"found \(4, 4\) uint8"),
        ([Request(Kind.IMAGE, "", np.zeros((4, 4, 4), np.uint8))], "height, width, 3"),
        ([Request(Kind.IMAGE, "", np.zeros((0, 4, 3), np.uint8))], r"\(0, 4, 3\)"),
        ([Request(Kind.IMAGE, "", np.zeros((4, 4, 3), np.float32))], "float32"),
        ([Request(Kind.AUDIO, "", np.zeros((9, 2), np.float32))], r"\(9, 2\)"),
        ([Request(Kind.AUDIO, "", np.zeros(9, np.float64))], "float64"),
        ([Request(Kind.AUDIO, "", CLIP.media, max_new_tokens=0)], "less than 1"),
        ([Request(Kind.AUDIO, "", CLIP.media, 9, Sampling(-0.1))], "temperature: -0.1"),
        ([Request(Kind.AUDIO, "", CLIP.media, 9, Sampling(math.nan))], "temperature: nan"),
        ([Request(Kind.AUDIO, "", CLIP.media, 9, Sampling(0.0, 0.0))], "repetition_penalty: 0"),
        ([Request(Kind.AUDIO, "", CLIP.media, 9, Sampling(0.0, math.inf))], "penalty: inf"),
        ([Request(Kind.IMAGE, "", PICTURE.media, max_crops=0)], "max_crops: 0 is less than 1"),
    ],
)
def test_refuses_what_the_real_engine_refuses(requests, said):
    engine = FakeEngine()
    with pytest.raises(ValueError, match=said):
        engine.generate(requests)
    assert not engine.calls


def test_a_stream_is_answered_as_by_the_real_engine():
    # given a request that does not fit, one that is none, one that is wanted no more
    full = DeviceError("cpu: out of memory")
    engine = FakeEngine(failures={2: full})
    odd = Request(Kind.AUDIO, "", np.zeros(9))
    coming = [Asked(PICTURE), Asked(CLIP), Asked(odd), Asked(CLIP, cancelled=True), Asked(CLIP)]
    told = []
    # when it is served
    engine.serve(
        lambda room: [coming.pop(0) for _ in range(min(room, len(coming)))],
        lambda asked, ended: told.append((asked.request, ended)),
    )
    # then each that is wanted is told of, and the others are answered
    (first, none), (second, refused), *answered = told
    assert first is odd
    assert isinstance(none, ValueError)
    assert second is CLIP
    assert refused is full
    assert [(request, ended.text) for request, ended in answered] == [
        (PICTURE, "picture 640x480: Describe."),
        (CLIP, "audio 3.2 s: Transcribe."),
    ]


def test_requests_of_a_stream_are_answered_beside_each_other_as_memory_allows():
    # given requests that come one a step, a device that holds two, and one that it does not hold
    large = Request(Kind.IMAGE, "", np.zeros((900, 900, 3), np.uint8))
    engine = FakeEngine(
        tokens=3, rows=4, capacity=lambda them: len(them) <= 2 and large not in them
    )
    coming = [Asked(PICTURE), Asked(large), Asked(CLIP), Asked(CLIP)]
    rooms, told = [], []

    def source(room):
        rooms.append(room)
        return [coming.pop(0)] if coming else []

    # when they are served
    engine.serve(source, lambda asked, ended: told.append((asked.request, type(ended))))
    # then two at a time are, and the large one fails alone
    assert [request for request, ended in told if ended is DeviceError] == [large]
    assert [request for request, ended in told if ended is Completion] == [PICTURE, CLIP, CLIP]
    assert min(rooms) < 4
    assert engine.rows == 4


def test_a_device_that_is_lost_ends_a_stream():
    engine = FakeEngine(failures={1: DeviceLost("cpu: lost")})
    with pytest.raises(DeviceLost):
        engine.serve(lambda _: [Asked(CLIP)], lambda *_: None)
