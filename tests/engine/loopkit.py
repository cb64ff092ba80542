"""What the tests of the loop share: requests as it takes them, a loop, and its run to the end."""

from __future__ import annotations

import dataclasses

from phi4d.engine.loop import Loop
from phi4d.engine.phi4 import ADAPTER

TOKENS = 20
"""of the longest answers"""
NONE: frozenset[int] = frozenset()
FULL = "CUDA out of memory. Tried to allocate 20.00 GiB"


def asked(engine, request, limit=TOKENS):
    """A request as the loop takes it: its prompt and its adapter."""
    prompt = engine._prompt(engine._loaded, dataclasses.replace(request, max_new_tokens=limit))
    return prompt, ADAPTER[request.kind]


def loop(engine, **options):
    given = {"stop": NONE, "never": engine._tokens.media, "rows": 4, "cache_tokens": 100_000}
    return Loop(engine._loaded, **given | options)


def run(it, tickets=(), steps=2000):
    """Step until nothing is to do. Never in vain: that would be a hang."""
    ended = list(tickets)
    for _ in range(steps):
        if not it.busy:
            return ended
        ended += it.step(lambda: None)
    raise AssertionError("the loop goes on and on")


def all_seats_are_free(it):
    return all(
        not lane.taken and (lane._seats is None or lane._seats.free == lane._seats.count)
        for lane in it._lanes.values()
    )


def alone(engine, prompt, adapter, **options):
    it = loop(engine, rows=1, **options)
    ticket = it.submit(prompt, adapter)
    run(it)
    assert ticket.error is None
    return ticket.answer
