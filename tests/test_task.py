"""A job on its way."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from phi4d import log as logs
from phi4d.job import Completion, Fingerprint, FinishReason, Job, Kind, Piece, Sampling, Segment
from phi4d.prepared.preparation import Preparation
from phi4d.task import Rule, Task


def task(kind: Kind) -> Task:
    job = Job(1, "in", b"sub/a\n.wav", kind, Fingerprint(1, 2, 3))
    rule = Rule(b"/in", b"/out", {Kind.IMAGE: "Describe.", Kind.AUDIO: "Transcribe."})
    return Task(job, rule, logs.for_job(logging.getLogger(), job, "cpu"), began=100.0)


def piece(start: float = 0.0, end: float = 0.0) -> Piece:
    return Piece(np.zeros(16_000, np.float32), start, end)


def test_it_knows_its_file_and_its_question() -> None:
    found = task(Kind.AUDIO)
    assert found.source == b"/in/sub/a\n.wav"
    assert found.name == r"in/sub/a\n.wav"
    request = found.request(piece(), 7)
    assert (request.kind, request.prompt, request.max_new_tokens) == (Kind.AUDIO, "Transcribe.", 7)


def test_its_requests_and_its_result_know_how_tokens_are_chosen() -> None:
    found = task(Kind.IMAGE)
    found.sampling = Sampling(0.7, seed=3)
    assert found.request(piece(), 7).sampling == Sampling(0.7, seed=3)
    assert found.result("m", "cpu", 100.0).sampling == Sampling(0.7, seed=3)


def test_it_is_complete_when_all_pieces_are_out_and_answered() -> None:
    found = task(Kind.AUDIO)
    assert not found.complete
    found.outstanding += 1
    found.decoded = True
    assert not found.complete
    found.answer(piece(), Completion("x", 1, 1))
    assert found.complete
    found.ended = True
    assert not found.complete


def test_the_answers_of_a_recording_are_joined_with_their_times() -> None:
    found = task(Kind.AUDIO)
    found.facts = {"duration": 60.0}
    found.answer(piece(0.0, 29.5), Completion("hello", 10, 2))
    found.answer(piece(30.0, 40.0), Completion("", 10, 1))
    found.answer(piece(41.0, 60.0), Completion("world", 10, 3, FinishReason.LENGTH))
    result = found.result("m", "cuda:1", now=104.5)
    assert result.text == "hello world"
    assert result.segments == (
        Segment(0.0, 29.5, "hello"),
        Segment(30.0, 40.0, ""),
        Segment(41.0, 60.0, "world", FinishReason.LENGTH),
    )
    assert (result.prompt_tokens, result.new_tokens, result.finish_reason) == (30, 6, "length")
    assert (result.model, result.device, result.seconds) == ("m", "cuda:1", 4.5)
    assert result.media == (("duration", 60.0),)


def test_fewer_crops_are_told_if_the_picture_has_more() -> None:
    found = task(Kind.IMAGE)
    wide = Piece(np.zeros((400, 3000, 3), np.uint8))  # seven crops
    assert found.request(wide, 7).max_crops is None
    assert found.request(wide, 7, 7).max_crops == 7
    assert found.result("m", "cpu", 100.0).reduced == ""
    assert found.request(wide, 7, 4).max_crops == 4
    assert found.result("m", "cpu", 100.0).reduced == "at most 4 crops: device memory"


def test_prepared_media_are_limited_as_those_that_were_not() -> None:
    # given a picture of nine crops, prepared
    picture = Piece(Preparation().picture(np.zeros((1300, 1300, 3), np.uint8)))
    found = task(Kind.IMAGE)
    # then a limit counts that is below them
    assert found.request(picture, 7, 9).media is picture.media
    assert found.reduced == ""
    assert found.request(picture, 7, 4).max_crops == 4
    assert found.reduced == "at most 4 crops: device memory"
    # and given 20 s of sound, prepared
    sound = Piece(Preparation().sound(np.zeros(320_000, np.float32)), 100.0, 120.0)
    found = task(Kind.AUDIO)
    found.outstanding = 1
    # then a limit cuts it, and each part wants its answer
    cut = found.shorter(sound, 15)
    assert (cut[0].start, cut[-1].end, found.outstanding) == (100.0, 120.0, len(cut))
    assert found.reduced == "at most 15 s at a time: device memory"
    assert all(found.request(part, 7).seconds < 15 for part in cut)


def test_shorter_parts_are_told_and_each_wants_its_answer() -> None:
    found = task(Kind.AUDIO)
    found.outstanding, found.decoded = 2, True
    short, long = piece(0.0, 1.0), Piece(np.zeros(320_000, np.float32), 1.0, 21.0)
    assert found.shorter(short, 15) == [short]
    assert found.reduced == ""
    cut = found.shorter(long, 15)
    assert len(cut) == 2
    for part in (short, *cut):
        assert not found.complete
        found.answer(part, Completion("x", 1, 1))
    assert found.complete
    result = found.result("m", "cpu", 100.0)
    assert result.reduced == "at most 15 s at a time: device memory"
    assert [(s.start, s.end) for s in result.segments] == [
        (part.start, part.end) for part in (short, *cut)
    ]


@pytest.mark.parametrize("kind", list(Kind))
def test_nothing_to_answer_is_an_empty_result(kind: Kind) -> None:
    result = task(kind).result("m", "cpu", 100.0)
    assert (result.text, result.segments, result.finish_reason) == ("", (), "stop")


def test_a_picture_has_no_segments() -> None:
    found = task(Kind.IMAGE)
    found.answer(piece(), Completion("a cat", 545, 2))
    result = found.result("m", "cpu", 100.0)
    assert (result.text, result.segments, result.prompt) == ("a cat", (), "Describe.")
