"""The decode loop: whoever joins and leaves, each is answered as if it were alone."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import pytest
import torch
from enginekit import CHECKPOINT, TRANSCRIBE, clip, long_clip, noise, picture, speech
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopkit import FULL, TOKENS, all_seats_are_free, alone, asked, loop, run

from phi4d.engine import lane as lanes
from phi4d.engine.arena import Arena
from phi4d.engine.embedding import Embedding
from phi4d.engine.graphs import Graphs
from phi4d.engine.grouping import WASTE, alike
from phi4d.engine.phi4 import Phi4Engine
from phi4d.engine.plan import Slot
from phi4d.engine.requests import Asked
from phi4d.engine.sampling import Chooser
from phi4d.engine.seats import Seats, stretches
from phi4d.errors import DeviceError, DeviceLost, Stopped
from phi4d.job import Completion, Kind, Request, Sampling

both_forms = pytest.mark.parametrize("graphs", [None, Graphs("cpu")], ids=["eager", "static"])
"""of the step: as it is needed, and in the shapes that CUDA graphs are captured in"""


@dataclass
class Pool:
    """Requests with their answers, worked out one at a time, which nothing but a limit ends."""

    asked: list[tuple[object, str]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)

    def expected(self, which, limit, stop):
        answer = self.answers[which][:limit]
        ends = [i for i, token in enumerate(answer) if token in stop]
        return answer[: ends[0] + 1] if ends else answer


@pytest.fixture(scope="module")
def pool(engine):
    requests = [clip(seconds, seed) for seed, seconds in enumerate((0.4, 1.0, 1.1, 3.0, 9.0))]
    requests += [
        dataclasses.replace(clip(1.2, 7), sampling=Sampling(4.0, seed=3)),
        dataclasses.replace(clip(2.0, 8), sampling=Sampling(2.5, 1.3, seed=4)),
        dataclasses.replace(clip(1.5, 9), sampling=Sampling(repetition_penalty=2.0)),
        noise(5, 5),
    ]
    them = Pool([asked(engine, request) for request in requests])
    them.answers = [alone(engine, *one) for one in them.asked]
    assert all(len(answer) == TOKENS for answer in them.answers)
    assert len({tuple(answer) for answer in them.answers}) > 5
    return them


@dataclass(frozen=True)
class Visit:
    """When a request comes, and how it goes."""

    which: int
    comes: int
    limit: int
    leaves: int | None
    fails: bool


visits = st.lists(
    st.builds(
        Visit,
        # pictures are slow to read: seldom
        which=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7] * 3 + [8]),
        comes=st.integers(0, 12),
        limit=st.integers(1, TOKENS),
        leaves=st.none() | st.integers(0, 20),
        fails=st.sampled_from([False] * 5 + [True]),
    ),
    min_size=1,
    max_size=8,
)


@contextmanager
def faults(model, broken, full_at=()):
    """Some prompts cannot be embedded, and some turns and steps run out of memory at the end."""
    count = iter(range(100_000))
    last = model.model.layers[-1].mlp
    forward = last.forward

    class Breaking(Embedding):
        def __init__(self, model, prompts, most):
            super().__init__(model, prompts, most)
            self.breaks = any(id(prompt) in broken for prompt in prompts)

        def turn(self):
            super().turn()
            if self.breaks and not self.turns:
                raise DeviceError(f"cpu: {FULL}")

    def fail_or_go_on(hidden):
        if next(count) in full_at:
            raise torch.OutOfMemoryError(FULL)
        return forward(hidden)

    with (
        mock.patch.object(lanes, "Embedding", Breaking),
        mock.patch.object(last, "forward", fail_or_go_on),
    ):
        yield


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    visits=visits,
    rows=st.integers(1, 5),
    cache_tokens=st.sampled_from([1, 300, 100_000]),
    prompt_tokens=st.sampled_from([1, 60, 200, 10_000]),
    late=st.booleans(),
    static=st.booleans(),
    arena=st.none() | st.sampled_from([1025, 3000, 20_000]),
    stop=st.sets(st.integers(0, 9)),
    full_at=st.sets(st.integers(3, 40), max_size=2),
)
def test_joining_and_leaving_in_every_order_equals_one_at_a_time(
    engine, pool, visits, rows, cache_tokens, prompt_tokens, late, static, arena, stop, full_at
):
    # given requests that come, are cancelled, fail, and a device that is full now and then
    likely = sorted({token for answer in pool.answers for token in answer})
    stop = {likely[i * 7 % len(likely)] for i in stop}
    prompts = [
        dataclasses.replace(pool.asked[visit.which][0], limit=visit.limit) for visit in visits
    ]
    broken = {id(p) for p, visit in zip(prompts, visits, strict=True) if visit.fails}
    it = loop(
        engine,
        rows=rows,
        cache_tokens=cache_tokens,
        prompt_tokens=prompt_tokens,
        late=late,
        stop=stop,
        graphs=Graphs("cpu") if static else None,
        arena=Arena(engine._loaded.models["speech"], arena) if arena else None,
    )
    tickets, ended = {}, []
    # when they come and go
    with faults(engine._loaded.models["speech"], broken, full_at):
        for now in range(3000):
            for i, visit in enumerate(visits):
                if visit.comes == now:
                    tickets[i] = it.submit(prompts[i], pool.asked[visit.which][1])
                if visit.leaves == now and i in tickets:
                    it.cancel(tickets[i])
            if now > 12 and not it.busy:
                break
            ended += it.step(lambda: None)
    # then each has ended once, as it would have alone, and no seat is lost
    assert not it.busy
    assert sorted(map(id, ended)) == sorted(map(id, tickets.values()))
    for i, visit in enumerate(visits):
        ticket = tickets[i]
        expected = pool.expected(visit.which, visit.limit, stop)
        if ticket.cancelled:
            assert visit.leaves is not None
        elif ticket.error is None:
            assert not visit.fails
            assert ticket.answer == expected
        else:
            assert isinstance(ticket.error, DeviceError)
            assert visit.fails or full_at
    assert all_seats_are_free(it)


@both_forms
def test_without_faults_every_request_is_answered(engine, pool, graphs):
    it = loop(engine, rows=3, late=True, graphs=graphs)
    tickets = [it.submit(*one) for one in pool.asked]
    run(it)
    assert [ticket.answer for ticket in tickets] == pool.answers
    assert all_seats_are_free(it)


def test_one_that_is_done_is_handed_out_while_others_go_on(engine, pool):
    it = loop(engine)
    short, _ = (
        it.submit(dataclasses.replace(pool.asked[i][0], limit=limit), pool.asked[i][1])
        for i, limit in ((0, 2), (1, TOKENS))
    )
    assert it.step(lambda: None) == [short]
    assert it.busy


@both_forms
def test_what_is_too_little_memory_for_all_makes_some_wait_and_nobody_fail(engine, pool, graphs):
    # given four rows that do not fit, as their fifth token is chosen
    it = loop(engine, graphs=graphs)
    with faults(engine._loaded.models["speech"], (), full_at={7}):
        tickets = [it.submit(*pool.asked[i]) for i in (1, 2, 3, 5)]
        run(it)
    # then two at a time are gone on with, and the answers are the same
    assert [ticket.answer for ticket in tickets] == [pool.answers[i] for i in (1, 2, 3, 5)]
    assert all_seats_are_free(it)
    assert [lane.most for lane in it._lanes.values()] == [2]


def test_a_step_that_fails_after_all_have_ended_harms_nobody(engine, pool):
    # given an answer that ends by itself, which is known a step late, and that step fails
    answer = pool.answers[3]
    it = loop(engine, late=True, stop=[answer[0]], rows=1)
    with faults(engine._loaded.models["speech"], (), full_at={1}):
        ended, *after = (it.submit(*pool.asked[i]) for i in (3, 1, 2))
        run(it)
    # then nothing was the matter
    assert ended.answer == answer[:1]
    assert [ticket.answer for ticket in after] == [
        pool.expected(i, TOKENS, [answer[0]]) for i in (1, 2)
    ]
    assert all_seats_are_free(it)


def test_a_loop_that_does_not_shed_lets_all_fail_that_did_not_fit(engine, pool):
    it = loop(engine, sheds=False)
    with faults(engine._loaded.models["speech"], (), full_at={7}):
        tickets = [it.submit(*pool.asked[i]) for i in (1, 3)]
        run(it)
    assert all(isinstance(ticket.error, DeviceError) for ticket in tickets)
    assert all_seats_are_free(it)


def test_a_device_that_is_lost_ends_the_step(engine, pool):
    it = loop(engine)
    it.submit(*pool.asked[1])
    with (
        mock.patch.object(
            engine._loaded.models["speech"].model.norm,
            "forward",
            side_effect=RuntimeError("CUDA error: an illegal memory access was encountered"),
        ),
        pytest.raises(DeviceLost),
    ):
        it.step(lambda: None)
    assert all_seats_are_free(it)


@both_forms
def test_what_a_row_left_that_was_no_number_does_not_reach_the_next(engine, pool, graphs):
    it = loop(engine, rows=1, graphs=graphs)
    it.submit(*pool.asked[4])
    run(it)
    (lane,) = it._lanes.values()
    (longest,) = lane._seats._written
    with torch.inference_mode():
        for tensor in (*lane._seats.keys, *lane._seats.values):
            tensor[:, :, :longest] = torch.nan
    ticket = it.submit(*pool.asked[0])
    run(it)
    assert lane is next(iter(it._lanes.values()))
    assert ticket.answer == pool.answers[0]


def test_a_request_longer_than_the_seats_waits_for_longer_ones(engine, pool):
    it = loop(engine, rows=2)
    first = [it.submit(*pool.asked[i]) for i in (0, 1)]
    it.step(lambda: None)
    (lane,) = it._lanes.values()
    before = lane.length
    longer, after = it.submit(*pool.asked[4]), it.submit(*pool.asked[2])
    run(it)
    assert lane.length > before
    assert [t.answer for t in (*first, longer, after)] == [pool.answers[i] for i in (0, 1, 4, 2)]


def test_the_caches_stay_within_the_tokens_that_are_given(engine, pool):
    it = loop(engine, rows=8, cache_tokens=700)
    tickets = [it.submit(*one) for one in pool.asked * 2]
    held = []
    while it.busy:
        it.step(lambda: held.append(sum(lane.tokens for lane in it._lanes.values())))
    assert [ticket.answer for ticket in tickets] == pool.answers * 2
    assert 0 < max(held) <= 700


def test_a_request_whose_cache_cannot_be_had_fails_alone(engine, pool):
    # given memory for a cache of two rows of 128 tokens, and no more
    def seats(model, count, length, arena):
        if count * length > 256:
            raise torch.OutOfMemoryError(FULL)
        return Seats(model, count, length, arena)

    it = loop(engine)
    with mock.patch.object(lanes, "Seats", seats):
        tickets = [it.submit(*pool.asked[i]) for i in (0, 8, 1, 2)]
        run(it)
    # then the picture, which is longer, has failed
    assert [ticket.error is None for ticket in tickets] == [True, False, True, True]
    assert isinstance(tickets[1].error, DeviceError)
    assert [tickets[i].answer for i in (0, 2, 3)] == [pool.answers[i] for i in (0, 1, 2)]


def test_a_picture_behind_many_recordings_is_not_starved(engine, pool):
    # given memory for one kind at a time, and recordings that keep coming
    it = loop(engine, rows=2, cache_tokens=600)
    waiting = [it.submit(*pool.asked[3]) for _ in range(2)]
    it.step(lambda: None)
    seen = it.submit(*pool.asked[8])
    while not seen.ended:
        waiting.append(it.submit(*pool.asked[3]))
        it.step(lambda: None)
    # then it is answered after those that were under way, and before the others
    assert seen.answer == pool.answers[8]
    assert sum(ticket.ended for ticket in waiting) == 2
    for ticket in waiting:
        it.cancel(ticket)
    run(it)
    assert all_seats_are_free(it)


def test_what_is_worked_out_in_vain_changes_no_seat(engine, pool):
    # given seats that are free among those that are taken, with something in them
    it = loop(engine, rows=4, graphs=Graphs("cpu"))
    short, *others = (
        it.submit(dataclasses.replace(pool.asked[i][0], limit=limit), pool.asked[i][1])
        for i, limit in ((7, 2), (1, TOKENS), (6, TOKENS))
    )
    while not short.ended:
        it.step(lambda: None)
    (lane,) = it._lanes.values()
    (free,) = set(range(3)) - set(lane.running)
    before = [tensor[free].clone() for tensor in (*lane._seats.keys, *lane._seats.values)]
    seen = lane._chooser._seen[free].clone()
    # when the others are gone on with
    run(it)
    # then it is as it was
    after = [tensor[free] for tensor in (*lane._seats.keys, *lane._seats.values)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(lane._chooser._seen[free], seen)
    assert [ticket.answer for ticket in others] == [pool.answers[i] for i in (1, 6)]


def test_requests_may_come_from_another_thread(engine, pool):
    it = loop(engine)
    tickets, some = [], threading.Event()

    def come():
        for one in pool.asked:
            tickets.append(it.submit(*one))
            some.set()

    thread = threading.Thread(target=come)
    thread.start()
    some.wait(10)
    while thread.is_alive() or it.busy:
        it.step(lambda: None)
    thread.join()
    run(it)
    assert [ticket.answer for ticket in tickets] == pool.answers


@both_forms
def test_long_prompts_are_answered_beside_short_ones_as_alone(engine, pool, graphs):
    long = asked(engine, long_clip(engine, 4200, 5), 5)
    expected = alone(engine, *long)
    it = loop(engine, graphs=graphs)
    tickets = [it.submit(*one) for one in (pool.asked[0], long, pool.asked[3])]
    run(it)
    assert [ticket.answer for ticket in tickets] == [pool.answers[0], expected, pool.answers[3]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_gives_the_same_tokens(pool, attention):
    other = Phi4Engine.load(CHECKPOINT, Slot("cpu", attention=attention))
    it = loop(other)
    tickets = [it.submit(*one) for one in pool.asked[:4]]
    run(it)
    assert [ticket.answer for ticket in tickets] == pool.answers[:4]
    other.close()


def test_in_bfloat16_a_batch_equals_one_at_a_time_until_the_first_near_tie():
    # given answers one at a time, with how near the second likeliest token was at each of them
    half = Phi4Engine.load(CHECKPOINT, Slot("cpu", "bfloat16"))
    them = [asked(half, clip(seconds, seed)) for seed, seconds in enumerate((0.5, 1.0, 3.0, 6.0))]
    margins, answers = [], []

    class Spy(Chooser):
        def choose(self, logits, rows, index=None):
            best = logits.float().index_fill(1, self._never, -torch.inf).topk(2, 1).values[0]
            margins[-1].append(float((best[0] - best[1]) / best[0].abs().clamp(min=1)))
            return super().choose(logits, rows, index)

    with mock.patch.object(lanes, "Chooser", Spy):
        for one in them:
            margins.append([])
            answers.append(alone(half, *one))
    # when they are answered together
    it = loop(half)
    tickets = [it.submit(*one) for one in them]
    run(it)
    # then the first that differs, if any, was a near tie: 8 times what bfloat16 tells apart
    for ticket, answer, margin in zip(tickets, answers, margins, strict=True):
        apart = [i for i in range(TOKENS) if ticket.answer[i] != answer[i]]
        assert not apart or margin[apart[0]] < 8 * 2**-8
    half.close()


# grouping


@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=30),
    tokens=st.integers(1, 10_000),
    rows=st.integers(1, 10),
)
def test_a_group_has_the_oldest_little_padding_and_no_more_than_it_may(lengths, tokens, rows):
    group = alike(lengths, tokens=tokens, rows=rows)
    assert 0 in group
    assert sorted(set(group)) == group
    assert len(group) <= rows
    padded = max(lengths[i] for i in group) * len(group)
    assert padded <= tokens or group == [0]
    assert sum(lengths[i] for i in group) >= (1 - WASTE) * padded


def test_those_of_one_length_are_one_group():
    assert alike([300, 40, 300, 310, 290], tokens=10_000, rows=8) == [0, 2, 3, 4]


def test_stretches_are_neighbours():
    assert stretches([0]) == [(0, 1, 0)]
    assert stretches([1, 2, 4, 7, 8]) == [(0, 2, 1), (2, 3, 4), (3, 5, 7)]


# the stream


def texts(engine, requests):
    return [engine.generate([request])[0] for request in requests]


@pytest.fixture(scope="module")
def mixed():
    return [
        clip(1.0, max_new_tokens=9),
        picture("shapes-448x448.png"),
        Request(Kind.AUDIO, TRANSCRIBE, speech(), TOKENS),
        clip(5.0, 3, max_new_tokens=TOKENS),
    ]


def test_a_stream_of_both_kinds_is_answered_as_one_at_a_time(engine, mixed):
    # given a source that gives one more whenever it is asked
    coming = [Asked(request, key=i) for i, request in enumerate(mixed)]
    done, beats = {}, []
    # when it is served
    engine.serve(
        lambda room: [coming.pop(0) for _ in range(min(1, room, len(coming)))],
        lambda one, ended: done.__setitem__(one.key, ended),
        on_step=lambda: beats.append(1),
    )
    # then
    assert [done[i] for i in range(len(mixed))] == texts(engine, mixed)
    assert len(beats) >= max(one.new_tokens for one in done.values())


def test_a_stream_tells_who_cannot_be_answered_and_goes_on(engine, mixed):
    odd = Request(Kind.AUDIO, "", np.zeros(9))
    coming = [Asked(odd), Asked(mixed[1]), Asked(mixed[0])]
    told = {}
    tower = engine._loaded.models["vision"].model.embed_tokens_extend.image_embed
    with mock.patch.object(
        tower.img_projection_up, "forward", side_effect=torch.OutOfMemoryError(FULL)
    ):
        engine.serve(
            lambda room: [coming.pop(0)] if coming else [],
            lambda one, ended: told.__setitem__(id(one.request), ended),
        )
    assert isinstance(told[id(odd)], ValueError)
    assert isinstance(told[id(mixed[1])], DeviceError)
    assert told[id(mixed[0])] == texts(engine, mixed[:1])[0]


def test_what_is_cancelled_in_a_stream_is_not_told_of(engine, mixed):
    unwanted, wanted = Asked(mixed[3]), Asked(mixed[0])
    coming, told = [[unwanted, wanted]], []
    engine.serve(
        lambda _: coming.pop() if coming else [],
        lambda one, ended: told.append((one, ended)),
        on_step=lambda: setattr(unwanted, "cancelled", True),
    )
    assert told == [(wanted, texts(engine, mixed[:1])[0])]


def test_what_on_step_raises_ends_the_stream_and_no_more(engine, mixed):
    before = texts(engine, mixed[:1])
    coming = [[Asked(mixed[3])]]

    def stop():
        raise Stopped("now")

    with pytest.raises(Stopped):
        engine.serve(lambda _: coming.pop() if coming else [], print, on_step=stop)
    assert texts(engine, mixed[:1]) == before
    assert isinstance(before[0], Completion)
