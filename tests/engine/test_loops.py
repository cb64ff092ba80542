"""The loop that stands as long as its engine, as on a GPU; here on the CPU."""

from __future__ import annotations

import pytest
import torch
from enginekit import clip, long_clip, noise

from phi4d.engine import embedding, loops
from phi4d.engine.graphs import Graphs
from phi4d.engine.phi4 import Phi4Engine
from phi4d.engine.plan import Slot
from phi4d.engine.requests import Asked
from phi4d.errors import DeviceError, Stopped

ROWS = 4


@pytest.fixture(scope="module")
def settled(engine):
    it = Phi4Engine(
        engine._loaded, engine._tokens, name="settled", device="cpu", captures=True, max_crops=4
    )
    it.settle(Slot("cpu"), ROWS)
    return it


@pytest.fixture
def asked():
    return [clip(0.4), clip(3.0, 2), noise(30, 50), clip(1.0, 4, max_new_tokens=3)]


def served(it, requests):
    coming, done = [Asked(request, i) for i, request in enumerate(requests)], {}

    def source(room):
        taken, coming[:] = coming[:room], coming[room:]
        return taken

    it.serve(source, lambda one, ended: done.__setitem__(one.key, ended))
    return [done[i] for i in range(len(requests))]


def full(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def texts(it, requests):
    return [it.generate([request])[0] for request in requests]


def test_memory_is_taken_once_for_as_many_rows_as_are_wanted(settled, asked):
    assert settled.rows == ROWS
    arena, loop = settled._loops._arena, settled._loops._standing
    before = loop.tokens
    served(settled, asked)
    settled.generate(asked[:2])
    assert settled._loops._arena is arena
    assert settled._loops._standing is loop
    assert loop.tokens == before > 0


def test_answers_are_the_same_as_by_a_loop_for_each_call(settled, engine, asked):
    assert served(settled, asked) == texts(engine, asked)
    assert settled.generate(asked[:2]) == texts(engine, asked[:2])
    assert served(settled, asked * 3) == texts(engine, asked) * 3


def test_a_stream_that_was_left_in_the_midst_harms_no_later_one(settled, engine, asked):
    room = settled._loops._arena.room

    def stop():
        raise Stopped("now")

    coming = [[Asked(request) for request in asked]]
    with pytest.raises(Stopped):
        settled.serve(lambda _: coming.pop() if coming else [], print, on_step=stop)
    # all memory has come back, and is lent again
    assert settled._loops._arena.room > room
    assert served(settled, asked) == texts(engine, asked)


def test_what_there_was_too_little_memory_for_is_tried_again_by_the_next_call(settled, asked):
    lanes = list(settled._loops._standing._lanes.values())
    for lane in lanes:
        lane.most = 1
    served(settled, asked[:1])
    assert lanes
    assert all(lane.most is None for lane in lanes)


def test_a_request_that_has_no_room_in_the_arena_fails_alone(settled, engine, asked):
    # given a request of more tokens, with its answer, than there are
    tokens = settled._loops._arena.tokens
    long = long_clip(engine, 4200, tokens)
    told = served(settled, [asked[0], long, asked[1]])
    assert isinstance(told[1], DeviceError)
    assert [told[0], told[2]] == texts(engine, [asked[0], asked[1]])
    with pytest.raises(DeviceError, match="caches have room for"):
        settled.generate([long])
    assert served(settled, asked[:1]) == texts(engine, asked[:1])


def test_where_a_trial_is_too_large_a_smaller_one_is_made(engine, monkeypatch):
    it = Phi4Engine(engine._loaded, engine._tokens, name="small", device="cpu", max_crops=16)
    pixels, tried = embedding.pixels, []

    def only_few(tiles, device):
        tried.append(tiles.crops)
        if tiles.crops > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels(tiles, device)

    monkeypatch.setattr(embedding, "pixels", only_few)
    it.settle(Slot("cpu"), 1)
    assert max(tried) > 4
    assert tried[-1] <= 4
    assert it.rows == 1


def test_slots_that_share_a_device_share_its_memory(engine):
    it = Phi4Engine(engine._loaded, engine._tokens, name="shared", device="cpu", max_crops=1)
    share = 30_000_000
    it.settle(Slot("cpu", needs_bytes=10_000_000, share_bytes=share), 1024)
    arena = it._loops._arena
    assert 0 < arena.nbytes <= share - 10_000_000


def test_where_others_were_quicker_less_memory_is_taken(engine, monkeypatch):
    # given a device that has the memory no more that it had a moment ago, at first
    asked, arena = [], loops.Arena

    def take(model, tokens):
        asked.append(tokens)
        if len(asked) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return arena(model, tokens)

    monkeypatch.setattr(loops, "Arena", take)
    it = Phi4Engine(engine._loaded, engine._tokens, name="quick", device="cpu", max_crops=1)
    it.settle(Slot("cpu", share_bytes=30_000_000), 1024)
    # then it takes what there is
    assert len(asked) == 3
    assert asked[0] > asked[1] > asked[2] == it._loops._arena.tokens


def test_where_memory_is_too_little_to_capture_steps_it_loads_all_the_same(
    engine, monkeypatch, asked
):
    it = Phi4Engine(
        engine._loaded, engine._tokens, name="full", device="cpu", captures=True, max_crops=1
    )
    with monkeypatch.context() as patch:
        patch.setattr(Graphs, "run", full)
        it.settle(Slot("cpu"), 2)
    assert served(it, asked) == texts(engine, asked)


def test_closed_it_lets_all_memory_go(engine, asked):
    it = Phi4Engine(engine._loaded, engine._tokens, name="closed", device="cpu", max_crops=1)
    it.settle(Slot("cpu"), 1)
    it.close()
    it.close()
    assert it._loops._arena is it._loops._standing is None
    with pytest.raises(RuntimeError, match="closed"):
        it.generate(asked[:1])
