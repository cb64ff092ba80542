"""Prompts in bounded turns: nobody waits for long, and what is answered is the same."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from enginekit import CHECKPOINT, clip, long_clip, noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopkit import FULL, TOKENS, all_seats_are_free, alone, asked, loop, run
from torch.nn.attention.bias import causal_lower_right

from phi4d.engine import embedding
from phi4d.engine.decoding import read_prompts
from phi4d.engine.embedding import CROP_WORK, Embedding
from phi4d.engine.graphs import Graphs
from phi4d.engine.lane import Lane
from phi4d.engine.phi4 import Phi4Engine
from phi4d.engine.plan import Slot
from phi4d.engine.seats import Filling, Seats

WHOLE = 100_000
"""tokens of a step: all is read in one turn"""
ROUNDING = 1e-4
"""of logits up to some 20: so much reading in parts may change in float32"""


@pytest.fixture(scope="module")
def short(engine):
    """Clips, with their answers alone and read whole."""
    them = [asked(engine, clip(seconds, seed)) for seed, seconds in enumerate((0.5, 1.0, 2.0))]
    return [(one, alone(engine, *one, prompt_tokens=WHOLE)) for one in them]


@pytest.fixture(scope="module")
def long(engine):
    """A picture of several crops, likewise."""
    one = asked(engine, noise(900, 900))
    return one, alone(engine, *one, prompt_tokens=WHOLE)


@contextmanager
def work_noted():
    """The work of each turn of reading, as it is done."""
    read, done = Lane.read, []

    def noting(self, reading):
        done.append(reading.work)
        return read(self, reading)

    with mock.patch.object(Lane, "read", noting):
        yield done


# equal in parts


@torch.inference_mode()
def next_logits(engine, prompt, adapter, parts):
    """What comes next behind a prompt whose parts begin there; in a seat that was used before."""
    model = engine._loaded.use(adapter)
    made = Embedding(model, [prompt], WHOLE)
    while made.turns:
        made.turn()
    length = len(prompt.ids)
    seats, row, logits = Seats(model, 3, length), torch.tensor([1]), None
    for tensor in (*seats.keys, *seats.values):
        tensor.normal_()
    for begin, end in zip([0, *parts], [*parts, length], strict=True):
        assert logits is None
        filling = Filling.at(seats, row, begin, end)
        logits = read_prompts(model, made.embeds, made.lengths, filling)
    return logits


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(parts=st.sets(st.integers(1, 400), max_size=6), seconds=st.integers(2, 30))
def test_read_in_any_parts_a_prompt_has_the_same_logits_to_rounding(engine, parts, seconds):
    one = asked(engine, clip(seconds))
    parts = sorted(part for part in parts if part < len(one[0].ids))
    whole = next_logits(engine, *one, [])
    assert torch.allclose(next_logits(engine, *one, parts), whole, rtol=0, atol=ROUNDING)


def test_a_stretch_on_a_gpu_has_the_mask_that_it_has_here(engine):
    seats = Seats(engine._loaded.models["speech"], 1, 64)
    mask = Filling.at(seats, torch.tensor([0]), 20, 50).mask
    there = causal_lower_right(30, 50)
    assert torch.equal(mask == 0, there._materialize())
    assert set(mask.unique().tolist()) == {0, -torch.inf}


@pytest.mark.parametrize("prompt_tokens", [64, 500, 1024])
@pytest.mark.parametrize("static", [False, True])
def test_read_in_turns_beside_others_a_picture_is_answered_as_read_whole(
    engine, long, short, prompt_tokens, static
):
    it = loop(engine, prompt_tokens=prompt_tokens, graphs=Graphs("cpu") if static else None)
    tickets = [it.submit(*one) for one, _ in (short[0], long, short[1])]
    run(it)
    assert [ticket.answer for ticket in tickets] == [short[0][1], long[1], short[1][1]]
    assert all_seats_are_free(it)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_reads_in_turns(long, attention):
    other = Phi4Engine.load(CHECKPOINT, Slot("cpu", attention=attention))
    assert alone(other, *long[0], prompt_tokens=300) == long[1]
    other.close()


def test_a_prompt_over_4096_tokens_is_answered_as_read_whole(engine):
    one = asked(engine, long_clip(engine, 4200, 9), 9)
    assert alone(engine, *one) == alone(engine, *one, prompt_tokens=WHOLE)


def test_in_bfloat16_reading_in_turns_chooses_what_reading_whole_does_but_for_near_ties():
    half = Phi4Engine.load(CHECKPOINT, Slot("cpu", "bfloat16"))
    for seconds in (3.0, 9.0, 20.0):
        one = asked(half, clip(seconds))
        whole = next_logits(half, *one, []).float()[0]
        parts = next_logits(half, *one, [20, 40]).float()[0]
        chosen, other = whole[whole.argmax()], whole[parts.argmax()]
        assert chosen - other < 8 * 2**-8 * chosen.abs().clamp(min=1)
    half.close()


# nobody waits for long


def test_no_step_reads_more_than_it_may_even_with_a_picture_of_36_crops(engine, short):
    # given a picture as large as they come, and clips before, beside and behind it
    wide = Phi4Engine(engine._loaded, engine._tokens, name="", device="cpu")
    picture, adapter = asked(wide, noise(2688, 2688), 3)
    assert (picture.media.crops, picture.media.tokens) == (36, 9585)
    it = loop(engine, rows=3, prompt_tokens=1024)
    tickets = [it.submit(*one) for one in (short[0][0], (picture, adapter), short[1][0])]
    # when they are read
    steps = []
    with work_noted() as done:
        while it.busy:
            it.step(lambda: None)
            steps.append(sum(done))
            done.clear()
            if len(steps) == 5:
                tickets.append(it.submit(*short[2][0]))
    # then each step has its share, and all of them have the whole
    assert max(steps) <= 1024
    assert sum(steps) == picture.work + sum(one[0].work for one, _ in short)
    assert [len(ticket.answer) for ticket in tickets] == [TOKENS, 3, TOKENS, TOKENS]
    assert [tickets[i].answer for i in (0, 2, 3)] == [answer for _, answer in short]


def test_what_is_short_is_answered_while_something_long_is_being_read(engine, long, short):
    # given two long ones, the second waiting for the first
    it = loop(engine, prompt_tokens=100, rows=8)
    longs = [it.submit(*long[0]) for _ in range(2)]
    it.step(lambda: None)
    # when short ones come behind them
    behind = [it.submit(*one) for one, _ in short]
    ended = []
    while not all(ticket.ended for ticket in longs):
        ended += it.step(lambda: None)
    run(it)
    # then they have been answered meanwhile, and the long ones in their order
    assert set(ended[: len(behind)]) == set(behind)
    assert [ticket.answer for ticket in behind] == [answer for _, answer in short]
    assert [ticket.answer for ticket in longs] == [long[1]] * 2
    assert ended.index(longs[0]) < ended.index(longs[1])


def test_what_is_long_is_read_though_short_ones_never_end_to_come(engine, long, short):
    it = loop(engine, prompt_tokens=100, rows=8)
    ticket = it.submit(*long[0])
    others, steps = [], 0
    while not ticket.ended:
        others.append(it.submit(*short[0][0]))
        it.step(lambda: None)
        steps += 1
    # a turn in each step, then a token
    assert steps <= 5 + -(-len(long[0][0].ids) // 50) + TOKENS + 1
    assert ticket.answer == long[1]
    for other in others:
        it.cancel(other)
    run(it)
    assert all_seats_are_free(it)


def test_it_tells_of_life_after_every_turn(engine, long):
    it, beats = loop(engine, prompt_tokens=100), []
    it.submit(*long[0])
    with work_noted() as done:
        it.step(lambda: beats.append(len(done)))
    assert beats == [1]
    assert done == [CROP_WORK]


def test_pictures_of_several_requests_share_calls_of_the_tower(engine):
    # given four small pictures
    them = [asked(engine, noise(400 + i, 430, i), 5) for i in range(4)]
    expected = [alone(engine, *one) for one in them]
    it = loop(engine, prompt_tokens=8192)
    tickets = [it.submit(*one) for one in them]
    # when they are read
    calls = []

    def spy(tower, crops, masks, whole):
        calls.append(len(crops))
        return seen(tower, crops, masks, whole)

    seen = embedding._seen
    with mock.patch.object(embedding, "_seen", spy):
        run(it)
    # then their global views are one call, and their crops, partly white, another
    assert calls == [4, 4]
    assert [ticket.answer for ticket in tickets] == expected


# what goes wrong meanwhile


@pytest.mark.parametrize("steps", range(1, 18, 4))
def test_cancelled_in_the_midst_of_its_reading_it_leaves_no_trace(engine, long, short, steps):
    it = loop(engine, prompt_tokens=100, rows=2)
    others = [it.submit(*one) for one, _ in short[:1]]
    unwanted = it.submit(*long[0])
    for _ in range(steps):
        it.step(lambda: None)
    assert not unwanted.ended
    it.cancel(unwanted)
    assert unwanted in it.step(lambda: None)
    assert unwanted.answer == []
    again = it.submit(*long[0])
    others += [it.submit(*one) for one, _ in short[1:]]
    run(it)
    assert [ticket.answer for ticket in others] == [answer for _, answer in short]
    assert again.answer == long[1]
    assert all_seats_are_free(it)


@pytest.mark.parametrize("part", ["tower", "stretch"])
def test_what_there_is_too_little_memory_for_fails_in_the_midst_and_alone(
    engine, long, short, part
):
    model = engine._loaded.models["vision"].model
    module = model.layers[-1].mlp
    if part == "tower":
        module = model.embed_tokens_extend.image_embed.img_processor.embeddings
    forward = module.forward

    def full(*given, **named):
        tensor = given[0] if given else named["pixel_values"]
        if tensor.shape[:2] == (1, 50) or part == "tower":  # as the third of 27 stretches has
            raise torch.OutOfMemoryError(FULL)
        return forward(*given, **named)

    it = loop(engine, prompt_tokens=102, rows=3)
    with mock.patch.object(module, "forward", full):
        tickets = [it.submit(*one) for one, _ in (short[0], long, *short[1:])]
        run(it)
    assert [ticket.error is None for ticket in tickets] == [True, False, True, True]
    assert str(tickets[1].error).startswith("cpu: out of memory while")
    assert [tickets[i].answer for i in (0, 2, 3)] == [answer for _, answer in short]
    assert all_seats_are_free(it)
