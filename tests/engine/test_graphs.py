"""The shapes in which steps are captured, and how they are run where nothing can be captured."""

from __future__ import annotations

import contextlib
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phi4d.engine.graphs import Graphs, rows_shape, shapes, span_shape


@given(rows=st.integers(1, 500), more=st.integers(0, 500))
def test_a_shape_has_all_rows_and_few_in_vain(rows, more):
    shape = rows_shape(rows, rows + more)
    assert rows <= shape <= rows + more
    assert shape < rows + max(rows, 16)


@given(tokens=st.integers(1, 131_072), more=st.integers(0, 5000))
def test_a_shape_looks_as_far_as_the_longest_row_and_at_most_half_as_far_again(tokens, more):
    shape = span_shape(tokens, tokens + more)
    assert tokens <= shape <= tokens + more
    assert shape <= max(128, 1.5 * tokens)


def test_shapes_are_few_and_whole_blocks():
    assert sorted({rows_shape(n, 128) for n in range(1, 129)}) == [
        1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128,
    ]  # fmt: skip
    assert sorted({span_shape(n, 4096) for n in range(1, 4097)}) == [
        128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    ]  # fmt: skip


def test_all_shapes_of_a_cache_are_told_the_largest_first():
    found = shapes(10, 1024, shortest=700)
    assert found == [(n, span) for n in (10, 8, 4, 2, 1) for span in (1024, 768)]


def test_where_nothing_can_be_captured_each_step_is_run():
    graphs, captured, ran = Graphs("cpu"), {}, []
    for _ in range(3):
        graphs.run(captured, (1, 128), lambda: ran.append(1))
    assert len(ran) == 3
    assert not captured


class Graph:
    """Stands for a CUDA graph where there is no CUDA: it counts how often it is replayed."""

    def __init__(self):
        self.replayed = 0

    def replay(self):
        self.replayed += 1


@pytest.fixture
def capturing(monkeypatch):
    """Graphs that capture, and what is done when one is: the second time it fails."""
    begun = []

    @contextlib.contextmanager
    def capture(graph, **_):
        begun.append(graph)
        yield
        if len(begun) > 1:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    return Graphs("cuda:0"), begun


def test_a_shape_is_run_once_captured_and_replayed_from_then_on(capturing):
    graphs, begun = capturing
    captured, ran = {}, []
    for _ in range(4):
        graphs.run(captured, "a", lambda: ran.append("a"))
    # the first time it is run, and run again to be captured, which does nothing to the device
    assert ran == ["a", "a"]
    assert begun[0].replayed == 3


def test_what_cannot_be_captured_is_said_once_and_run_from_then_on(capturing, caplog):
    graphs, begun = capturing
    captured, ran = {}, []
    graphs.run(captured, "a", lambda: None)
    with caplog.at_level(logging.WARNING):
        for shape in "bbcbc":
            graphs.run(captured, shape, lambda: ran.append(1))
    # each was run, the first once more in vain; what was captured before is replayed all the same
    assert len(ran) == 6
    assert len(begun) == 2
    (said,) = caplog.messages
    assert said == (
        "cuda:0: a step cannot be captured as a CUDA graph, so answers take longer (CUDA error: "
        "operation not permitted when stream is capturing)"
    )
    graphs.run(captured, "a", lambda: ran.append(1))
    assert len(ran) == 6
    assert begun[0].replayed == 1
