"""Notices: what was said last is what is written, and only changes are."""

from __future__ import annotations

import pytest

from phi4d.notices import Notices


class Book:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str | None]] = []

    def __call__(self, inbox: str, about: str, text: str | None) -> None:
        self.lines.append((inbox, about, text))


def test_only_what_changed_is_written():
    notices, book = Notices(), Book()
    notices.say("a", "watch", "polled")
    notices.say("a", "outbox", "full")
    notices.flush(book)
    notices.flush(book)
    notices.say("a", "outbox", "fuller")
    notices.say("a", "watch", None)
    notices.flush(book)

    assert book.lines == [
        ("a", "watch", "polled"),
        ("a", "outbox", "full"),
        ("a", "watch", None),
        ("a", "outbox", "fuller"),
    ]


def test_what_was_said_and_taken_back_in_between_is_never_written():
    notices, book = Notices(), Book()
    notices.say("a", "watch", "polled")
    notices.say("a", "watch", None)
    notices.say("b", "watch", None)
    notices.flush(book)

    assert book.lines == []


def test_all_there_is_about_a_thing_replaces_what_there_was():
    notices, book = Notices(), Book()
    notices.say("a", "watch", "polled")
    notices.say_all("outbox", {"a": "full", "b": "gone"})
    notices.say_all("outbox", {"b": "gone"})
    notices.flush(book)

    assert notices.about("outbox") == {"b": "gone"}
    assert sorted(book.lines, key=str) == [("a", "watch", "polled"), ("b", "outbox", "gone")]


def test_what_could_not_be_written_is_written_the_next_time():
    notices, book = Notices(), Book()
    notices.say("a", "watch", "polled")

    def full(*_: object) -> None:
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 -- whatever the writer raises
        notices.flush(full)
    notices.flush(book)

    assert book.lines == [("a", "watch", "polled")]
