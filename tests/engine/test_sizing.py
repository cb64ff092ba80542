"""How the memory that is free is shared out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phi4d.engine.sizing import MOST_ROWS, SPEECH_TOKENS, VISION_TOKENS, sizes

TOKEN = 131_072
"""bytes, of the published model in bfloat16"""
GB = 10**9


def test_where_there_is_plenty_nothing_is_taken_that_nobody_could_use():
    found = sizes(110 * GB, 2 * GB, TOKEN, None)
    assert found.rows == MOST_ROWS
    assert found.tokens == MOST_ROWS * (SPEECH_TOKENS + VISION_TOKENS)


def test_who_wants_few_answers_at_a_time_takes_little():
    found = sizes(110 * GB, 2 * GB, TOKEN, 8)
    assert found.rows == 8
    assert found.tokens * TOKEN < 6 * GB


def test_what_work_takes_is_left_to_it():
    found = sizes(12 * GB, 3 * GB, TOKEN, None)
    assert found.tokens * TOKEN <= 12 * GB - 3 * GB
    assert found.tokens * TOKEN >= 7 * GB
    assert 1 < found.rows < MOST_ROWS


@given(
    free=st.integers(0, 200 * GB),
    working=st.integers(0, 300 * GB),
    rows=st.none() | st.integers(1, 1024),
)
def test_there_is_always_a_row_and_never_more_than_is_free(free, working, rows):
    found = sizes(free, working, TOKEN, rows)
    assert 1 <= found.rows <= (rows or MOST_ROWS)
    assert found.tokens * TOKEN <= max(free, TOKEN)
    assert found.rows == 1 or found.rows * SPEECH_TOKENS * 2 <= found.tokens
