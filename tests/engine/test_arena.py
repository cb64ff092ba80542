"""Memory that is lent to caches and comes back."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4d.engine.arena import Arena
from phi4d.engine.seats import Seats


def test_caches_lie_side_by_side_and_do_not_touch_each_other(engine):
    model = engine._loaded.models["speech"]
    arena = Arena(model, 1000)
    one, other = Seats(model, 3, 128, arena), Seats(model, 2, 192, arena)
    assert arena.room == 1000 - 385 - 385
    for tensor in (*one.key_places, *one.value_places):
        tensor.fill_(1)
    assert not any(bool(tensor.any()) for tensor in (*other.keys, *other.values))
    # what comes back is lent again, with nothing left in it
    one.close()
    assert arena.room == 385
    again = Seats(model, 1, 384, arena)
    assert again.keys[0].data_ptr() == one.keys[0].data_ptr()
    assert not any(bool(tensor.any()) for tensor in (*again.keys, *again.values))


@settings(deadline=None)
@given(st.lists(st.integers(1, 60) | st.none(), max_size=20))
def test_what_is_lent_never_overlaps_and_all_comes_back(engine, takes):
    arena = Arena(engine._loaded.models["speech"], 100)
    lent: list[tuple[int, int]] = []
    for tokens in takes:
        if tokens is None and lent:
            arena.leave(lent.pop(0)[0])
        elif tokens is not None and tokens <= arena.room:
            begin, places = arena.take(tokens)
            assert all(each.shape[1] == tokens for each in places)
            assert begin + tokens <= 100
            assert all(begin + tokens <= b or e <= begin for b, e in lent)
            lent.append((begin, begin + tokens))
    for begin, _ in lent:
        arena.leave(begin)
    assert arena.room == 100


def test_zeros_are_numbers_whatever_was_there(engine):
    model = engine._loaded.models["speech"]
    arena = Arena(model, 129)
    before = Seats(model, 1, 128, arena)
    before.keys[0].fill_(torch.nan)
    before.close()
    assert bool((Seats(model, 1, 128, arena).keys[0] == 0).all())
