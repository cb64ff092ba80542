"""What is said over and over is counted, and the counts add up to what happened."""

from __future__ import annotations

import pytest

from phi4d.log.repeats import MOST_KINDS, WINDOW_SECONDS, Count, Repeats, span

KIND = ("phi4d", 30, "inbox %s: %s")
OTHER = ("phi4d", 30, "no %s")


def words(counts: list[Count]) -> list[str]:
    return [count.words() for count in counts]


@pytest.fixture
def repeats() -> Repeats:
    return Repeats()


class TestTheSameText:
    def test_it_is_said_once_and_then_its_count(self, repeats: Repeats) -> None:
        counted = [repeats.counts(KIND, "full", now, 5) for now in range(38)]
        assert counted == [False] + [True] * 37
        assert list(repeats.due(WINDOW_SECONDS - 1)) == []
        assert words(list(repeats.due(WINDOW_SECONDS))) == [
            "said 37 times more in the last 5 minutes: full"
        ]

    def test_in_the_next_window_it_is_only_counted(self, repeats: Repeats) -> None:
        for now in (0, 1):
            repeats.counts(KIND, "full", now, 5)
        list(repeats.due(WINDOW_SECONDS))
        assert repeats.counts(KIND, "full", WINDOW_SECONDS + 1, 5)
        assert words(list(repeats.due(2 * WINDOW_SECONDS))) == [
            "said 1 time more in the last 5 minutes: full"
        ]

    def test_after_a_window_without_it_it_is_said_again(self, repeats: Repeats) -> None:
        repeats.counts(KIND, "full", 0, 5)
        assert list(repeats.due(WINDOW_SECONDS)) == []
        assert not repeats.counts(KIND, "full", WINDOW_SECONDS, 5)


class TestLikeTexts:
    def test_some_are_said_and_the_rest_is_counted(self, repeats: Repeats) -> None:
        counted = [repeats.counts(KIND, f"file {n}", 0, 3) for n in range(10)]
        assert counted == [False] * 3 + [True] * 7
        assert words(list(repeats.due(WINDOW_SECONDS))) == [
            "7 more like this in the last 5 minutes: file 9"
        ]

    def test_another_kind_is_another_matter(self, repeats: Repeats) -> None:
        repeats.counts(KIND, "a", 0, 1)
        assert not repeats.counts(OTHER, "b", 0, 1)


def test_at_the_end_every_count_is_told(repeats: Repeats) -> None:
    for _ in range(2):
        repeats.counts(KIND, "a", 10, 1)
    repeats.counts(KIND, "b", 10, 1)
    assert words(list(repeats.due(12, everything=True))) == [
        "said 1 time more in the last 2 s: a",
        "1 more like this in the last 2 s: b",
    ]
    assert list(repeats.due(12, everything=True)) == []


def test_it_does_not_grow_without_end_and_loses_no_count(repeats: Repeats) -> None:
    n = MOST_KINDS + 50
    for number in range(n):
        for _ in range(2):
            repeats.counts(("phi4d", 30, str(number)), "x", 0, 1)
    early = list(repeats.due(1))
    assert [count.kind[2] for count in early] == [str(number) for number in range(50)]
    assert len(list(repeats.due(2, everything=True))) == MOST_KINDS


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "1 s"), (1.4, "1 s"), (89, "89 s"), (300, "5 minutes")]
)
def test_spans(seconds: float, said: str) -> None:
    assert span(seconds) == said
