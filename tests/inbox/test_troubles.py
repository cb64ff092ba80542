"""Said once, healed and said again."""

from __future__ import annotations

import pytest

from phi4d.inbox.troubles import Troubles


def test_a_trouble_is_logged_once_and_noted_as_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    notices: list[tuple[str, str | None]] = []
    troubles = Troubles(lambda inbox, text: notices.append((inbox, text)))
    troubles.say("in", b"a", "a is closed")
    troubles.say("in", b"a", "a is closed")
    troubles.say("in", b"b", "b is closed")
    troubles.say("in", b"a", "a is gone")
    troubles.heal("in", b"a", "a works again")
    troubles.heal("in", b"b", "b works again")
    troubles.heal("in", b"b", "b works again")
    assert notices == [
        ("in", "a is closed"),
        ("in", "a is closed (and 1 more)"),
        ("in", "a is gone (and 1 more)"),
        ("in", "b is closed"),
        ("in", None),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        'inbox "in": a is closed',
        'inbox "in": b is closed',
        'inbox "in": a works again',
        'inbox "in": b works again',
    ]
    assert troubles.of("in") == []
    assert troubles.of("other") == []
